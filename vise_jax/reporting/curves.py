"""Training curves of runs: panels, figures and the page."""

import base64
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from vise_jax import artifact
from vise_jax import config as vise_config
from vise_jax.reporting import runs, templates
from vise_jax.reporting.runs import Run, Series

# Maximum number of points of a curve.
_MOST_POINTS = 2000
# The colorblind-safe palette of Okabe and Ito, for light and for dark backgrounds.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b0508c", "#a67c00", "#1b8fc4", "#6b6b6b")
DARK_COLORS = ("#56b4e9", "#ff8b4d", "#2fc99b", "#e495c3", "#e8c33c", "#a5d8f5", "#b5b5b5")

# Styles. "noisy": recorded at each step, drawn faintly and smoothed. "plain": a line. "dashed": a second line.
# "points": measured at few steps.
_NOISY, _PLAIN, _DASHED, _POINTS = "noisy", "plain", "dashed", "points"
_SECTIONS = ("Loss", "Accuracy", "Optimization", "Speed", "Other")
_HEAD = re.compile(r"(?:loss|validation_(?:loss|top1|top5))_(\w+)")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        section: heading of its group.
        title: shown above it.
        share: whether values are fractions, shown in percent.
        curves: label in the legend and style, by metric.
    """

    section: str
    title: str
    share: bool
    curves: dict[str, tuple[str, str]]


def panels(every: Sequence[Run]) -> list[Panel]:
    """Return the panels of the runs' metrics in the order of the page; an unknown metric gets its own panel."""
    names = {name for run in every for name in run.series}
    heads = sorted({match[1] for name in names if (match := _HEAD.fullmatch(name))})
    both = {"loss": ("train", _NOISY), "validation_loss": ("validation", _POINTS)}
    known = [Panel("Loss", "loss", False, both)]
    for head in heads:
        curves = {f"{name}_{head}": how for name, how in both.items()}
        known.append(Panel("Loss", f"loss: {head}", False, curves))
    for head in heads:
        curves = {
            f"validation_top1_{head}": ("top-1", _POINTS),
            f"validation_top5_{head}": ("top-5", _DASHED),
        }
        known.append(Panel("Accuracy", f"validation top-1 and top-5: {head}", True, curves))
    known += [
        _panel("Optimization", "learning rate", "learning_rate", _PLAIN),
        _panel("Optimization", "gradient norm", "gradient_norm", _NOISY),
        _panel("Optimization", "parameter norm", "parameter_norm", _PLAIN),
        _panel("Speed", "images per second", "images_per_second", _NOISY),
        _panel("Speed", "fraction of time waiting for data", "data_wait", _NOISY, share=True),
        _panel("Speed", "goodput: fraction of time in steps", "goodput", _PLAIN, share=True),
        _panel("Speed", "memory of a device at its peak, GiB", "device_bytes", _PLAIN),
        _panel("Speed", "corrupt examples", "corrupt_examples", _PLAIN),
    ]
    shown = {name for panel in known for name in panel.curves} | {"step_seconds", "data_seconds"}
    for name in sorted(names - shown):
        share = runs.is_fraction(name)
        known.append(_panel("Accuracy" if share else "Other", name.replace("_", " "), name, _POINTS, share))
    order = {section: number for number, section in enumerate(_SECTIONS)}
    known.sort(key=lambda panel: order[panel.section])
    return [panel for panel in known if any(_series(run, name) for run in every for name in panel.curves)]


def draw(every: Sequence[Run]) -> dict[str, bytes]:
    """Draw a figure per section as a PNG file, deterministically.

    Returns:
        PNG files by name without `.png`; sections without curves have none.
    """
    files = {}
    for section in _SECTIONS:
        ours = [panel for panel in panels(every) if panel.section == section]
        if ours:
            file = io.BytesIO()
            _figure(ours, every).savefig(file, format="png", dpi=150)
            files[f"training_{section.lower()}"] = file.getvalue()
    return files


def render(every: Sequence[Run], drawn: Mapping[str, bytes]) -> str:
    """Render the page. Names from directories and files are escaped.

    Args:
        every: the runs.
        drawn: PNG files by name, from `draw`; shown without JavaScript.
    """
    differing = runs.differences(every)
    if len(every) == 1:
        default = Run("default", _as_json(vise_config.flat(vise_config.base())), {})
        differing = runs.differences([default, *every])
    columns = [run.name for run in every] if len(every) > 1 else ["default", every[0].name]
    shown = panels(every)
    return templates.render(
        "training.html.j2",
        names=[run.name for run in every],
        without=[run.name for run in every if not run.series],
        summary=runs.summary(every),
        caption=runs.CAPTION,
        columns=columns,
        settings=[(key, [runs.setting(_without_path(value)) for value in values]) for key, values in differing.items()],
        sections=[section for section in _SECTIONS if any(panel.section == section for panel in shown)],
        data={
            "runs": [{"name": run.name, "batch": run.config.get("training.batch_size")} for run in every],
            "panels": [_for_page(panel, every) for panel in shown],
        },
        colors=list(zip(COLORS, DARK_COLORS, strict=True)),
        images={name: base64.b64encode(content).decode() for name, content in drawn.items()},
    )


def write(every: Sequence[Run], output: Path) -> None:
    """Write the figures and then `training.html` into the directory `output`, each atomically.

    Args:
        every: the runs.
        output: the directory; files of an earlier report in it are replaced.
    """
    drawn = draw(every)
    text = render(every, drawn)
    artifact.make_directory(output)
    for name, content in drawn.items():
        with artifact.atomic_file(output / f"{name}.png") as file:
            file.write(content)
    artifact.write_text(output / "training.html", text)


def _without_path(value: Any) -> Any:
    """Return only the last part of a path: pages are passed on."""
    return f"…/{value.rsplit('/', 1)[1]}" if isinstance(value, str) and "/" in value else value


def _panel(section: str, title: str, name: str, how: str, share: bool = False) -> Panel:
    return Panel(section, title, share, {name: ("", how)})


def _series(run: Run, name: str) -> Series | None:
    if name == "data_wait":
        return runs.data_wait(run)
    series = run.series.get(name)
    if series is not None and name == "device_bytes":
        return Series(series.steps, series.values / 2**30)
    return series


def _lines(panel: Panel, every: Sequence[Run]) -> list[tuple[int, str, str, Series]]:
    """Return the lines to draw: index of the run, label, style and thinned points."""
    lines = []
    for number, run in enumerate(every):
        for name, (label, how) in panel.curves.items():
            series = _series(run, name)
            if series is None:
                continue
            if how == _NOISY:
                lines.append((number, label, "faint", runs.thin(series, _MOST_POINTS)))
                series, how = Series(series.steps, runs.smooth(series.values)), _PLAIN
            lines.append((number, label, how, runs.thin(series, _MOST_POINTS)))
    # Faint lines are drawn below the others.
    return sorted(lines, key=lambda line: line[2] != "faint")


def _for_page(panel: Panel, every: Sequence[Run]) -> dict[str, Any]:
    return {
        "section": panel.section,
        "title": panel.title,
        "share": panel.share,
        "curves": [
            {
                "run": number,
                "label": label,
                "how": how,
                "steps": series.steps.tolist(),
                "values": [float(f"{value:.5g}") for value in series.values.tolist()],
            }
            for number, label, how, series in _lines(panel, every)
        ],
    }


def _figure(ours: Sequence[Panel], every: Sequence[Run]) -> Figure:
    columns = min(len(ours), 3)
    lines = -(-len(ours) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.6, 2.9 * lines + 0.5), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, panel in zip(grid[: len(ours)], ours, strict=True):
        _draw_panel(axes, panel, every)
    for axes in grid[len(ours) :]:
        axes.set_axis_off()
    marks = {run.name: Line2D([], [], color=_color(number)) for number, run in enumerate(every) if run.series}
    legend = figure.legend(marks.values(), marks.keys(), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    for text in legend.get_texts():
        # A dollar sign in a name starts no formula.
        text.set_parse_math(False)
    return figure


def _draw_panel(axes: Axes, panel: Panel, every: Sequence[Run]) -> None:
    styles: dict[str, dict[str, Any]] = {
        "faint": {"alpha": 0.25, "linewidth": 0.7},
        _PLAIN: {"linewidth": 1.4},
        _DASHED: {"linewidth": 1.2, "linestyle": "--", "marker": ".", "markersize": 4},
        _POINTS: {"linewidth": 1.2, "linestyle": "-", "marker": "o", "markersize": 3.5},
    }
    lines = _lines(panel, every)
    for number, _, how, series in lines:
        # A line through one point has no length.
        mark = {"marker": "o", "markersize": 3.5} if len(series.steps) == 1 else {}
        axes.plot(series.steps, series.values, color=_color(number), **styles[how] | mark)
    labels = {label: how for _, label, how, _ in lines if how != "faint"}
    if len(labels) > 1:
        marks = [Line2D([], [], color="gray", **styles[how]) for how in labels.values()]
        axes.legend(marks, labels.keys(), frameon=False, fontsize=8)
    axes.set_title(panel.title, fontsize=10, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step", fontsize=8)
    if panel.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as `config.json` holds them: tuples become lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
