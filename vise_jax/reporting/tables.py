"""Tables of measurements: one row an encoder, one column a data set and protocol."""

import csv
import dataclasses
import html
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.evaluation import predictions
from vise_jax.evaluation.results import Result, Summary

_BASELINE = "majority class"
_CAPTION = "percent, mean ± standard deviation over the splits; bold: the best of its column"
_NOTHING = "–"

# Key of a row or column: its title, then what distinguishes equal titles.
_Key = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """The texts of a table.

    Attributes:
        columns: a title for each column; the first one is that of the rows' names.
        rows: texts, as many in each as `columns`.
        best: (row, column) of the best values; none where a column has one value only.
        baseline: the last row is no encoder: it is always predicting the majority class of train.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]]
    baseline: bool


def build(measurements: Sequence[Result]) -> Table:
    """Lay out measurements, in percent, rows and columns by name.

    Args:
        measurements: as `vise_jax.evaluation.results.read_all` gives them.

    Raises:
        UserError: two of them would stand in the same cell.
    """
    cells: dict[tuple[_Key, _Key], Result] = {}
    for one in measurements:
        there = cells.setdefault((_row_key(one), _column_key(one)), one)
        if there is not one:
            raise UserError(
                f"{there['file']} and {one['file']} measure the same with different settings: take one of them out of"
                " the directory, or measure it again with another --name."
            )
    rows, columns = _titles(row for row, _ in cells), _titles(column for _, column in cells)
    texts, best = [], set()
    for row, title in rows.items():
        texts.append((title, *(_percent(_primary(cells.get((row, column)))) for column in columns)))
    for number, column in enumerate(columns, start=1):
        column_cells = {index: cells[row, column] for index, row in enumerate(rows) if (row, column) in cells}
        values = {index: one["metrics"][one["primary"]]["mean"] for index, one in column_cells.items()}
        if len(values) > 1:
            best |= {(index, number) for index, value in values.items() if value == max(values.values())}
    baselines = {column: baseline for (_, column), one in cells.items() if (baseline := _baseline(one))}
    if baselines:
        texts.append((_BASELINE, *(_percent(baselines.get(column)) for column in columns)))
    return Table(("encoder", *columns.values()), tuple(texts), frozenset(best), bool(baselines))


def show(table: Table) -> None:
    """Print the table: as wide as the terminal, as wide as it needs to be elsewhere."""
    _console().print(to_rich(table))


def to_rich(table: Table) -> RichTable:
    """Return the table for a terminal."""
    shown = RichTable(caption=_CAPTION)
    for number, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="right" if number else "left", overflow="fold")
    for index, row in enumerate(table.rows):
        last = table.baseline and index == len(table.rows) - 1
        if last:
            shown.add_section()
        cells = [Text(text, "bold" if (index, number) in table.best else "") for number, text in enumerate(row)]
        shown.add_row(*cells, style="dim" if last else None)
    return shown


def show_metrics(result: Result) -> None:
    """Print all metrics of a result, with their bootstrap intervals, and fits that have not converged."""
    shown = RichTable("metric", "mean", "std", "95% interval", caption="percent; the interval is over test examples")
    for name, summary in result["metrics"].items():
        low, high = summary.get("interval", (None, None))
        interval = _NOTHING if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"
        std = _NOTHING if summary["std"] is None else f"{100 * summary['std']:.2f}"
        style = "bold" if name == result["primary"] else ""
        shown.add_row(name, f"{100 * summary['mean']:.2f}", std, interval, style=style)
    console = _console()
    console.print(shown)
    fits = [row for split in result["splits"] for row in split["sweep"] if "converged" in row["details"]]
    if fits:
        converged = sum(bool(row["details"]["converged"]) for row in fits)
        more = "" if converged == len(fits) else ": --config.linear.iterations allows more"
        console.print(f"{converged:,} of {len(fits):,} fits converged{more}")
    for key, value in _at_an_edge(result):
        console.print(f"the selected {key} {value:g} is at the edge of its grid: values beyond it may be better")
    if truncated := result["data"]["truncated_texts"]:
        console.print(f"{truncated:,} texts have more tokens than the text encoder takes, and were truncated")


def _at_an_edge(result: Result) -> list[tuple[str, float]]:
    """Return the settings for which every split selected the same end of the grid, better than all other values."""
    found = []
    for key, grid in result["selection"]["grid"].items():
        selected = {settings[key] for settings in result["selection"]["selected"]}
        if len(grid) > 1 and len(selected) == 1 and selected <= {min(grid), max(grid)}:
            (value,) = selected
            sweeps = [split["sweep"] for split in result["splits"]]
            others = [max(row["validation"] for row in sweep if row["settings"][key] != value) for sweep in sweeps]
            if all(
                max(row["validation"] for row in sweep) > other for sweep, other in zip(sweeps, others, strict=True)
            ):
                found.append((key, value))
    return found


def show_comparisons(directory: Path, measurements: Sequence[Result], reference: str) -> None:
    """Print the difference of each encoder to a reference on the same data, by a paired bootstrap.

    Args:
        directory: of the results, with their predictions.
        measurements: as `results.read_all` returns them.
        reference: name of an encoder.

    Raises:
        UserError: no measurement of the reference, or predictions that are missing.
    """
    of_reference = {_column_key(one): one for one in measurements if one["encoder"]["name"] == reference}
    if not of_reference:
        raise UserError(f"No result is of an encoder named {reference!r}: name one of the table's rows.")
    shown = RichTable("encoder", "data", "metric", f"minus {reference}", "95% interval", caption="points of percent")
    for one in measurements:
        other = of_reference.get(_column_key(one))
        if other is None or other is one:
            continue
        metric = one["selection"]["metric"]
        ours, theirs = (predictions.path_of(directory / result["file"]) for result in (one, other))
        difference = predictions.compare(ours, theirs, metric)
        interval = f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
        title = _column_key(one)[0]
        shown.add_row(one["encoder"]["name"], title, metric, f"{100 * difference.difference:+.2f}", interval)
    _console().print(shown)


def to_markdown(table: Table) -> str:
    """Return the table in Markdown."""

    def line(cells: Iterable[str]) -> str:
        escaped = (html.escape(" ".join(cell.splitlines()), quote=False).replace("|", "&#124;") for cell in cells)
        return f"| {' | '.join(escaped)} |"

    lines = [line(table.columns), line(["---", *("---:" for _ in table.columns[1:])])]
    for index, row in enumerate(table.rows):
        lines.append(line(f"**{text}**" if (index, number) in table.best else text for number, text in enumerate(row)))
    return "\n".join([*lines, "", f"{_CAPTION[0].upper()}{_CAPTION[1:]}.", ""])


def to_csv(measurements: Sequence[Result]) -> str:
    """Return all measurements as CSV, one metric per line, as fractions and unrounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["encoder", "data", "task", "protocol", "metric", "primary", "mean", "std", "splits", "image_size", "file"]
    )
    for one in measurements:
        encoder, data = one["encoder"], one["data"]
        for name, summary in one["metrics"].items():
            what = [
                _no_formula(encoder["name"]),
                _no_formula(data["name"]),
                one["task"],
                one["protocol"],
                name,
                name == one["primary"],
            ]
            numbers = [summary["mean"], summary.get("std"), len(one["splits"])]
            writer.writerow([*what, *numbers, _image_size(one), one["file"]])
    return file.getvalue()


def _no_formula(text: str) -> str:
    """Return a cell of text that spreadsheets don't compute."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def write(measurements: Sequence[Result], output: Path) -> Table:
    """Write `table.md` and `table.csv` into the directory `output`, each atomically, and return the table."""
    table = build(measurements)
    artifact.make_directory(output)
    artifact.write_text(output / "table.md", to_markdown(table))
    artifact.write_text(output / "table.csv", to_csv(measurements))
    return table


def _console() -> Console:
    """Return a console as wide as the terminal, as wide as a table needs to be elsewhere."""
    return Console(width=None if sys.stdout.isatty() else 10_000)


def _row_key(one: Result) -> _Key:
    return one["encoder"]["name"], f"{_image_size(one)} px", one["encoder"]["fingerprint"][:8]


def _column_key(one: Result) -> _Key:
    setting = "" if one.get("setting", "image") == "image" else f" {one['setting'].replace('_', ' ')}"
    return (
        f"{one['data']['name']} {one['protocol']}{setting}",
        one["task"],
        one["primary"],
        one["data"]["fingerprint"][:8],
    )


def _titles(keys: Iterable[_Key]) -> dict[_Key, str]:
    """Return a title for each key, sorted by title; equal titles get what distinguishes them."""
    alike: dict[str, set[_Key]] = {}
    for key in keys:
        alike.setdefault(key[0], set()).add(key)
    titles = {}
    for title, group in alike.items():
        different = [place for place in range(1, len(next(iter(group)))) if len({key[place] for key in group}) > 1]
        for key in group:
            titles[key] = f"{title} ({', '.join(key[place] for place in different)})" if different else title
    return dict(sorted(titles.items(), key=lambda item: (item[1].casefold(), item[0])))


def _image_size(one: Result) -> object:
    return one["encoder"].get("preprocessing", {}).get("crop", "")


def _primary(one: Result | None) -> Summary | None:
    """Return mean and deviation of the primary metric."""
    return one["metrics"][one["primary"]] if one else None


def _baseline(one: Result) -> Summary | None:
    """Return what always predicting the majority class reaches, where that is comparable with the primary metric."""
    summary = one["metrics"].get(f"majority_{one['primary']}")
    return {**summary, "std": None} if summary else None


def _percent(summary: Summary | None) -> str:
    if summary is None:
        return _NOTHING
    std = summary.get("std")
    spread = f" ± {100 * std:.2f}" if std is not None else ""
    return f"{100 * summary['mean']:.2f}{spread}"
