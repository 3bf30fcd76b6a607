"""Figures 3 to 6 in the paper's form: bars with dashed lines, and accuracy over the size of the pre-training data."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vise_jax import artifact
from vise_jax.reproduction.paper import BACKBONES, METHODS, Experiment

if TYPE_CHECKING:
    from vise_jax.reporting.study import Cell

# The colorblind-safe palette of Okabe and Ito.
_COLORS = {"random": "#999999", "uni-modal": "#e69f00", "cross-modal": "#009e73", "VisE": "#0072b2"}
_DASHES = ("--", "-.")
_COLUMNS = 2
# The least span of an axis, in percent.
_MIN_SPAN = 4.0


def draw(experiment: Experiment, cells: Sequence["Cell"]) -> Figure | None:
    """Draw a panel for each column; None for class activation maps, and where nothing was measured."""
    if experiment.kind == "maps" or not any(cell.result for cell in cells):
        return None
    columns = experiment.columns
    lines = -(-len(columns) // _COLUMNS)
    figure = Figure(figsize=(6.2 * _COLUMNS, 3.9 * lines), layout="constrained")
    panels = list(figure.subplots(lines, _COLUMNS, squeeze=False).flat)
    for axes, column in zip(panels, columns, strict=False):
        ours = [cell for cell in cells if cell.column == column and cell.result]
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(column.title, fontsize=11)
        if not ours:
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
            continue
        (_sizes if experiment.kind == "sizes" else _bars)(axes, experiment, ours)
        metric = ours[0].result["primary"] if ours[0].result else ""
        axes.set_ylabel(f"{metric.replace('_', ' ').replace('roc auc', 'ROC AUC')}, percent")
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    return figure


def save(figure: Figure, directory: Path, name: str) -> None:
    """Write `NAME.svg` and `NAME.png` into a directory, each atomically. The same figure gives the same bytes."""
    for kind in ("svg", "png"):
        file = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        with artifact.atomic_file(directory / f"{name}.{kind}") as written:
            written.write(file.getvalue())


def _values(cells: Sequence["Cell"]) -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard deviations in percent; a deviation of 0 where there is none."""
    means = np.array([100 * (cell.mean or 0.0) for cell in cells])
    return means, np.array([100 * (cell.std or 0.0) for cell in cells])


def _limits(axes: Axes, low: float, high: float) -> None:
    """Bars don't start at 0 where their differences are small: the axis spans the values."""
    span = max(high - low, _MIN_SPAN)
    axes.set_ylim(max(low - 0.25 * span, 0), high + 0.15 * span)


def _bars(axes: Axes, experiment: Experiment, cells: Sequence["Cell"]) -> None:
    """Draw the bars of each backbone side by side, and its dashed methods as lines across them."""
    means, deviations = _values(cells)
    _limits(axes, float((means - deviations).min()), float((means + deviations).max()))
    left, ticks, drawn = 0.0, dict[float, str](), False
    for backbone, name in BACKBONES.items():
        ours = [cell for cell in cells if METHODS[cell.method].backbone == backbone]
        bars = [cell for cell in ours if cell.method not in experiment.dashed]
        dashed = [cell for cell in ours if cell.method in experiment.dashed]
        if not ours:
            continue
        places = left + np.arange(len(bars))
        if bars:
            heights, spreads = _values(bars)
            colors = [_COLORS[METHODS[cell.method].group] for cell in bars]
            axes.bar(places, heights, 0.75, yerr=spreads, color=colors, capsize=2)
        ticks |= {
            float(place): "\n".join(textwrap.wrap(_title(cell), 10)) for place, cell in zip(places, bars, strict=True)
        }
        right = left + max(len(bars), 1)
        for number, cell in enumerate(dashed):
            label = "" if drawn else METHODS[cell.method].title
            height = float(_values([cell])[0][0])
            style = _DASHES[number % len(_DASHES)]
            axes.plot([left - 0.5, right - 0.5], [height] * 2, style, color=_COLORS["VisE"], label=label)
        drawn = drawn or bool(dashed)
        axes.text(
            (left + right - 1) / 2, 0.99, name, ha="center", va="top", fontsize=8, transform=axes.get_xaxis_transform()
        )
        left = right + 0.6
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=7)
    if drawn:
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def _sizes(axes: Axes, experiment: Experiment, cells: Sequence["Cell"]) -> None:
    """Draw VisE as a line over its number of posts for each backbone, other methods as points at theirs."""
    means, deviations = _values(cells)
    _limits(axes, float((means - deviations).min()), float((means + deviations).max()))
    for backbone, marker in zip(BACKBONES, ("o", "^", "s"), strict=True):
        ours = [cell for cell in cells if METHODS[cell.method].backbone == backbone]
        line = [cell for cell in ours if METHODS[cell.method].group == "VisE"]
        line.sort(key=lambda cell: METHODS[cell.method].examples)
        if line:
            sizes, (heights, spreads) = [METHODS[cell.method].examples for cell in line], _values(line)
            style, label = f"{marker}{'-' if backbone == 'resnet50' else '--'}", f"VisE, {BACKBONES[backbone]}"
            axes.errorbar(sizes, heights, spreads, fmt=style, color=_COLORS["VisE"], label=label, capsize=2)
        for cell in ours:
            method = METHODS[cell.method]
            height = 100 * (cell.mean or 0.0)
            if method.group == "random":
                axes.axhline(
                    height, color=_COLORS["random"], linestyle=":", label=f"Random Init, {BACKBONES[backbone]}"
                )
            elif method.group != "VisE":
                axes.plot(method.examples, height, marker, color=_COLORS[method.group])
                axes.annotate(method.title, (method.examples, height), (4, 3), textcoords="offset points", fontsize=7)
    axes.set(xscale="log", xlabel="images of pre-training")
    axes.legend(frameon=False, fontsize=7, loc="lower right")


def _title(cell: "Cell") -> str:
    method = METHODS[cell.method]
    return f"{method.title} {method.heads}".strip()
