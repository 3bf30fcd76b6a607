"""The report of an experiment of the paper: table, figure and page, beside the paper's printed numbers."""

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.evaluation import results
from vise_jax.evaluation.results import Result
from vise_jax.reporting import clusters, curves, figures, runs, sensitivity, study_figures, templates
from vise_jax.reproduction.paper import METHODS, Column
from vise_jax.reproduction.plan import Plan
from vise_jax.reproduction.run import command, state

_NOTHING = "–"
# Comment clusters and maps on the page.
_MOST_CLUSTERS, _MOST_MAPS = 20, 12
_CSV = (
    *("method", "backbone", "heads", "task", "protocol", "setting", "metric", "mean", "std", "difference"),
    *("paper_mean", "paper_std", "reason", "file"),
)
CAPTION = "percent, mean ± standard deviation over the splits"


@dataclass(frozen=True)
class Cell:
    """A cell of the paper's table or figure.

    Attributes:
        method: name in `METHODS`.
        column: of the experiment.
        result: what was measured here; None for an empty cell.
        reason: why it is empty; "".
        reference: mean of the row that differences are shown to; None for that row, and without one.
        printed: the paper's mean and standard deviation, as fractions; None where its main text prints none.
    """

    method: str
    column: Column
    result: Result | None
    reason: str
    reference: float | None
    printed: tuple[float, float | None] | None

    @property
    def mean(self) -> float | None:
        """The primary metric."""
        return self.result["metrics"][self.result["primary"]]["mean"] if self.result else None

    @property
    def std(self) -> float | None:
        """Its standard deviation over splits; None for one split."""
        return self.result["metrics"][self.result["primary"]]["std"] if self.result else None

    @property
    def difference(self) -> float | None:
        """Difference to the reference row."""
        return None if self.mean is None or self.reference is None else self.mean - self.reference

    @cached_property
    def ours(self) -> str:
        """The measured value as text."""
        return percent(self.mean, self.std)

    @cached_property
    def change(self) -> str:
        """The difference as text with an arrow, as in Table 3; "" without one."""
        if self.difference is None:
            return ""
        points = f"{100 * abs(self.difference):.2f}"
        return "= 0.00" if points == "0.00" else f"{'↑' if self.difference > 0 else '↓'} {points}"

    @cached_property
    def paper(self) -> str:
        """The paper's value as text; "" where it prints none."""
        return percent(*self.printed) if self.printed else ""


def percent(mean: float | None, std: float | None = None) -> str:
    """Format a fraction in percent."""
    if mean is None:
        return _NOTHING
    return f"{100 * mean:.2f}{f' ± {100 * std:.2f}' if std is not None else ''}"


def read(plan: Plan) -> list[Cell]:
    """Return all cells of an experiment, measured or empty.

    Raises:
        UserError: a directory of one cell holds several results.
    """
    experiment, found = plan.experiment, list[Cell]()
    means: dict[str, float] = {}
    for method, column in experiment.cells():
        step = plan.measurement(method, column)
        paths = sorted(step.output.glob("*.json"))
        if len(paths) > 1:
            raise UserError(f"{step.output} holds {len(paths)} results of one cell: leave one of them there.")
        one = results.read(paths[0]) if paths else None
        if one is not None:
            one = {**one, "file": f"{step.output.name}/{paths[0].name}"}
            if method == experiment.reference:
                means[column.name] = one["metrics"][one["primary"]]["mean"]
        found.append(
            Cell(
                method,
                column,
                one,
                "" if one else state(step),
                None if method == experiment.reference else means.get(column.name),
                experiment.printed.get((method, column.name)),
            )
        )
    return found


def grid(plan: Plan, cells: Sequence[Cell]) -> tuple[list[Column], list[tuple[str, list[Cell | None]]]]:
    """Return the columns, and the title and cells of each row; a row has None where the paper has no such cell."""
    columns = [*plan.experiment.columns, *plan.experiment.alone]
    there = {(cell.method, cell.column.name): cell for cell in cells}
    rows = dict.fromkeys(cell.method for cell in cells)
    return columns, [(METHODS[row].name, [there.get((row, column.name)) for column in columns]) for row in rows]


def to_markdown(plan: Plan, cells: Sequence[Cell]) -> str:
    """Return the table in Markdown."""
    columns, rows = grid(plan, cells)
    lines = [f"| | {' | '.join(column.title for column in columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {title} | {' | '.join(_text(cell, '(paper: {})') for cell in row)} |" for title, row in rows]
    return "\n".join([f"# {plan.experiment.title}", "", *lines, "", f"{_caption(cells)}.", ""])


def to_latex(plan: Plan, cells: Sequence[Cell]) -> str:
    """Return the table in LaTeX, for the package booktabs."""

    def escaped(text: str) -> str:
        return text.replace("±", r"$\pm$").replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$").replace("–", "--")

    columns, rows = grid(plan, cells)
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
    lines += [f"method & {' & '.join(column.title for column in columns)} \\\\", r"\midrule"]
    for title, row in rows:
        texts = [escaped(_text(cell, r"\textit{{({})}}")) for cell in row]
        lines.append(rf"{title} & {' & '.join(texts)} \\")
    caption = escaped(_caption(cells)).replace("the paper's", "in italics: the paper's")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {caption}", ""])


def to_csv(plan: Plan, cells: Sequence[Cell]) -> str:
    """Return all cells as CSV, as fractions and unrounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV)
    for cell in cells:
        method, column, one = METHODS[cell.method], cell.column, cell.result
        what = [method.title, method.backbone, method.heads, column.task, column.protocol, column.setting]
        numbers = [one["primary"] if one else "", cell.mean, cell.std, cell.difference, *(cell.printed or ("", ""))]
        writer.writerow([*what, *numbers, cell.reason, one["file"] if one else ""])
    return file.getvalue()


def show(plan: Plan, cells: Sequence[Cell]) -> None:
    """Print the table."""

    def text(cell: Cell | None) -> Text:
        if cell is None:
            return Text("")
        shown = Text(_text(cell, ""))
        return shown.append(f"\n{cell.paper}", "dim") if cell.paper else shown

    columns, rows = grid(plan, cells)
    table = RichTable("", title=plan.experiment.title, title_justify="left", caption=_caption(cells))
    for column in columns:
        table.add_column(column.title, justify="right")
    for title, row in rows:
        table.add_row(title, *map(text, row))
    Console(width=160).print(table)


def write(plan: Plan, output: Path) -> Path:
    """Write tables, figure and page, each atomically, and print the table; return the page's path.

    Args:
        plan: of an experiment, finished or not.
        output: the directory; files of an earlier report in it are replaced.
    """
    cells = read(plan)
    artifact.make_directory(output)
    texts = {"table.md": to_markdown, "table.tex": to_latex, "table.csv": to_csv}
    for name, make in texts.items():
        artifact.write_text(output / name, make(plan, cells))
    pictures = []
    figure = study_figures.draw(plan.experiment, cells)
    if figure is not None:
        study_figures.save(figure, output, "figure")
        pictures.append((plan.experiment.title, _encoded((output / "figure.png").read_bytes())))
    columns, rows = grid(plan, cells)
    page = output / "index.html"
    text = templates.render(
        "study.html.j2",
        title=plan.experiment.title,
        caption=_caption(cells),
        columns=[column.title for column in columns],
        rows=rows,
        pictures=pictures,
        empty=[cell for cell in cells if cell.result is None],
        measured=[cell for cell in cells if cell.result is not None],
        settings={"pre-training": plan.settings.pretraining, "evaluation": plan.settings.evaluation},
        commands=[command(step).replace(f"{plan.workdir}/", "") for step in plan.steps],
        heat_maps=[(_title(cell), _encoded(_png(sensitivity.draw(cell.result)))) for cell in cells if cell.result],
        configs=_configs(cells),
        training=_training(plan),
        labelers=_labelers(plan),
        maps=_maps(plan),
        methods=METHODS,
    )
    artifact.write_text(page, text)
    show(plan, cells)
    print(f"written: {page}, table.md, table.tex and table.csv{', figure.svg and figure.png' if figure else ''}")
    return page


def _text(cell: Cell | None, paper: str) -> str:
    """Return the value, its difference, and the paper's value in the format `paper`; "" for a cell that is none."""
    if cell is None:
        return ""
    return " ".join(filter(None, [cell.ours, cell.change, paper.format(cell.paper) if cell.paper else ""]))


def _caption(cells: Sequence[Cell]) -> str:
    paper = ", beside it the paper's printed numbers" if any(cell.printed for cell in cells) else ""
    return f"{CAPTION}{paper}"


def _title(cell: Cell) -> str:
    return f"{METHODS[cell.method].name}: {cell.column.title}"


def _configs(cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """Return the config of each protocol as text by key; the values of keys that differ between cells, with commas."""
    values: dict[str, dict[str, dict[str, None]]] = {}
    for cell in cells:
        for key, value in cell.result["config"].items() if cell.result else ():
            values.setdefault(cell.column.protocol, {}).setdefault(key, {})[runs.setting(value)] = None
    return {protocol: {key: ", ".join(texts) for key, texts in sorted(of.items())} for protocol, of in values.items()}


def _trained(plan: Plan) -> list[str]:
    """Return the VisE methods that were trained below the workdir."""
    return [name for name in plan.experiment.methods if (plan.run(name) / "metrics.jsonl").is_file()]


def _training(plan: Plan) -> list[tuple[str, str]]:
    """Return title and picture of the training curves."""
    every = [plan.run(name) for name in _trained(plan)]
    return [(name, _encoded(content)) for name, content in curves.draw(runs.read(every)).items()] if every else []


def _labelers(plan: Plan) -> list[dict[str, Any]]:
    """Return the largest clusters of each pair of labeler and shards, and their figures."""
    pairs = dict.fromkeys((plan.labeler(name), plan.shards(name)) for name in _trained(plan))
    found = []
    for directory, shards in pairs:
        summary = clusters.summarize(*clusters.read(directory, shards))
        found.append(
            {
                "name": shards.name,
                "fingerprint": summary["labeler"],
                "comments": summary["comments"][:_MOST_CLUSTERS],
                "pictures": [(name, _encoded(content)) for name, content in figures.draw(summary).items()],
            }
        )
    return found


def _maps(plan: Plan) -> list[tuple[str, str]]:
    """Return the first class activation maps of Figure 7."""
    paths = sorted(plan.maps.glob("*.png")) if plan.experiment.kind == "maps" else []
    return [(path.stem, _encoded(path.read_bytes())) for path in paths[:_MOST_MAPS]]


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
