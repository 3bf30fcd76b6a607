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
import matplotlib
import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import vise_jax
from vise_jax import artifact

# The colorblind-safe palette of Okabe and Ito.
COLORS = {"linear": "#0072b2", "finetune": "#d55e00", "knn": "#009e73"}
_REFERENCE_STYLES = {"random": ":", "true_labels": "--"}
_NAMES = {"random": "random initialization", "true_labels": "true labels"}
PROTOCOLS = {"linear": "linear", "knn": "kNN", "finetune": "fine-tuned"}
_TITLES = {
    "size": "Number of posts",
    "heads": "Heads",
    "noise": "Noise of the channel",
    "clusters": "Clusters of comments and of reactions",
    "embedding": "Comment embeddings",
    "lowshot": "Fine-tuning on few labels",
}

# A row of `results.csv`: cell, seed, protocol, labels of each class to fine-tune on (0 for the others), accuracy.
Row = Mapping[str, Any]


class Interval(NamedTuple):
    """A mean over seeds and half of its 95% interval by Student's t; NaN for one seed."""

    mean: float
    half: float
    seeds: int


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
    return Interval(float(np.mean(values)), half, len(values))


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
            figure = _draw(rows, study, cells, tuned, shots)
            for kind in ("svg", "png"):
                file = io.BytesIO()
                # The same numbers give the same bytes.
                with matplotlib.rc_context({"svg.hashsalt": study}):
                    figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
                with artifact.atomic_file(output / f"{study}.{kind}") as written:
                    written.write(file.getvalue())
    artifact.write_text(output / "tables.md", to_markdown(rows, studies, tuned, shots))


def to_markdown(rows: Sequence[Row], studies: Mapping[str, Mapping[str, str]], tuned: int, shots: Sequence[int]) -> str:
    """Return a table and the figure's link for each study that has a measurement; see `write_report`."""
    parts = [_INTRODUCTION]
    for study, cells in studies.items():
        if _is_measured(rows, cells):
            parts.append(f"## {_TITLES[study]}\n")
            if study == "lowshot":
                parts.append(_shots_table(rows, {**cells, _NAMES["random"]: "random"}, shots))
            else:
                parts.append(_table(rows, {**cells, **{_NAMES[name]: name for name in _NAMES}}, tuned))
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


def _table(rows: Sequence[Row], cells: Mapping[str, str], tuned: int) -> str:
    columns = {name: tuned if name == "finetune" else 0 for name in PROTOCOLS}
    heads = [f"{PROTOCOLS[name]}{f', {tuned} labels a class' if labels else ''}" for name, labels in columns.items()]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for label, cell in cells.items():
        found = [_text(interval(rows, cell, name, labels)) for name, labels in columns.items()]
        lines.append(f"| {label} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def _shots_table(rows: Sequence[Row], cells: Mapping[str, str], shots: Sequence[int]) -> str:
    lines = [f"| labels a class | {' | '.join(map(str, shots))} |", f"|---|{'---:|' * len(shots)}"]
    for label, cell in cells.items():
        found = [_text(interval(rows, cell, "finetune", number)) for number in shots]
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
            if study in ("size", "noise"):
                _line(axes, places, found, color, PROTOCOLS[protocol])
            else:
                _bars(axes, places, found, color, PROTOCOLS[protocol], list(COLORS).index(protocol))
            for reference, style in _REFERENCE_STYLES.items():
                if of_reference := interval(rows, reference, protocol, number):
                    axes.axhline(100 * of_reference.mean, color=color, linestyle=style, linewidth=1)
        if study == "size":
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(places, labels, rotation=0 if study != "clusters" else 20)
        axes.set_xlabel("dotted: random initialization; dashed: training on the true labels")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _places(study: str, labels: Sequence[str]) -> list[float]:
    if study == "noise":
        return [float(label) for label in labels]
    if study == "size":
        return [float(label.replace(",", "")) for label in labels]
    return [float(place) for place in range(len(labels))]


def _line(axes: Axes, places: Sequence[float], found: Sequence[Interval | None], color: str, label: str) -> None:
    there = [(place, one) for place, one in zip(places, found, strict=True) if one is not None]
    if there:
        means, halves = ([100 * getattr(one, name) for _, one in there] for name in ("mean", "half"))
        axes.errorbar([place for place, _ in there], means, np.nan_to_num(halves), color=color, label=label,
                      marker="o", markersize=4, capsize=3)  # fmt: skip


def _bars(
    axes: Axes, places: Sequence[float], found: Sequence[Interval | None], color: str, label: str, number: int
) -> None:
    there = [(place, one) for place, one in zip(places, found, strict=True) if one is not None]
    if there:
        means, halves = ([100 * getattr(one, name) for _, one in there] for name in ("mean", "half"))
        at = [place + 0.27 * (number - 1) for place, _ in there]
        axes.bar(at, means, 0.25, yerr=np.nan_to_num(halves), color=color, label=label, capsize=2)
