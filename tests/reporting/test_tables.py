import csv
import re

import numpy as np
import pytest

from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation import predictions
from vise_jax.evaluation.outcomes import Outcome
from vise_jax.evaluation.splits import Split
from vise_jax.reporting import tables


def measurement(encoder="ours", data="cifar10", value=0.5, std=None, **changes):
    one = {
        "task": "folder",
        "protocol": "linear",
        "primary": "accuracy",
        "metrics": {
            "accuracy": {"mean": value, "std": std, "values": [value]},
            "majority_accuracy": {"mean": 0.1, "std": None, "values": [0.1]},
        },
        "splits": [{"seed": 0}],
        "encoder": {"name": encoder, "fingerprint": f"{encoder}-weights", "preprocessing": {"crop": 224}},
        "data": {"name": data, "fingerprint": f"{data}-bytes"},
        "file": f"{encoder}-{data}.json",
    }
    for key, change in changes.items():
        part, _, inner = key.partition("__")
        if inner:
            one[part][inner] = change
        else:
            one[part] = change
    return one


def test_rows_are_encoders_and_columns_data():
    table = tables.build(
        [
            measurement("ours", "cifar10", 0.7, 0.0123),
            measurement("Random", "cifar10", 0.25),
            measurement("ours", "birds", 0.1),
        ]
    )
    assert table.columns == ("encoder", "birds linear", "cifar10 linear")
    assert table.rows == (
        ("ours", "10.00", "70.00 ± 1.23"),
        ("Random", "–", "25.00"),
        ("majority class", "10.00", "10.00"),
    )
    # One value has nothing to be the best of.
    assert table.best == {(0, 2)}


def test_equals_are_all_the_best():
    table = tables.build([measurement("a", value=0.5), measurement("b", value=0.5), measurement("c", value=0.4)])
    assert table.best == {(0, 1), (1, 1)}


def test_equal_names_get_what_tells_them_apart():
    table = tables.build(
        [
            measurement("run", encoder__fingerprint="11111111-"),
            measurement("run", encoder__fingerprint="22222222-"),
            measurement("other", data__fingerprint="33333333-"),
            measurement("sized"),
            measurement("sized", encoder__preprocessing={"crop": 64}),
        ]
    )
    names = [row[0] for row in table.rows]
    assert names == [
        "other",
        "run (11111111)",
        "run (22222222)",
        "sized (224 px)",
        "sized (64 px)",
        "majority class",
    ]
    assert table.columns == ("encoder", "cifar10 linear (33333333)", "cifar10 linear (cifar10-)")


def test_two_results_for_one_cell_are_named():
    with pytest.raises(UserError, match=r"one\.json and two\.json measure the same"):
        tables.build([measurement(file="one.json"), measurement(file="two.json", value=0.6)])


def test_files(tmp_path):
    many = [measurement(f"encoder {n:02d}", data, n / 100) for n in range(50) for data in ("a|b", "c")]
    tables.write(many, tmp_path / "report")
    lines = (tmp_path / "report" / "table.md").read_text().splitlines()
    assert lines[0] == "| encoder | a&#124;b linear | c linear |"
    assert lines[51] == "| encoder 49 | **49.00** | **49.00** |"
    assert {line.count("|") for line in lines[:53]} == {4}
    with open(tmp_path / "report" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    assert rows[6]["encoder"] == "encoder 01"
    assert float(rows[6]["mean"]) == 0.01
    assert (rows[6]["data"], rows[6]["metric"], rows[6]["primary"]) == ("c", "accuracy", "True")
    assert (rows[7]["metric"], rows[7]["primary"], float(rows[7]["mean"])) == ("majority_accuracy", "False", 0.1)


def test_names_of_strangers_are_no_formulas_and_no_markup(tmp_path):
    tables.write([measurement('=HYPERLINK("x")\n<b>', "@a")], tmp_path)
    with open(tmp_path / "table.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["encoder"], row["data"]) == ('\'=HYPERLINK("x")\n<b>', "'@a")
    assert '| =HYPERLINK("x") &lt;b&gt; |' in (tmp_path / "table.md").read_text()


def test_what_is_printed_is_not_cut(capsys):
    names = [f"a data set with a long name, number {n}" for n in range(8)]
    tables.show(tables.build([measurement("[bold]ours[/bold]", name, 0.1234, 0.01) for name in names]))
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert "[bold]ours[/bold]" in printed
    assert printed.count("12.34 ± 1.00") == 8


def test_metrics_are_shown_with_intervals_and_fits(capsys):
    metric = {"mean": 0.5, "std": 0.02, "values": [0.48, 0.52], "interval": [0.45, 0.55]}
    one = measurement(
        metrics={"accuracy": metric, "majority_accuracy": {"mean": 0.1, "std": None, "values": [0.1]}},
        splits=[{"seed": 0, "sweep": [{"details": {"converged": converged}} for converged in (True, False)]}],
        selection={"metric": "accuracy", "grid": {}, "selected": [{}]},
        data__truncated_texts=7,
    )
    tables.show_metrics(one)
    shown = capsys.readouterr().out
    assert re.search(r"accuracy +│ +50\.00 +│ +2\.00 +│ +45\.00 to 55\.00", shown)
    assert re.search(r"majority_accuracy +│ +10\.00 +│ +– +│ +–", shown)
    assert "1 of 2 fits converged: --config.linear.iterations allows more" in shown
    assert "7 texts have more tokens" in shown


@pytest.mark.parametrize(
    ("validations", "expected"),
    [
        # The largest value is best in both splits; in one of them only; an inner one is; none is better than another.
        ([[0.1, 0.2, 0.3], [0.2, 0.1, 0.3]], ["learning_rate 1 "]),
        ([[0.1, 0.2, 0.3], [0.2, 0.3, 0.1]], []),
        ([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], []),
        ([[0.1, 0.3, 0.2], [0.1, 0.3, 0.2]], []),
        ([[0.3, 0.3, 0.3], [0.3, 0.3, 0.3]], []),
    ],
)
def test_a_selection_at_the_edge_of_the_grid_is_noted(validations, expected, capsys):
    grid = [0.01, 0.1, 1.0]
    sweeps = [
        [
            {"settings": {"learning_rate": rate}, "validation": validation, "details": {}}
            for rate, validation in zip(grid, of_split, strict=True)
        ]
        for of_split in validations
    ]
    selected = [max(sweep, key=lambda row: row["validation"])["settings"] for sweep in sweeps]
    one = measurement(
        splits=[{"seed": seed, "sweep": sweep} for seed, sweep in enumerate(sweeps)],
        selection={"metric": "accuracy", "grid": {"learning_rate": grid}, "selected": selected},
        data__truncated_texts=0,
    )
    tables.show_metrics(one)
    assert re.findall(r"the selected (.*)is at the edge of its grid", capsys.readouterr().out) == expected


def test_differences_are_those_of_the_predictions(tmp_path, capsys):
    labels = np.arange(100, dtype=np.int32) % 2
    names = tuple(f"{number:03d}" for number in range(100))
    dataset = Dataset("d", names, labels, ("a", "b"), None, None, None, "", ())
    split = Split(0, np.arange(5), np.arange(5), np.arange(100))
    results = []
    for encoder, correct in (("ours", 90), ("theirs", 60), ("elsewhere", 50)):
        predicted = np.where(np.arange(100) < correct, labels, 1 - labels)
        one = measurement(encoder, "birds" if encoder == "elsewhere" else "cifar10", selection={"metric": "accuracy"})
        scores = np.eye(2, dtype=np.float32)[predicted]
        predictions.write(predictions.path_of(tmp_path / one["file"]), [Outcome(split, scores, [], 0)], dataset)
        results.append(one)
    tables.show_comparisons(tmp_path, results, "theirs")
    shown = capsys.readouterr().out
    assert re.search(r"ours +│ +cifar10 linear +│ +accuracy +│ +\+30\.00 +│ +\+2\d\.\d\d to \+3\d\.", shown)
    assert "elsewhere" not in shown
    with pytest.raises(UserError, match="No result is of an encoder named 'absent'"):
        tables.show_comparisons(tmp_path, results, "absent")
