"""What counts as a regression."""

import json
import subprocess

import pytest

from vise_jax.errors import UserError


def test_a_ratio_below_the_tolerance_is_a_regression(load_benchmark):
    regressions = load_benchmark("regressions")
    expected = {"step": {"tolerance": 0.2, "ratios": {"torch": 1.0, "other": 2.0, "gone": 1.0}}}
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
