"""What counts as a regression."""

import json
import subprocess

import pytest

from vise_jax.errors import UserError


def test_a_ratio_below_the_tolerance_is_a_regression(load_benchmark):
    regressions = load_benchmark("regressions")
    ratios = {"torch": 1.0, "other": 2.0, "gone": 1.0}
    expected = {"step": {"tolerance": 0.2, "ratios": {regressions.processor(): ratios, "another": {"new": 1.0}}}}
    rows = regressions.compare({"step": {"torch": 0.79, "other": 1.61, "new": 0.1}}, expected)
    assert [(peer, verdict) for _, peer, _, _, verdict in rows] == [
        ("gone", ""),
        ("new", ""),
        ("other", ""),
        ("torch", "REGRESSION"),
    ]
    assert rows[0][3] == rows[1][2] == "not measured"


def test_a_benchmark_without_expectations_has_none_to_miss(load_benchmark):
    regressions = load_benchmark("regressions")
    assert regressions.compare({"step": {"torch": 0.1}}, {"step": {}}) == [
        ("step", "torch", "not measured", "0.10", "")
    ]


def test_what_is_compiled_is_compared_on_any_processor_and_times_on_their_own(load_benchmark):
    regressions = load_benchmark("regressions")
    ratios = {"any": {"flax": 1.0}, "8 x Another": {"torch": 1.0}}
    expected = {name: {"tolerance": 0.1, "ratios": ratios} for name in ("compiled", "step")}
    rows = regressions.compare({"compiled": {"flax": 0.5}, "step": {"torch": 0.5}}, expected)
    assert [(name, before, verdict) for name, _, before, _, verdict in rows] == [
        ("compiled", "1.00", "REGRESSION"),
        ("step", "not measured", ""),
    ]


def test_an_update_writes_the_ratios_of_this_processor_and_keeps_others(
    load_benchmark, monkeypatch: pytest.MonkeyPatch
):
    regressions = load_benchmark("regressions")
    monkeypatch.setattr(regressions, "processor", lambda: "2 x This")
    before = {"step": {"tolerance": 0.2, "ratios": {"2 x This": {"torch": 1.0, "jax": 2.0}, "8 x Another": {}}}}
    assert regressions.updated(before, {"step": {"torch": 0.7}, "compiled": {"flax": 0.9}}) == {
        "step": {"tolerance": 0.2, "ratios": {"2 x This": {"torch": 0.7, "jax": 2.0}, "8 x Another": {}}},
        "compiled": {"tolerance": regressions.TOLERANCE, "ratios": {"any": {"flax": 0.9}}},
    }


# The last line of a benchmark without ratios.
FOUND = '{"benchmark": "bounds"}'


def test_benchmarks_that_compare_nothing_are_left_out(load_benchmark, monkeypatch: pytest.MonkeyPatch):
    regressions = load_benchmark("regressions")
    bounds = regressions.EXPECTED.with_name("bounds.py")
    assert bounds.exists()
    assert "bounds" not in json.loads(regressions.EXPECTED.read_text())
    monkeypatch.setattr(
        regressions.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, FOUND)
    )
    with pytest.raises(UserError, match=r"bounds\.py compares nothing: leave it out"):
        regressions.ratios_of("bounds")
