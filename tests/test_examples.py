"""The notebook was executed to its end, and its commands are those of the scripts."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_executed_and_compile(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not any(output["output_type"] == "error" for output in cell["outputs"])
        if not source(cell).startswith("%%bash"):
            ast.parse(source(cell))
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    # No path of a machine.
    assert not re.search(r"/home/|/root/|/tmp/|/work/", path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_commands_of_notebooks_name_flags_that_there_are(path):
    cells = [source(cell) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    commands = re.findall(r"^\.venv/bin/python (scripts/\w+\.py)(.*)$", "\n".join(cells), re.M)
    assert len(commands) >= 5
    for script, words in commands:
        text = (ROOT / script).read_text() + (ROOT / "vise_jax" / "cli.py").read_text()
        for flag in re.findall(r"--([a-z_-]+)(?=[ =]|$)", words):
            assert f'"{flag}"' in text, flag
