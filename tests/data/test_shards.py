"""Shards: equal examples give equal bytes, and a directory that is not whole is refused in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vise_jax import artifact
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


def test_equal_examples_give_equal_bytes(tmp_path: Path) -> None:
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
    first = shards.write_shard(map(example, range(7)), tmp_path / "a" / "p.tfrecord")
    assert first["name"] == "p.tfrecord"
    assert first["examples"] == 7
    assert first["sha256"] == artifact.file_sha256(tmp_path / "a" / "p.tfrecord")
    assert first == shards.write_shard(map(example, range(7)), tmp_path / "b" / "p.tfrecord")
    assert first["bytes"] == (tmp_path / "a" / "p.tfrecord").stat().st_size


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    def examples() -> Any:
        yield example(1)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        shards.write_shard(examples(), tmp_path / "p.tfrecord")
    assert not list(tmp_path.iterdir())


def test_copied_records_are_those_that_are_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "a.tfrecord", tmp_path / "b.tfrecord"
    shards.write_shard(map(example, range(4)), first)
    shards.write_shard(map(example, range(4, 6)), second)
    kept = [(first, [True, False, False, True]), (second, [False, True])]
    copied = shards.copy_records(kept, tmp_path / "c.tfrecord")
    assert copied == {**shards.write_shard(map(example, (0, 3, 5)), tmp_path / "d.tfrecord"), "name": "c.tfrecord"}
    for damaged in ([(first, [True])], [(second, [True] * 3)]):
        with pytest.raises(UserError, match="is damaged"):
            shards.copy_records(damaged, tmp_path / "e.tfrecord")
    first.write_bytes(first.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"a\.tfrecord is damaged"):
        shards.copy_records([(first, [True] * 4)], tmp_path / "e.tfrecord")
    assert not (tmp_path / "e.tfrecord").exists()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    written = [
        shards.write_shard(map(example, numbers), tmp_path / f"p-{shard:05d}.tfrecord")
        for shard, numbers in enumerate([(0, 1), (2, 3)])
    ]
    manifest = {
        "format_version": shards.FORMAT_VERSION,
        "posts": 5,
        "examples": 4,
        "classes": {"comments": 3, "reactions": 4},
        "max_comment_labels": 2,
        "shards": written,
        "validation": {"examples": 0, "shards": []},
        "labeler": "x",
        "fingerprint": "y",
    }
    artifact.write_json(tmp_path / "manifest.json", manifest)
    return tmp_path


def change(directory: Path, **changes: Any) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    artifact.write_json(directory / "manifest.json", manifest | changes)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda directory: (directory / "manifest.json").unlink(), r"no manifest\.json"),
        (lambda directory: (directory / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda directory: change(directory, format_version=99), "version 99"),
        (lambda directory: change(directory, shards=[{"name": "p"}]), "no valid 'shards.0.examples'"),
        (lambda directory: change(directory, shards=None), "no valid 'shards'"),
        (lambda directory: change(directory, examples=5), "does not hold together"),
        (lambda directory: change(directory, classes={"comments": 3}), "does not hold together"),
        (lambda directory: change(directory, max_comment_labels=2**64), "does not hold together"),
        (lambda directory: change(directory, classes={"comments": 2**64, "reactions": 3}), "classes.comments"),
        (
            lambda directory: change(directory, shards=[{"name": "../x", "bytes": 1, "examples": 4, "sha256": ""}]),
            "not hold together",
        ),
        (lambda directory: (directory / "p-00001.tfrecord").unlink(), r"p-00001\.tfrecord is missing"),
        (lambda directory: (directory / "p-00001.tfrecord").write_bytes(b"short"), "has 5 bytes instead of"),
    ],
)
def test_a_directory_that_is_not_complete_is_refused(
    directory: Path, damage: Callable[[Path], Any], words: str
) -> None:
    assert shards.read_manifest(directory)["examples"] == 4
    damage(directory)
    with pytest.raises(UserError, match=words):
        shards.read_manifest(directory)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none does not exist"):
        shards.read_manifest(tmp_path / "none")


def test_a_shard_that_the_manifest_does_not_name_is_refused(directory: Path) -> None:
    shards.write_shard(map(example, (7, 8)), directory / "q-00000.tfrecord")
    with pytest.raises(UserError, match=r"q-00000\.tfrecord, which its manifest does not name: shards of two"):
        shards.read_manifest(directory, damaged=True)


def test_the_shard_of_another_labeler_is_distinguished_from_a_damaged_one(directory: Path) -> None:
    path = directory / "p-00001.tfrecord"
    whole = path.read_bytes()
    # The same posts and images, as large as before, but another label.
    shards.write_shard([{**example(2), "reactions/label": 3}, example(3)], path)
    assert path.stat().st_size == len(whole)
    for damaged in (False, True):
        with pytest.raises(UserError, match=r"p-00001\.tfrecord holds other examples"):
            shards.read_manifest(directory, damaged=damaged)
    for content in (whole[:-1], whole[:50] + b"x" + whole[51:]):
        path.write_bytes(content)
        assert shards.read_manifest(directory, damaged=True)["examples"] == 4
        with pytest.raises(UserError, match=r"p-00001\.tfrecord (is damaged|has \d+ bytes)"):
            shards.read_manifest(directory)
