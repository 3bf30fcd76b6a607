"""scripts/predict.py as people run it, and what it says to mistakes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def predict(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "predict.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


@pytest.fixture(scope="module")
def made(trained, labeler, tmp_path_factory) -> Path:
    """A directory with an encoder, its labeler, another labeler, and images, one of which is broken."""
    directory = tmp_path_factory.mktemp("made")
    trained.save(directory / "encoder")
    labeler.save(directory / "labeler")
    dataclasses.replace(labeler, salt_check="other").save(directory / "other")
    (directory / "images").mkdir()
    (directory / "nothing").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (80 * number, 0, 0)).save(directory / "images" / f"{number}.png")
    (directory / "images" / "3.jpg").write_bytes(b"no image")
    return directory


@pytest.mark.slow
def test_lines_and_a_page(made: Path, tmp_path: Path) -> None:
    given = ("--encoder", made / "encoder", "--labeler", made / "labeler", "--images", made / "images")
    result = predict(*given, "--output", tmp_path / "p.jsonl", "--top=1", "--on_page=2")
    assert result.returncode == 0, result.stderr
    assert "4 images, of which 1 can't be read" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["image"] for line in lines] == ["0.png", "1.png", "2.png", "3.jpg"]
    assert [len(line["comments"]) for line in lines[:3]] == [1, 1, 1]
    assert "no image that can be read" in lines[3]["error"]
    assert (tmp_path / "p.html").read_text(encoding="utf-8").count("data:image/jpeg") == 2
    again = predict(*given, "--output", tmp_path / "p.jsonl", "--top=1", "--on_page=2")
    assert (again.returncode, again.stdout) == (0, result.stdout)
    assert "features:" not in again.stderr


@pytest.mark.slow
def test_mistakes_get_one_sentence_and_write_nothing(made: Path, tmp_path: Path) -> None:
    encoder, images = ("--encoder", made / "encoder"), ("--images", made / "images")
    output = ("--output", tmp_path / "p.jsonl")
    cases = {
        "--labeler is missing": (*encoder, *images, *output),
        "was not trained on the labels of this labeler": (*encoder, "--labeler", made / "other", *images, *output),
        "holds no images": (*encoder, "--labeler", made / "labeler", "--images", made / "nothing", *output),
    }
    for words, given in cases.items():
        result = predict(*given)
        assert result.returncode == 1, (words, result.stderr)
        assert words in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stdout == ""
    assert not list(tmp_path.iterdir())
