"""Tables and figures of `benchmarks/evidence.py`."""

import csv
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import vise_jax
from vise_jax import artifact
from vise_jax.reporting import study_figures

# The colorblind-safe palette of Okabe and Ito.
COLORS = {"linear": "#0072b2", "finetune": "#d55e00", "knn": "#009e73"}
_REFERENCE_STYLES = {"random": ":", "true_labels": "--"}
_NAMES = {"random": "random initialization", "true_labels": "true labels"}
PROTOCOLS = {"linear": "linear", "knn": "kNN", "finetune": "fine-tuned"}
_TITLES = {
    "size": "Number of posts, the same number of epochs",
    "repeats": "Number of posts, the same number of steps",
    "heads": "Heads",
    "noise": "Noise of the channel",
    "clusters": "Clusters of comments and of reactions",
    "embedding": "Comment embeddings",
    "lowshot": "Fine-tuning on few labels",
}

# Studies whose labels are numbers of posts.
_BY_POSTS = ("size", "repeats")

# A row of `results.csv`: cell, seed, protocol, labels of each class to fine-tune on (0 for the others), accuracy.
Row = Mapping[str, Any]


class Interval(NamedTuple):
    """A mean over seeds and half of its 95% interval by Student's t; NaN for one seed."""

    mean: float
    half: float


def interval(rows: Sequence[Row], cell: str, protocol: str, labels: int) -> Interval | None:
    """Return the accuracy of a cell over the seeds that are measured."""
    values = [
        row["accuracy"] for row in rows if (row["cell"], row["protocol"], row["labels"]) == (cell, protocol, labels)
    ]
    if not values:
        return None
    half = math.nan
    if len(values) > 1:
        half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(float(np.mean(values)), half)


def write_report(
    rows: Sequence[Row],
    studies: Mapping[str, Mapping[str, str]],
    tuned: int,
    shots: Sequence[int],
    about: Mapping[str, Any],
    output: Path,
) -> None:
    """Write `results.csv`, `evidence.json`, `tables.md` and a figure for each study, each atomically.

    Args:
        rows: all measurements.
        studies: for each study, the cell of each label.
        tuned: labels of each class that cells are fine-tuned on.
        shots: labels of each class in the study "lowshot".
        about: settings and data, for `evidence.json`.
        output: the directory.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, ["cell", "seed", "protocol", "labels", "accuracy"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    artifact.write_text(output / "results.csv", table.getvalue())
    versions = {"vise_jax": vise_jax.__version__, "jax": jax.__version__, "python": platform.python_version()}
    # In the order of the studies and of their cells, unlike `artifact.write_json`.
    described = json.dumps({**about, "versions": versions, "rows": list(rows)}, indent=1, ensure_ascii=False)
    artifact.write_text(output / "evidence.json", f"{described}\n")
    for study, cells in studies.items():
        if _is_measured(rows, cells):
            study_figures.save(_draw(rows, study, cells, tuned, shots), output, study)
    artifact.write_text(output / "tables.md", to_markdown(rows, studies, tuned, shots))


def to_markdown(rows: Sequence[Row], studies: Mapping[str, Mapping[str, str]], tuned: int, shots: Sequence[int]) -> str:
    """Return a table and the figure's link for each study that has a measurement; see `write_report`."""
    parts = [_INTRODUCTION]
    for study, cells in studies.items():
        if _is_measured(rows, cells):
            parts.append(f"## {_TITLES[study]}\n")
            if study == "lowshot":
                columns = {str(number): ("finetune", number) for number in shots}
                parts.append(_table(rows, {**cells, _NAMES["random"]: "random"}, columns, "labels a class"))
            else:
                columns = {PROTOCOLS[name]: (name, 0) for name in ("linear", "knn")}
                columns[f"{PROTOCOLS['finetune']}, {tuned} labels a class"] = ("finetune", tuned)
                parts.append(_table(rows, {**cells, **{_NAMES[name]: name for name in _NAMES}}, columns))
            parts.append(f"![{_TITLES[study]}]({study}.svg)\n")
    return "\n".join(parts)


def _is_measured(rows: Sequence[Row], cells: Mapping[str, str]) -> bool:
    return any(interval(rows, cell, "linear", 0) for cell in cells.values())


_INTRODUCTION = """# Simulated pairing: tables

Accuracy in percent, mean ± half of the 95% interval over the seeds (Student's t).
Engagement is real, images are real, their pairing is simulated.
"""


def _text(found: Interval | None) -> str:
    if found is None:
        return "–"
    spread = "" if math.isnan(found.half) else f" ± {100 * found.half:.1f}"
    return f"{100 * found.mean:.1f}{spread}"


def _table(
    rows: Sequence[Row], cells: Mapping[str, str], columns: Mapping[str, tuple[str, int]], corner: str = ""
) -> str:
    """Return a table of cells by protocol and number of labels.

    Args:
        rows: all measurements.
        cells: by label.
        columns: protocol and labels of each class, by title.
        corner: title of the labels.
    """
    lines = [f"{f'| {corner}'.rstrip()} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for label, cell in cells.items():
        found = [_text(interval(rows, cell, *column)) for column in columns.values()]
        lines.append(f"| {label} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def _draw(rows: Sequence[Row], study: str, cells: Mapping[str, str], tuned: int, shots: Sequence[int]) -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(ylabel="accuracy, percent", title=f"{_TITLES[study]} (simulated pairing)")
    if study == "lowshot":
        for (label, cell), color in zip({**cells, _NAMES["random"]: "random"}.items(), COLORS.values(), strict=False):
            _line(axes, list(shots), [interval(rows, cell, "finetune", number) for number in shots], color, label)
        axes.set(xscale="log", xlabel="labels of each class")
        axes.set_xticks(list(shots), [str(number) for number in shots])
        axes.minorticks_off()
    else:
        labels = list(cells)
        places = _places(study, labels)
        for protocol, color in COLORS.items():
            number = tuned if protocol == "finetune" else 0
            found = [interval(rows, cell, protocol, number) for cell in cells.values()]
            if study in (*_BY_POSTS, "noise"):
                _line(axes, places, found, color, PROTOCOLS[protocol])
            else:
                _bars(axes, places, found, color, PROTOCOLS[protocol], list(COLORS).index(protocol))
            for reference, style in _REFERENCE_STYLES.items():
                if of_reference := interval(rows, reference, protocol, number):
                    axes.axhline(100 * of_reference.mean, color=color, linestyle=style, linewidth=1)
        if study in _BY_POSTS:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(places, labels, rotation=0 if study != "clusters" else 20)
        axes.set_xlabel("dotted: random initialization; dashed: training on the true labels")
    # Below the axes: bars and curves may be anywhere.
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _places(study: str, labels: Sequence[str]) -> list[float]:
    if study == "noise":
        return [float(label) for label in labels]
    if study in _BY_POSTS:
        return [float(label.replace(",", "")) for label in labels]
    return [float(place) for place in range(len(labels))]


def _line(axes: Axes, places: Sequence[float], found: Sequence[Interval | None], color: str, label: str) -> None:
    there, means, halves = _measured(places, found)
    axes.errorbar(there, means, halves, color=color, label=label, marker="o", markersize=4, capsize=3)


def _bars(
    axes: Axes, places: Sequence[float], found: Sequence[Interval | None], color: str, label: str, number: int
) -> None:
    there, means, halves = _measured(places, found)
    axes.bar(there + 0.27 * (number - 1), means, 0.25, yerr=halves, color=color, label=label, capsize=2)


def _measured(places: Sequence[float], found: Sequence[Interval | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return places, means and halves of the intervals in percent, float64 [N] each, of the cells that are measured."""
    there = [(place, 100 * one.mean, 100 * one.half) for place, one in zip(places, found, strict=True) if one]
    place, mean, half = np.array(there, np.float64).reshape(-1, 3).T
    return place, mean, np.nan_to_num(half)
