"""scripts/neighbors.py as people run it, on features that extract.py wrote, and its errors."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vise_jax.data import datasets
from vise_jax.inference import extract

ROOT = Path(__file__).parents[2]


def neighbors(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "neighbors.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


@pytest.mark.slow
def test_a_table_a_page_and_mistakes(trained, tmp_path: Path) -> None:
    trained.save(tmp_path / "encoder")
    (tmp_path / "images").mkdir()
    for number in range(5):
        Image.effect_noise((20, 20), 20 * number).save(tmp_path / "images" / f"{number}.png")
    images, path = datasets.open_unlabeled(tmp_path / "images"), tmp_path / "f.parquet"
    settings = {"batch_size": 4, "threads": 1, "max_image_pixels": 10**6}
    extract.export(trained, images, trained.preprocessing, path, **settings)
    given = ("--encoder", tmp_path / "encoder", "--features", path, "--query", tmp_path / "images" / "3.png", "--k=2")
    page = tmp_path / "page.html"
    result = neighbors(*given, "--images", tmp_path / "images", "--output", page)
    assert result.returncode == 0, result.stderr
    rows = [line.split("│")[1:4] for line in result.stdout.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in rows[0]] == ["1", "1.0000", "3.png"]
    assert len(rows) == 2
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 3
    cases = {
        "--images and --output go together": (*given, "--output", page),
        "does not exist: name a file that extract.py wrote": (*given[:3], tmp_path / "none.npz", *given[4:]),
    }
    for words, wrong in cases.items():
        result = neighbors(*wrong)
        assert result.returncode == 1, (words, result.stderr)
        assert words in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
