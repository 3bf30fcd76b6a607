"""Sensitivity of results to their settings: a heat map of validation and test over each sweep (Appendix C)."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vise_jax import artifact
from vise_jax.evaluation.results import Result, SplitResult
from vise_jax.reporting import templates

# Perceptually uniform and colorblind-safe.
_COLORS = "cividis"


class HeatMap(NamedTuple):
    """A sweep as a table.

    Attributes:
        rows: labels of the rows.
        columns: labels of the columns.
        validation: float64 [R, C], NaN where nothing was tried.
        test: float64 [R, C], likewise.
        selected: bool [R, C], whether a split reports this setting.
    """

    rows: list[str]
    columns: list[str]
    validation: np.ndarray
    test: np.ndarray
    selected: np.ndarray


def heat_map(splits: Sequence[SplitResult]) -> HeatMap:
    """Return the sweep of a result as a table.

    With two settings, one is in the rows and one in the columns, and cells are means over the splits. With one, the
    rows are the splits.
    """
    keys = list(splits[0]["sweep"][0]["settings"])
    values = {key: sorted({row["settings"][key] for split in splits for row in split["sweep"]}) for key in keys}
    across = keys[-1]
    if len(keys) > 1:
        rows = [f"{keys[0]} {value:g}" for value in values[keys[0]]]
    else:
        rows = [f"seed {split['seed']}" for split in splits]
    shape = len(rows), len(values[across])
    sums, counts, selected = np.zeros((2, *shape)), np.zeros(shape), np.zeros(shape, bool)
    for number, split in enumerate(splits):
        for one in split["sweep"]:
            settings = one["settings"]
            row = values[keys[0]].index(settings[keys[0]]) if len(keys) > 1 else number
            place = row, values[across].index(settings[across])
            sums[(0, *place)] += one["validation"]
            sums[(1, *place)] += one["test"]
            counts[place] += 1
            selected[place] |= settings == split["selected"]["settings"]
    with np.errstate(invalid="ignore"):
        validation, test = sums / counts
    return HeatMap(rows, [f"{across} {value:g}" for value in values[across]], validation, test, selected)


def draw(result: Result) -> Figure:
    """Draw the heat maps of validation and test side by side, on one scale; a frame marks the selected settings."""
    table = heat_map(result["splits"])
    height = 1.6 + 0.45 * len(table.rows)
    figure = Figure(figsize=(max(6.4, 1.5 * len(table.columns) + 3), height), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    values = np.stack([table.validation, table.test])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    high = high if high > low else low + 1e-3
    for axis, title, cells in zip(axes, ("validation", "test"), values, strict=True):
        image = axis.imshow(100 * cells, cmap=_COLORS, vmin=100 * low, vmax=100 * high, aspect="auto")
        axis.set_title(title)
        axis.set_xticks(range(len(table.columns)), table.columns, rotation=30, ha="right")
        axis.set_yticks(range(len(table.rows)), table.rows)
        for (row, column), value in np.ndenumerate(cells):
            if np.isfinite(value):
                dark = value < (low + high) / 2
                axis.text(
                    column, row, f"{100 * value:.1f}", ha="center", va="center", color="white" if dark else "black"
                )
            if table.selected[row, column]:
                axis.add_patch(
                    Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="#d55e00", linewidth=2.5)
                )
    figure.colorbar(image, ax=axes, label=f"{result['selection']['metric'].replace('_', ' ')}, percent")
    return figure


def write(results: Sequence[Result], output: Path) -> Path:
    """Write a PNG file of each result's sweep, and `sensitivity.html`, which comes last; return the page's path."""
    artifact.make_directory(output)
    cards = []
    for result in results:
        file = io.BytesIO()
        draw(result).savefig(file, dpi=120)
        name = f"sensitivity-{Path(result['file']).stem}.png"
        with artifact.atomic_file(output / name) as written:
            written.write(file.getvalue())
        cards.append(
            {
                "title": f"{result['encoder']['name']}: {result['data']['name']}, {result['protocol']}",
                "setting": result["setting"].replace("_", " "),
                "primary": result["primary"],
                "summary": result["metrics"][result["primary"]],
                "splits": len(result["splits"]),
                "settings": len(result["splits"][0]["sweep"]),
                "file": result["file"],
                "picture": base64.b64encode(file.getvalue()).decode(),
            }
        )
    page = output / "sensitivity.html"
    artifact.write_text(page, templates.render("sensitivity.html.j2", cards=cards))
    return page
