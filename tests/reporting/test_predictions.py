"""The lines and the page of predictions: every image once, hostile names as text, resumed, nothing replaced."""

import base64
import html.parser
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vise_jax.data import datasets
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.inference import extract, feature_files
from vise_jax.inference import predict as evaluated
from vise_jax.reporting import predictions

SETTINGS = {"top": 2, "on_page": 3, "batch_size": 4, "threads": 1, "max_image_pixels": 10**6}
HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Six images, of which the second is broken, and one has a hostile name."""
    directory = tmp_path / "photos"
    directory.mkdir()
    for name in ("a.png", "c.png", "d.png", "e.png", HOSTILE):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (700, 800, 3), np.uint8)
        Image.fromarray(pixels).save(directory / name)
    (directory / "b.png").write_bytes(b"no image")
    return directory


class Page(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[bytes] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            start, _, content = (dict(attrs)["src"] or "").partition(",")
            assert start == "data:image/jpeg;base64"
            self.pictures.append(base64.b64decode(content))

    def handle_data(self, data: str) -> None:
        self.text += data


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_for_each_image_and_a_page_of_the_first(trained, labeler, directory, tmp_path):
    images, output = datasets.open_unlabeled(directory), tmp_path / "new" / "p.jsonl"
    page, count, rejected = predictions.write(trained, labeler, images, output, **SETTINGS)
    assert (page, count, rejected) == (tmp_path / "new" / "p.html", 6, 1)
    found = lines(output)
    assert [line["image"] for line in found] == [HOSTILE, "a.png", "b.png", "c.png", "d.png", "e.png"]
    assert found[2] == {
        "image": "b.png",
        "error": "The image b.png in photos is no image that can be read: replace it or drop it.",
    }
    extract.export(
        trained, images, trained.preprocessing, tmp_path / "f.npz", batch_size=4, threads=1, max_image_pixels=10**6
    )
    ((names, rows),) = feature_files.read(tmp_path / "f.npz")
    expected = evaluated.predict(trained, labeler, rows, top=2)
    assert [line for line in found if "error" not in line] == [
        {"image": name, **prediction} for name, prediction in zip(names, expected, strict=True)
    ]
    shown = Page(page.read_text(encoding="utf-8"))
    assert len(shown.pictures) == 2
    for picture in shown.pictures:
        with Image.open(io.BytesIO(picture)) as image:
            assert (image.format, image.size) == ("JPEG", (320, 280))
    assert HOSTILE in shown.text
    assert "b.png in photos is no image" in shown.text
    assert "here are the first 3" in " ".join(shown.text.split())
    assert "<b>CC0</b>" in shown.text
    assert not {"script", "b"} & set(shown.tags)
    assert "c.png" not in shown.text


class Stopped(Exception):
    pass


def test_a_stop_loses_no_part_and_what_is_there_is_not_computed_again(
    trained, labeler, directory, tmp_path, monkeypatch
):
    images, output = datasets.open_unlabeled(directory), tmp_path / "p.jsonl"
    monkeypatch.setattr(extract, "_PART", 2)
    settings = SETTINGS | {"batch_size": 2}
    whole, _, _ = predictions.write(trained, labeler, images, tmp_path / "whole" / "p.jsonl", **settings)
    run, asked = Encoder.features, []

    def stop(encoder: Encoder, pixels: np.ndarray, batch_size: int) -> np.ndarray:
        asked.append(len(pixels))
        if len(asked) == 2:
            raise Stopped
        return run(encoder, pixels, batch_size)

    monkeypatch.setattr(Encoder, "features", stop)
    with pytest.raises(Stopped):
        predictions.write(trained, labeler, images, output, **settings)
    assert not output.exists()
    page, _, _ = predictions.write(trained, labeler, images, output, **settings)
    assert asked == [2, 1, 1, 2]
    assert output.read_bytes() == (tmp_path / "whole" / "p.jsonl").read_bytes()
    assert page.read_bytes() == whole.read_bytes()
    assert predictions.write(trained, labeler, images, output, **settings) == (page, 6, 1)
    output.unlink()  # as if it had been killed after the page
    predictions.write(trained, labeler, images, output, **settings)
    assert len(asked) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.html", "p.jsonl", "photos", "whole"]


def test_nothing_else_is_replaced(trained, labeler, directory, tmp_path):
    images, output = datasets.open_unlabeled(directory), tmp_path / "p.jsonl"
    predictions.write(trained, labeler, images, output, **SETTINGS)
    before = output.read_bytes()
    with pytest.raises(UserError, match=r"p\.jsonl already exists and holds something else"):
        predictions.write(trained, labeler, images, output, **SETTINGS | {"top": 1})
    (tmp_path / "q.html").write_text("mine")
    with pytest.raises(UserError, match=r"q\.html already exists and holds something else"):
        predictions.write(trained, labeler, images, tmp_path / "q.jsonl", **SETTINGS)
    with pytest.raises(UserError, match=r"ends in \.html: name a file that ends in \.jsonl"):
        predictions.write(trained, labeler, images, tmp_path / "q.html", **SETTINGS)
    assert output.read_bytes() == before
    assert (tmp_path / "q.html").read_text() == "mine"
