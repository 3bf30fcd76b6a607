"""Figures of the clusters, as PNG files. Matplotlib's font has no emoji: labels are words."""

import functools
import io
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from vise_jax.reporting.clusters import MIN_TOGETHER
from vise_jax.reporting.templates import Button, buttons

_LINES = {"comments": "#0072b2", "reactions": "#d55e00"}
# Reaction clusters in their figure, and how many of them stand side by side.
_MOST_REACTIONS, _COLUMNS = 128, 8
# Where the colors of log2 lift end at the latest.
_MOST_LIFT = 3
_LABEL_CHARACTERS = 40


def reactions(summary: dict[str, Any]) -> Figure:
    """Draw each of the largest reaction clusters as a bar for each button, the largest cluster first."""
    clusters, drawn = summary["reactions"][:_MOST_REACTIONS], buttons(summary["buttons"])
    width = len(drawn) + 1.5
    columns = min(_COLUMNS, len(clusters))
    lines = -(-len(clusters) // columns)
    figure, axes = _figure(1.2 * columns * width / 6.5, 0.8 * lines)
    # One pair of axes for all: drawing 128 pairs takes many times as long.
    for place, cluster in enumerate(clusters):
        left, bottom = width * (place % columns), -1.55 * (place // columns)
        axes.bar(left + np.arange(len(drawn)), cluster["profile"], 0.9, bottom, color=[one.color for one in drawn])
        axes.hlines(bottom, left - 0.6, left + len(drawn) - 0.4, color="gray", linewidth=0.6)
        axes.text(left - 0.5, bottom + 1.1, f"{cluster['number']}: {cluster['share']:.1%}", fontsize=8)
    axes.set_axis_off()
    axes.set(xlim=(-1, width * columns - 1), ylim=(-1.55 * (lines - 1) - 0.1, 1.5))
    marks = [Patch(color=one.color) for one in drawn]
    legend = axes.legend(
        marks,
        [_legible(one) for one in drawn],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(drawn),
        frameon=False,
        fontsize=9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _legible(button: Button) -> str:
    """Return the name of a button; of an emoji that the font lacks, its name in Unicode."""
    if all(ord(letter) in _font() for letter in button.name):
        return button.name
    return " ".join(unicodedata.name(letter, "?").lower() for letter in button.name)


def labels_per_post(summary: dict[str, Any]) -> Figure:
    """Draw the number of examples by their number of comment labels."""
    counts = np.array(summary["labels_per_post"])
    figure, axes = _figure(6, 3.5)
    axes.bar(np.arange(len(counts)), counts, color=_LINES["comments"])
    mean = np.arange(len(counts)) @ counts / max(counts.sum(), 1)
    axes.set(xlabel=f"comment clusters of an example (mean {mean:.2f})", ylabel="examples")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def balance(summary: dict[str, Any]) -> Figure:
    """Draw the examples of a cluster by its rank, and the Lorenz curves that Gini's coefficient measures."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    sizes, lorenz = figure.subplots(1, 2)
    for kind, color in _LINES.items():
        counts = np.array([cluster["examples"] for cluster in summary[kind]], np.float64)
        if counts.sum():
            some = counts[counts > 0]
            sizes.plot(np.arange(1, len(some) + 1), some, ".-", markersize=4, color=color)
            curve = np.concatenate([[0], np.cumsum(counts[::-1]) / counts.sum()])
            label = f"{kind[:-1]} clusters, Gini {summary['balance'][kind]['gini']:.2f}"
            lorenz.plot(np.linspace(0, 1, len(curve)), curve, color=color, label=label)
    lorenz.plot([0, 1], [0, 1], ":", color="gray", label="all equal")
    lorenz.legend(frameon=False, fontsize=9)
    sizes.set(xscale="log", yscale="log", xlabel="rank of the cluster", ylabel="examples")
    lorenz.set(xlabel="share of the clusters, the smallest first", ylabel="share of the labels")
    for axes in (sizes, lorenz):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def co_occurrence(summary: dict[str, Any]) -> Figure:
    """Draw the lift of the largest comment clusters with the largest reaction clusters as a color map."""
    heat = summary["heat"]
    values = np.array(heat["log2_lift"], np.float64)
    figure, axes = _figure(2 + 0.35 * len(heat["reactions"]), 1 + 0.22 * len(heat["comments"]))
    axes.set_facecolor("#d8d8d8")
    limit = float(np.clip(np.nanmax(np.abs(values), initial=0.0), 1, _MOST_LIFT))
    image = axes.imshow(values, "RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    names = {cluster["number"]: cluster["name"] for cluster in summary["reactions"]}
    words = {cluster["number"]: cluster["words"] for cluster in summary["comments"]}
    columns = [f"{number}: {names[number]}" for number in heat["reactions"]]
    rows = [f"{number}: {_readable(words[number])}" for number in heat["comments"]]
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=90)
    # Dollar signs in people's words are no formulas.
    axes.set_yticks(range(len(rows)), rows, fontsize=8, parse_math=False)
    axes.set(xlabel="reaction clusters, the largest first", ylabel="comment clusters, the largest first")
    figure.colorbar(image, label=f"log2 lift\n(gray: fewer than {MIN_TOGETHER} examples)", extend="both")
    return figure


FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "reactions": reactions,
    "labels_per_post": labels_per_post,
    "balance": balance,
    "co_occurrence": co_occurrence,
}


def draw(summary: dict[str, Any]) -> dict[str, bytes]:
    """Draw all figures as PNG files; the same summary gives the same bytes. A figure without clusters says so.

    Args:
        summary: what `clusters.summarize` returned.

    Returns:
        PNG files by name, without `.png`.
    """
    needs = {
        "reactions": summary["reactions"],
        "co_occurrence": summary["heat"]["comments"] and summary["heat"]["reactions"],
    }
    files = {}
    for name, figure in FIGURES.items():
        file = io.BytesIO()
        drawn = figure(summary) if needs.get(name, True) else _nothing()
        drawn.savefig(file, format="png", dpi=150, bbox_inches="tight")
        files[name] = file.getvalue()
    return files


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _nothing() -> Figure:
    figure, axes = _figure(6, 1)
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no examples with such labels", ha="center", va="center")
    return figure


@functools.cache
def _font() -> frozenset[int]:
    """Return the code points of the font's characters."""
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _readable(words: list[list[Any]]) -> str:
    """Return the heaviest words that the font can show."""
    font = _font()
    shown = ", ".join([word for word, _ in words if all(ord(letter) in font for letter in word)][:3])
    return shown if len(shown) <= _LABEL_CHARACTERS else f"{shown[: _LABEL_CHARACTERS - 1]}…"
