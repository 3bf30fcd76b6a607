"""What the training command says to mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--config", "configs/demo.py", "--config.training.stepz=3", "--workdir", "w"], 2, "no key stepz"),
        (["--config", "configs/demo.py", "--config.training.steps=many", "--workdir", "w"], 2, "many"),
        (["--config", "configs/none.py", "--workdir", "w"], 2, "configs/none.py"),
        (["--config", "configs/demo.py", "--wrokdir", "w"], 2, "wrokdir"),
        (["--config", "configs/demo.py"], 1, "--workdir is missing"),
        (["fit", "--config", "configs/demo.py", "--workdir", "w"], 1, "'fit' is not a flag"),
    ],
)
def test_a_mistake_gets_one_sentence(words, status, sentence):
    result = run(*words)
    assert result.returncode == status
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (ROOT / "w").exists()


def test_help_has_an_example():
    result = run("--help")
    assert result.returncode == 0
    assert "python scripts/train.py --config configs/demo.py" in result.stdout
    assert "--workdir" in result.stdout
    assert "--config" in result.stdout
