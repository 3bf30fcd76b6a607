"""scripts/evaluate.py and the table that scripts/report.py makes of its result."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vise_jax import models
from vise_jax.encoder import Encoder
from vise_jax.preprocessing import Preprocessing

SCRIPTS = Path(__file__).parents[2] / "scripts"
ARCHITECTURE = {"name": "resnet18", "width": 8, "stem": "cifar"}


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=SCRIPTS.parent, check=False
    )


def make_encoder(directory: Path) -> Path:
    model = models.build(**ARCHITECTURE)
    preprocessing = Preprocessing.imagenet(16)
    Encoder.from_model(
        model, architecture=ARCHITECTURE, preprocessing=preprocessing, provenance={}, license="none"
    ).save(directory)
    return directory


@pytest.mark.slow
def test_evaluate_and_report(tmp_path):
    encoder, random = make_encoder(tmp_path / "encoder"), np.random.default_rng(0)
    # The images are links into a store, as in a DVC workspace.
    for label, level in {"bright": 200, "dark": 60}.items():
        (tmp_path / "store" / label).mkdir(parents=True)
        for number in range(20):
            noise = random.normal(level, 20, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(tmp_path / "store" / label / f"{number}.png")
    (tmp_path / "pictures").mkdir()
    for label in ("bright", "dark"):
        (tmp_path / "pictures" / label).symlink_to(tmp_path / "store" / label)
    arguments = ["--config.splits=1", "--encoder", encoder, "--data", tmp_path / "pictures", "--output"]
    command = [SCRIPTS / "evaluate.py", "--config", "configs/eval.py:folder,linear", *arguments, tmp_path / "results"]
    refused = run(*command)
    assert refused.returncode == 1
    assert "link_roots" in refused.stderr
    done = run(*command, f"--config.link_roots={tmp_path / 'store'}", "--name", "tiny one")
    assert done.returncode == 0, done.stderr
    assert "100.00" in done.stdout
    assert "tiny one" in done.stdout
    report = run(SCRIPTS / "report.py", "--results", tmp_path / "results", "--output", tmp_path / "report")
    assert report.returncode == 0, report.stderr
    assert "| tiny one | 100.00 |" in (tmp_path / "report" / "table.md").read_text()
    failed = run(SCRIPTS / "evaluate.py", "--config", "configs/eval.py:birds,linear", *arguments, tmp_path)
    assert failed.returncode == 1
    assert "no task 'birds'" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
