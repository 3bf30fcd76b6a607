"""The page, tables and figure of an experiment."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vise_jax.errors import UserError
from vise_jax.evaluation import results
from vise_jax.reporting import study
from vise_jax.reproduction.paper import EXPERIMENTS, METHODS
from vise_jax.reproduction.plan import Plan, Settings


def fill(make_result: Callable[..., dict], plan: Plan, cells: int | None = None) -> dict[str, float]:
    """Write results of the first cells; return their means by file."""
    values = {}
    for number, (method, column) in enumerate(plan.experiment.cells()[:cells]):
        value, std = 0.3123 + 0.0457 * number % 0.6, (0.0213 if column.task == "unbiased_emotion" else None)
        metric = "roc_auc" if column.task == "hateful_memes" else "accuracy"
        directory = plan.results(method, column)
        results.write(directory / "one.json", make_result(value, std, metric))
        values[f"{directory.name}/one.json"] = value
    return values


def rows_of_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_on_the_page_is_that_of_its_result(tmp_path, capsys, make_result):
    plan = Plan(EXPERIMENTS["table3"], tmp_path)
    values = fill(make_result, plan)
    page = study.write(plan, tmp_path / "table3").read_text()
    shown = re.findall(r'<span data-file="([^"]+)">([^<]+)</span>', page)
    assert len(shown) == 18
    for file, text in shown:
        one = json.loads((tmp_path / "results" / file).read_text())["metrics"]
        (summary,) = one.values()
        std = "" if summary["std"] is None else f" ± {100 * summary['std']:.2f}"
        assert text == f"{100 * summary['mean']:.2f}{std}"
        assert summary["mean"] == values[file]
    # All the paper's numbers are labeled as its, with their deviations.
    papers = re.findall(r"<small>paper: ([^<]+)</small>", page)
    assert len(papers) == 18
    assert "45.74 ± 2.15" in papers
    assert "Not the paper's settings" not in page
    assert "<code>linear.iterations</code></td><td>500</td>" in page
    # No other file is needed, and no script runs.
    assert not re.search(r"<script|src=\"(?!data:)|href=\"(?!#)", page)
    assert "64.30" in capsys.readouterr().out


def test_differences_are_to_the_reference_row(tmp_path, make_result):
    plan = Plan(EXPERIMENTS["table3"], tmp_path)
    fill(make_result, plan)
    study.write(plan, tmp_path / "out")
    rows = rows_of_csv(tmp_path / "out" / "table.csv")
    both = {row["task"] + row["protocol"]: float(row["mean"]) for row in rows if not row["heads"]}
    for row in rows:
        if row["heads"]:
            expected = float(row["mean"]) - both[row["task"] + row["protocol"]]
            assert float(row["difference"]) == pytest.approx(expected)
        else:
            assert row["difference"] == ""
    markdown = (tmp_path / "out" / "table.md").read_text()
    row = next(row for row in rows if row["heads"] == "comments alone" and row["protocol"] == "linear")
    arrow = "↑" if float(row["difference"]) > 0 else "↓"
    change = f"{arrow} {100 * abs(float(row['difference'])):.2f}"
    assert f"{100 * float(row['mean']):.2f} ± 2.13 {change} (paper: 49.15 ± 1.30)" in markdown
    latex = (tmp_path / "out" / "table.tex").read_text()
    assert r"\textit{(49.15 $\pm$ 1.30)}" in latex
    assert latex.count(r"\\") == 4
    assert not re.search("[±↑↓–]", latex.split("%")[0])


def test_empty_cells_say_why(tmp_path, make_result):
    plan = Plan(EXPERIMENTS["table2"], tmp_path)
    fill(make_result, plan, 1)
    page = study.write(plan, tmp_path / "out").read_text()
    assert "17 of 18 cells are empty" in page
    assert "needs weights/ig_940m-resnext101_32x16d.*; data/cub" in page
    rows = rows_of_csv(tmp_path / "out" / "table.csv")
    assert [bool(row["mean"]) for row in rows] == [True] + [False] * 17
    assert all(row["paper_mean"] for row in rows)
    assert all(row["reason"] for row in rows[1:])


def test_other_settings_are_named(tmp_path):
    plan = Plan(EXPERIMENTS["table2"], tmp_path, Settings(evaluation=("finetune.epochs=1",)))
    page = study.write(plan, tmp_path / "out").read_text()
    assert "Not the paper's settings" in page
    assert "finetune.epochs=1" in page
    assert not (tmp_path / "out" / "figure.png").exists()


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("fig3", "fig4")), "fig5", "fig6"]
)
def test_figures_of_all_cells_and_of_few(name, tmp_path, make_result):
    plan = Plan(EXPERIMENTS[name], tmp_path)
    fill(make_result, plan, 3)
    study.write(plan, tmp_path / "out")
    few = (tmp_path / "out" / "figure.svg").read_bytes()
    study.write(plan, tmp_path / "out")
    assert (tmp_path / "out" / "figure.png").exists()
    fill(make_result, plan)
    page = study.write(plan, tmp_path / "out").read_text()
    assert (tmp_path / "out" / "figure.svg").read_bytes() != few
    # These figures print no numbers in the paper, but for the text encoder alone.
    assert page.count("<small>paper:") == (2 if name == "fig6" else 0)
    for method in plan.experiment.methods:
        assert METHODS[method].title in page


def test_two_results_of_one_cell_are_refused(tmp_path, make_result):
    plan = Plan(EXPERIMENTS["table2"], tmp_path)
    fill(make_result, plan, 1)
    (directory,) = (tmp_path / "results").iterdir()
    results.write(directory / "two.json", make_result(0.1))
    with pytest.raises(UserError, match="holds 2 results of one cell"):
        study.read(plan)
