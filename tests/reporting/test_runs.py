"""What runs recorded: read from hostile and half-written files, smoothed and thinned against pandas-like formulas."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vise_jax.errors import UserError
from vise_jax.reporting import runs
from vise_jax.reporting.runs import Run, Series


def write_run(
    directory: Path, records: list[dict[str, Any]], config: dict[str, Any] | None = None, end: str = ""
) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"format_version": 1, "kind": "run", "config": config or {}}))
    if records or end:
        (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + end)
    return directory


def make_run(name: str = "run", config: dict[str, Any] | None = None, **series: list[tuple[int, float]]) -> Run:
    found = {
        key: Series(np.array([step for step, _ in points]), np.array([value for _, value in points], np.float64))
        for key, points in series.items()
    }
    return Run(name, config or {}, found)


def test_series_by_name(tmp_path):
    records = [
        {"step": 10, "loss": 3.5, "note": "text", "flag": True, "list": [1], "nothing": None},
        {"step": 20, "loss": 2, "validation_loss": 2.5, "broken": float("nan"), "endless": float("inf")},
    ]
    (run,) = runs.read([write_run(tmp_path / "run", records)])
    assert run.name == "run"
    assert run.series.keys() == {"loss", "validation_loss"}
    assert run.series["loss"].steps.tolist() == [10, 20]
    assert run.series["loss"].values.tolist() == [3.5, 2.0]
    assert run.series["validation_loss"].steps.tolist() == [20]


@pytest.mark.parametrize("end", ['{"step": 30, "lo', '{"step": 30, "loss": 1}', "nonsense"])
def test_a_last_line_that_is_being_written_is_left_out(tmp_path, end):
    (run,) = runs.read([write_run(tmp_path / "run", [{"step": 10, "loss": 1.0}], end=end)])
    assert run.series["loss"].steps.tolist() == [10]


@pytest.mark.parametrize("line", ["nonsense", '{"loss": 1}', "[1]", '{"step": "x"}', "7", '{"step": null}'])
def test_a_damaged_line_is_named(tmp_path, line):
    directory = write_run(tmp_path / "run", [{"step": 10, "loss": 1.0}], end=f'{line}\n{{"step": 20}}\n')
    with pytest.raises(UserError, match=r"Line 2 of .*metrics\.jsonl is no record"):
        runs.read([directory])


def test_what_was_recorded_last_counts(tmp_path):
    records = [{"step": step, "loss": value} for step, value in [(1, 1.0), (2, 2.0), (3, 3.0), (2, 4.0), (3, 5.0)]]
    (run,) = runs.read([write_run(tmp_path / "run", records)])
    assert run.series["loss"].steps.tolist() == [1, 2, 3]
    assert run.series["loss"].values.tolist() == [1.0, 4.0, 5.0]


def test_a_run_that_has_only_started(tmp_path):
    (run,) = runs.read([write_run(tmp_path / "run", [])])
    assert run.series == {}
    assert runs.summary([run])["last step"] == ["–"]


def test_directories_that_are_no_runs(tmp_path):
    with pytest.raises(UserError, match="is no run"):
        runs.read([tmp_path])
    for content in ("{", "[]", '{"config": 3}', "{}"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            runs.read([tmp_path])


def test_names_tell_runs_apart(tmp_path):
    places = ["a/run", "b/run", "c/b/run", "other", "a/last/run"]
    directories = [write_run(tmp_path / place, []) for place in places]
    names = [run.name for run in runs.read(directories)]
    assert names == ["a/run", f"{tmp_path.name}/b/run", "c/b/run", "other", "last/run"]
    with pytest.raises(UserError, match="named twice"):
        runs.read([directories[0], directories[1], directories[0].parent / "../a/run"])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 100, 5000])
def test_smoothed_values_are_weighted_means(count):
    values = np.random.default_rng(count).normal(size=count)
    keep = 1 - 1 / max(count**0.5 / 2, 1)
    for place in {0, count // 2, count - 1}:
        weights = keep ** np.arange(place, -1, -1, dtype=np.float64)
        assert runs.smooth(values)[place] == pytest.approx(np.average(values[: place + 1], weights=weights))
    np.testing.assert_allclose(runs.smooth(np.full(count, 3.0)), 3.0)


@pytest.mark.parametrize("count", [5, 1999, 2000, 2001, 2002, 100_003])
def test_thinned_series_keep_ends_and_extremes(count):
    values = np.random.default_rng(0).normal(size=count)
    values[count // 3], values[count // 2] = 99.0, -99.0
    series = Series(np.arange(count) * 7, values)
    thinned = runs.thin(series, 2000)
    assert len(thinned.steps) == count if count <= 2000 else 1900 < len(thinned.steps) <= 2000
    assert (np.diff(thinned.steps) > 0).all()
    np.testing.assert_array_equal(values[thinned.steps // 7], thinned.values)
    assert {0, count - 1, count // 3, count // 2} <= set((thinned.steps // 7).tolist())
    # Wherever one looks, the extremes of what was there are still to be seen.
    for part in np.array_split(np.arange(count), min(count, 100)):
        kept = thinned.values[
            (thinned.steps // 7 >= part[0] - count // 900) & (thinned.steps // 7 <= part[-1] + count // 900)
        ]
        assert kept.max() >= values[part].max()
        assert kept.min() <= values[part].min()


def test_data_wait_is_the_share_of_a_step():
    run = make_run(step_seconds=[(1, 0.5), (2, 0.4), (4, 0.0)], data_seconds=[(1, 0.1), (3, 0.4), (4, 0.0)])
    wait = runs.data_wait(run)
    assert wait is not None
    assert wait.steps.tolist() == [1, 4]
    assert wait.values.tolist() == pytest.approx([0.2, 0])
    assert runs.data_wait(make_run(step_seconds=[(1, 0.5)])) is None


def test_differences_name_keys_that_differ():
    one = make_run(config={"training.seed": 0, "model.name": "resnet18", "data.crop_area": [0.1, 1], "old.key": 1})
    other = make_run(config={"training.seed": 1, "model.name": "resnet18", "data.crop_area": [0.1, 1]})
    assert runs.differences([one, other]) == {"old.key": [1, None], "training.seed": [0, 1]}
    assert runs.differences([one]) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), ("", '""'), ("a b", "a b"), (0.1, "0.1"), (20 / 270, "0.0740741"), (3, "3"), ([1, "x"], '[1, "x"]')],
)
def test_settings_as_text(value, text):
    assert runs.setting(value) == text


def test_the_last_values(capsys):
    one = make_run(
        "[bold]one",
        {"training.learning_rate": 0.1, "model.heads": ["comments"], "data.shards": ""},
        loss=[(10, 4.0), (20, 3.0)],
        validation_loss=[(20, 3.5)],
        validation_top1_comments=[(20, 0.125)],
        images_per_second=[(10, 2000.0), (20, 2000.0)],
        step_seconds=[(20, 0.5)],
        data_seconds=[(20, 0.05)],
        goodput=[(20, 0.987)],
        knn_accuracy=[(5, 0.5), (15, 0.6)],
    )
    other = make_run("other", {"training.learning_rate": 0.2, "model.heads": ["comments"], "data.shards": ""})
    assert runs.summary([one, other]) == {
        "last step": ["20", "–"],
        "loss": ["3", "–"],
        "validation loss": ["3.5", "–"],
        "knn accuracy": ["60.00%", "–"],
        "validation top1 comments": ["12.50%", "–"],
        "images per second": ["2,000", "–"],
        "data wait": ["10.00%", "–"],
        "goodput": ["98.70%", "–"],
    }
    runs.show([one, other])
    printed = capsys.readouterr().out
    assert "[bold]one" in printed
    assert "12.50%" in printed
    assert [line.split("│")[1:4] for line in printed.splitlines() if "learning_rate" in line] == [
        [" training.learning_rate   ", "       0.1 ", "   0.2 "]
    ]
    assert "model.heads" not in printed
