"""The commands of an experiment of the paper on miniature data, killed and resumed."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vise_jax import models
from vise_jax.encoder import Encoder
from vise_jax.preprocessing import Preprocessing

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "shared"))
import miniatures  # noqa: E402

CHANGES = ("finetune.epochs=1", "finetune.learning_rates=(0.1,)", "finetune.weight_decays=(1e-4,)", "splits=2")
WORDS = ["--experiment", "table3", *(word for change in CHANGES for word in ("--evaluation", change))]


def reproduce(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/reproduce.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def workdir(directory: Path) -> Path:
    """Make a workdir with one dataset, and an encoder with random weights for each method."""
    miniatures.unbiased_emotion(directory / "data" / "unbiased_emotion")
    architecture = {"name": "resnet18", "width": 4}
    for seed, method in enumerate(("vise_1m-resnet50", "vise_1m-resnet50-comments", "vise_1m-resnet50-reactions")):
        Encoder.from_model(
            models.build(**architecture, seed=seed),
            architecture=architecture,
            preprocessing=Preprocessing.imagenet(32),
            provenance={"random": {"seed": seed}},
            license="CC0",
        ).save(directory / "encoders" / method)
    return directory


def values(directory: Path) -> list[tuple[str, ...]]:
    with open(directory / "table3" / "table.csv", newline="") as file:
        return [
            (row["heads"], row["task"], row["protocol"], row["mean"], row["reason"]) for row in csv.DictReader(file)
        ]


@pytest.mark.slow
def test_a_killed_study_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    one, other = workdir(tmp_path / "one"), workdir(tmp_path / "other")
    whole = reproduce(*WORDS, "--workdir", one)
    assert whole.returncode == 0, whole.stderr
    rows = values(one)
    assert [bool(mean) for *_, mean, _ in rows].count(True) == 6
    assert {reason for *_, mean, reason in rows if not mean} == {"needs data/politics", *(
        {"needs data/hateful_memes; weights/text/"}
    )}  # fmt: skip
    assert "table3/index.html" in whole.stdout

    command = [sys.executable, "scripts/reproduce.py", *WORDS, "--workdir", str(other)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(list(other.glob("results/*/*.json"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # The next evaluation had begun, or was about to.
    assert 2 <= len(list(other.glob("results/*/*.json"))) < 6
    again = reproduce(*WORDS, "--workdir", other)
    assert again.returncode == 0, again.stderr
    # The first two were not repeated.
    assert re.findall(r"^\[(\d+) of", again.stdout, re.M)[0] != "1"
    assert values(other) == rows


def test_the_plan_and_mistakes(tmp_path):
    result = reproduce("--experiment", "table2", "--workdir", tmp_path, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("scripts/evaluate.py") == 18
    assert "needs posts/vise_250m or weights/vise_250m-resnet50.*" in re.sub(
        r"\s*│\s*\n│\s*│\s*│\s*│ ", " ", result.stdout
    )
    assert not list(tmp_path.iterdir())
    for words, message in (
        (("--experiment", "table2"), "--workdir is missing"),
        (("--workdir", tmp_path), "--experiment is missing"),
        (("--experiment", "table2", "--workdir", tmp_path / "none"), "is no directory: make it"),
        (
            ("--experiment", "table2", "--workdir", tmp_path, "--evaluation", "splits"),
            "--evaluation=splits is no KEY=VALUE",
        ),
        (("--experiment", "table2", "--workdir", tmp_path, "--images_per_second", "vgg=1"), "is no BACKBONE=NUMBER"),
    ):
        result = reproduce(*words)
        assert result.returncode == 1, message
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
