"""Metrics of runs as series over steps, and the differences of their configs."""

import dataclasses
import json
import math
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.signal import lfilter

from vise_jax import artifact
from vise_jax.errors import UserError

# Metrics that jump from record to record.
_SMOOTHED = frozenset({"loss", "images_per_second", "data_wait"})
CAPTION = "loss, images per second and data wait: smoothed; the others: the last value"
_NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric of one run.

    Attributes:
        steps: int64 [N], rising.
        values: float64 [N], all finite.
    """

    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        name: the end of its path that tells it from the others.
        config: values by dotted key.
        series: by the name that the metric has in `metrics.jsonl`; none where nothing is recorded yet.
    """

    name: str
    config: dict[str, Any]
    series: dict[str, Series]


def read(directories: Sequence[Path]) -> list[Run]:
    """Read run directories, also of runs that are under way.

    Raises:
        UserError: a directory is no run, is named twice, or has a damaged line before the last of `metrics.jsonl`.
    """
    return [
        Run(name, _read_config(directory), _read_series(directory / "metrics.jsonl"))
        for name, directory in zip(_names(directories), directories, strict=True)
    ]


def smooth(values: np.ndarray) -> np.ndarray:
    """Smooth by an exponential mean over about sqrt(N) / 2 values: each is a mean of those up to it, also at the start.

    Args:
        values: float64 [N].

    Returns:
        float64 [N].
    """
    forget = 1 - 1 / max(math.sqrt(len(values)) / 2, 1)
    weights = 1 - forget ** np.arange(1, len(values) + 1)
    return lfilter([1 - forget], [1, -forget], values) / weights


def thin(series: Series, most: int) -> Series:
    """Drop points beyond `most`; the first, the last, and the extremes of equal intervals stay.

    Args:
        series: any number of points.
        most: at least 4.
    """
    count = len(series.steps)
    if count <= most:
        return series
    edges = np.linspace(0, count, (most - 2) // 2 + 1).astype(np.int64)
    parts = [slice(start, stop) for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    lowest = [part.start + int(series.values[part].argmin()) for part in parts]
    highest = [part.start + int(series.values[part].argmax()) for part in parts]
    selected = np.unique([0, count - 1, *lowest, *highest])
    return Series(series.steps[selected], series.values[selected])


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the config keys that differ between runs, with the value in each; None if a run lacks the key."""
    keys = sorted({key for run in runs for key in run.config})
    rows = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def summary(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the last values of the runs as text, one row per metric; noisy ones are smoothed."""
    names = {name for run in runs for name in run.series}
    measured = [name for name in names if name.startswith("validation_") or (is_fraction(name) and name != "goodput")]
    measured.sort(key=lambda name: (not name.startswith("validation_loss"), name))
    last = [max((int(series.steps[-1]) for series in run.series.values()), default=None) for run in runs]
    rows = {"last step": [_NOTHING if step is None else f"{step:,}" for step in last]}
    for name in ("loss", *measured, "images_per_second", "data_wait", "goodput"):
        rows[name.replace("_", " ")] = [_last_value(run, name) for run in runs]
    return {title: texts for title, texts in rows.items() if title == "last step" or set(texts) != {_NOTHING}}


def _last_value(run: Run, name: str) -> str:
    series = data_wait(run) if name == "data_wait" else run.series.get(name)
    if series is None:
        return _NOTHING
    values = smooth(series.values) if name in _SMOOTHED else series.values
    return _written(name, float(values[-1]))


def data_wait(run: Run) -> Series | None:
    """Return the fraction of the time of steps in which the devices waited for data, if it is recorded."""
    if not {"data_seconds", "step_seconds"} <= run.series.keys():
        return None
    waits, steps = run.series["data_seconds"], run.series["step_seconds"]
    both, ours, theirs = np.intersect1d(waits.steps, steps.steps, assume_unique=True, return_indices=True)
    share = waits.values[ours] / np.maximum(steps.values[theirs], 1e-12)
    return Series(both, np.minimum(share, 1.0)) if len(both) else None


def is_fraction(name: str) -> bool:
    """Return whether a metric is between 0 and 1 and shown as a percentage."""
    return name in ("goodput", "data_wait") or any(word in name for word in ("accuracy", "top1", "top5"))


def show(runs: Sequence[Run]) -> None:
    """Print the last values and the config keys that differ: as wide as the terminal, or as needed elsewhere."""
    table = Table(caption=CAPTION)
    table.add_column("")
    for run in runs:
        table.add_column(Text(run.name), justify="right", overflow="fold")
    for title, texts in summary(runs).items():
        table.add_row(Text(title), *map(Text, texts))
    table.add_section()
    for key, values in differences(runs).items():
        table.add_row(Text(key), *(Text(setting(value)) for value in values))
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def setting(value: Any) -> str:
    """Format a value of a config."""
    if value is None:
        return _NOTHING
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) and value else json.dumps(value)


def _written(name: str, value: float) -> str:
    if is_fraction(name):
        return f"{100 * value:.2f}%"
    if name == "images_per_second":
        return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
    return f"{value:,.4g}"


def _names(directories: Sequence[Path]) -> list[str]:
    """Return the shortest unique suffix of each path."""
    paths = [directory.resolve() for directory in directories]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UserError(f"The run {directories[number]} is named twice: name each run once.")
    ends = [["/".join(path.parts[-parts:]) for parts in range(1, len(path.parts) + 1)] for path in paths]
    return [next(end for end in mine if not any(end in other for other in ends if other is not mine)) for mine in ends]


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not artifact.is_file(path):
        raise UserError(f"{directory} is no run: it has no config.json; give the --workdir of train.py.")
    try:
        return dict(artifact.from_json(path.read_bytes())["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: give a run directory as train.py wrote it.") from error


def _read_series(path: Path) -> dict[str, Series]:
    """Read all numbers of the records, by name; a last line without an end is still being written."""
    if not artifact.is_file(path):
        return {}
    steps: dict[str, array[int]] = {}
    values: dict[str, array[float]] = {}
    with artifact.open_file(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                record = artifact.from_json(line)
                step = int(record.pop("step"))
                for name, value in record.items():
                    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                        steps.setdefault(name, array("q")).append(step)
                        values.setdefault(name, array("d")).append(value)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise UserError(f"Line {number} of {path} is no record of a step: delete the line.") from error
    return {name: _in_order(np.array(steps[name]), np.array(values[name])) for name in values}


def _in_order(steps: np.ndarray, values: np.ndarray) -> Series:
    """Sort by step; of a step that was recorded twice, keep the last record."""
    unique, from_the_end = np.unique(steps[::-1], return_index=True)
    return Series(unique, values[::-1][from_the_end])
