"""Shards: equal examples give equal bytes, and a folder that is not whole is refused in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vise_jax import artefact
from vise_jax.data import shards
from vise_jax.errors import UserError


def example(number: int) -> dict[str, Any]:
    return {
        "image/encoded": bytes([number]) * 100,
        "post_id": b"%032d" % number,
        "comments/labels": list(range(number % 3)),
        "comments/weights": [1.0] * (number % 3),
        "reactions/label": number - 1,
    }


def test_shards_are_closed_when_full_and_the_same_each_time(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = shards.write_shards(map(example, range(7)), tmp_path / "a", "p", 300)
    assert [(shard["name"], shard["examples"]) for shard in first] == [
        ("p-00000.tfrecord", 3),
        ("p-00001.tfrecord", 3),
        ("p-00002.tfrecord", 1),
    ]
    assert first == shards.write_shards(map(example, range(7)), tmp_path / "b", "p", 300)
    assert first[0]["sha256"] == artefact.file_sha256(tmp_path / "a" / "p-00000.tfrecord")
    assert shards.write_shards([], tmp_path / "a", "q", 300) == []


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    def examples() -> Any:
        yield example(1)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        shards.write_shards(examples(), tmp_path, "p", 300)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written = shards.write_shards(map(example, range(4)), tmp_path, "p", 200)
    manifest = {
        "format_version": shards.FORMAT_VERSION,
        "posts": 5,
        "examples": 4,
        "classes": {"comments": 3, "reactions": 4},
        "max_comment_labels": 2,
        "shards": written,
        "labeler": "x",
        "fingerprint": "y",
    }
    artefact.write_json(tmp_path / "manifest.json", manifest)
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    artefact.write_json(folder / "manifest.json", manifest | changes)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), r"no manifest\.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda folder: change(folder, format_version=99), "version 99"),
        (lambda folder: change(folder, shards=[{"name": "p"}]), "lacks what shards need"),
        (lambda folder: change(folder, shards=None), "lacks what shards need"),
        (lambda folder: change(folder, examples=5), "does not hold together"),
        (lambda folder: change(folder, classes={"comments": 3}), "does not hold together"),
        (lambda folder: change(folder, shards=[{"name": "../x", "bytes": 1, "examples": 4}]), "not hold together"),
        (lambda folder: (folder / "p-00001.tfrecord").unlink(), r"p-00001\.tfrecord is missing"),
        (lambda folder: (folder / "p-00001.tfrecord").write_bytes(b"short"), "has 5 bytes instead of"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, damage: Callable[[Path], Any], words: str) -> None:
    assert shards.read_manifest(folder)["examples"] == 4
    damage(folder)
    with pytest.raises(UserError, match=words):
        shards.read_manifest(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none does not exist"):
        shards.read_manifest(tmp_path / "none")
