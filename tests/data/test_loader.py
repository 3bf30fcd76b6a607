"""Every example of an epoch once, the same order each time, and a resume that picks up anywhere."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vise_jax.data import images, loader, shards
from vise_jax.data.epoch_order import Shuffle
from vise_jax.data.records import CorruptExamples
from vise_jax.preprocessing import Preprocessing

SETTINGS = {
    "shuffle": Shuffle(shards=2, block=2, slots=3, window=4),
    "image_size": 16,
    "crop_area": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "antialias": False,
}


@pytest.fixture
def read(shards_folder, tmp_path):
    """Yield batches of 7 of the 41 examples."""
    manifest = shards.read_manifest(shards_folder)

    def batches(seed: int = 3, **settings):
        corrupt = CorruptExamples(tmp_path / "corrupt_examples.jsonl")
        settings = {"batch_size": 7, "seed": seed, "corrupt": corrupt, **SETTINGS, **settings}
        return loader.batches(shards_folder, manifest, **settings)

    return batches


def ids(batches, count: int) -> list[int]:
    return [int(post_id) for batch in itertools.islice(batches, count) for post_id in batch["post_id"]]


def test_every_example_of_an_epoch_comes_once(read):
    order = ids(read(), 18)  # 126 examples: three epochs of 41 and the start of a fourth
    epochs = [order[start : start + 41] for start in range(0, 123, 41)]
    assert all(sorted(epoch) == list(range(41)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_seed_decides_the_order(read):
    assert ids(read(), 6) == ids(read(threads=1), 6)
    assert ids(read(), 6) != ids(read(seed=4), 6)


@pytest.mark.parametrize("first_step", [1, 5, 6, 13])
def test_a_resume_gives_the_same_batches(read, first_step):
    undisturbed = list(itertools.islice(read(), 15))[first_step:]
    for expected, found in zip(undisturbed, read(first_step=first_step), strict=False):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_labels_are_those_of_the_example(read):
    batch = next(read())
    assert {name: value.dtype.str[1:] for name, value in batch.items() if name != "post_id"} == {
        "images": "u1",
        "comment_labels": "i4",
        "comment_weights": "f4",
        "reaction_label": "i4",
    }
    assert batch["images"].shape == (7, 16, 16, 3)
    for row, number in enumerate(map(int, batch["post_id"])):
        labels = [*range(number % 4)]
        padding = 3 - len(labels)
        assert batch["comment_labels"][row].tolist() == labels + [-1] * padding
        assert batch["comment_weights"][row].tolist() == [1.0] * len(labels) + [0.0] * padding
        assert batch["reaction_label"][row] == number % 3 - 1


def test_the_crops_of_an_example_differ_between_epochs(read):
    seen: dict[bytes, list[np.ndarray]] = {}
    for batch in itertools.islice(read(), 12):
        for post_id, image in zip(batch["post_id"], batch["images"], strict=True):
            seen.setdefault(post_id, []).append(image)
    twice = [images for images in seen.values() if len(images) > 1]
    assert len(twice) > 30
    assert not any(np.array_equal(images[0], images[1]) for images in twice)


@pytest.mark.parametrize("cut", [[3, 7], [1, 2, 5, 7], [7]])
def test_processes_share_the_rows_of_the_same_batches(read, cut):
    together = list(itertools.islice(read(), 9))
    starts = [0, *cut[:-1]]
    shares = [list(itertools.islice(read(rows=np.arange(*ends)), 9)) for ends in zip(starts, cut, strict=True)]
    for step, batch in enumerate(together):
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[step][name] for share in shares]), value)


def damage(shards_folder: Path, directory: Path, kind: str, example) -> tuple[dict, set[int]]:
    """Copy the shards and damage the third of them, with examples 10 to 21; returns the manifest and who is lost."""
    shutil.copytree(shards_folder, directory)
    path = directory / "s-2.tfrecord"
    content = bytearray(path.read_bytes())
    if kind == "image":
        examples = [example(number) for number in range(10, 22)]
        examples[3]["image/encoded"] = examples[3]["image/encoded"][:40] + bytes(50)
        examples[5]["image/encoded"] = b"text"
        shards.write_shard(examples, path)
        return shards.read_manifest(shards_folder), {13, 15}
    if kind == "label":
        examples = [example(number) for number in range(10, 22)]
        examples[1]["reactions/label"], examples[2]["comments/labels"] = 2, [0, 3]
        examples[4]["comments/labels"] = [0, 1, 2, 0]
        shards.write_shard(examples, path)
        return shards.read_manifest(shards_folder), {11, 12, 14}
    if kind == "bit":
        content[300] ^= 1
    elif kind == "length":
        content[0] ^= 4
    elif kind == "cut":
        content = content[:-700]
    path.write_bytes(content)
    return shards.read_manifest(directory, damaged=True), {21} if kind == "cut" else {10}


@pytest.mark.parametrize("kind", ["bit", "length", "cut", "image", "label"])
def test_damaged_examples_are_black_and_named_and_no_other_moves(shards_folder, read, make_example, tmp_path, kind):
    directory = tmp_path / "shards"
    manifest, lost = damage(shards_folder, directory, kind, make_example)
    reject_log = tmp_path / "corrupt_examples.jsonl"
    corrupt = CorruptExamples(reject_log)
    found = loader.batches(directory, manifest, batch_size=7, seed=3, corrupt=corrupt, **SETTINGS)
    black = 0
    for whole, batch in itertools.islice(zip(read(), found, strict=True), 12):
        for row, post_id in enumerate(whole["post_id"]):
            if int(post_id) in lost:
                black += 1
                assert batch["post_id"][row] == b""
                assert not batch["images"][row].any()
                assert batch["comment_labels"][row].max() == batch["reaction_label"][row] == -1
            else:
                assert batch["post_id"][row] == post_id
                np.testing.assert_array_equal(batch["images"][row], whole["images"][row])
    assert black >= 2 * len(lost)
    named = [json.loads(line) for line in reject_log.read_text().splitlines()]
    assert {(entry["shard"], entry["record"]) for entry in named} == {("s-2.tfrecord", one - 10) for one in lost}
    assert all(entry["reason"] for entry in named)
    assert not any("{{" in entry["reason"] or "[Op" in entry["reason"] for entry in named)


@pytest.mark.parametrize("rows", [None, np.arange(2, 4)])
def test_validation_examples_come_once_as_center_crops(shards_folder, make_example, tmp_path, rows):
    manifest = shards.read_manifest(shards_folder)
    manifest["validation"] = {"examples": 13, "shards": [manifest["shards"][2], manifest["shards"][1]]}
    preprocessing = replace(Preprocessing.imagenet(16), resize=18)
    corrupt = CorruptExamples(tmp_path / "corrupt_examples.jsonl")
    found = list(
        loader.validation_batches(shards_folder, manifest, preprocessing, batch_size=5, corrupt=corrupt, rows=rows)
    )
    every = [[b"%04d" % number for number in (*range(10, 22), 9)][start : start + 5] for start in (0, 5, 10)]
    every[2] += [b"", b""]
    assert [list(batch["post_id"]) for batch in found] == [batch[2:4] if rows is not None else batch for batch in every]
    first = images.decode_for_evaluation(
        make_example(12 if rows is not None else 10)["image/encoded"], 18, 16, "bilinear"
    )
    np.testing.assert_array_equal(found[0]["images"][0], first)


def test_damaged_validation_images_are_black_and_named(shards_folder, make_example, tmp_path):
    directory = tmp_path / "shards"
    manifest, _ = damage(shards_folder, directory, "image", make_example)
    manifest["validation"] = {"examples": 12, "shards": [manifest["shards"][2]]}
    preprocessing = replace(Preprocessing.imagenet(16), resize=18, interpolation="bicubic")
    corrupt = CorruptExamples(tmp_path / "corrupt_examples.jsonl")
    (batch,) = loader.validation_batches(directory, manifest, preprocessing, batch_size=12, corrupt=corrupt)
    expected = [b"" if number in (13, 15) else b"%04d" % number for number in range(10, 22)]
    assert list(batch["post_id"]) == expected
    assert [bool(image.any()) for image in batch["images"]] == [post_id != b"" for post_id in expected]
    named = [json.loads(line) for line in (tmp_path / "corrupt_examples.jsonl").read_text().splitlines()]
    assert named == [
        {"shard": "s-2.tfrecord", "record": record, "reason": "no whole JPEG or PNG image"} for record in (3, 5)
    ]
