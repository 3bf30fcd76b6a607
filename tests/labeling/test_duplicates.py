"""Near-duplicate images in a labeling job: counted, dropped or merged, and excluded by their hash."""

import hashlib
import io
import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image

from vise_jax import config
from vise_jax.data import perceptual, shards
from vise_jax.engagement import Labeler, hashing
from vise_jax.errors import UserError
from vise_jax.labeling import manifest as manifest_module
from vise_jax.labeling.delete import delete
from vise_jax.labeling.fit import fit
from vise_jax.labeling.label import label

BUTTONS = ("haha", "sorry", "angry", "wow", "love")


def make_labels(**changes: Any) -> ConfigDict:
    labels = config.base().labels
    labels.update(comment_clusters=4, reaction_clusters=3, cluster_fraction=0.2, comment_dim=6, min_comment_count=2)
    labels.update({"min_posts_to_stop": 0, "validation_fraction": 0.2, "shard_megabytes": 0.01, **changes})
    return labels


def picture(seed: int) -> Image.Image:
    """Colored rectangles: unlike noise, the perceptual hash of a smaller copy is near."""
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 96), tuple(draw.integers(0, 256, 3)))
    for _ in range(12):
        left, top = draw.integers(0, 80, 2).tolist()
        width, height = draw.integers(8, 60, 2).tolist()
        image.paste(tuple(draw.integers(0, 256, 3)), (left, top, left + width, top + height))
    return image


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_posts(path: Path, numbers: range) -> Path:
    """Posts with 60 pictures. Later copies of one are smaller, or compressed once more."""
    draw = random.Random(numbers.start)
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in numbers:
        image = picture(number % 60)
        if number >= 60:
            image = image.resize((72, 72)) if number % 2 else image
        (path.parent / "images" / f"{number}.jpg").write_bytes(encoded(image, 90 if number < 60 else 60))
        words = [f"w{draw.randrange(4)}{letter}" for letter in "abcdef"]
        reactions = {name: draw.randrange(9) for name in BUTTONS} if number % 5 else None
        comments = [" ".join(draw.sample(words, 3)) for _ in range(2)]
        post = {"post_id": f"post-{number}", "image": f"images/{number}.jpg"}
        lines.append(json.dumps({**post, "comments": comments, "reactions": reactions}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Two posts files, each with some copies of the other's images, and a labeler that counts comments."""
    directory = tmp_path_factory.mktemp("corpus")
    paths = [write_posts(directory / "a.jsonl", range(90)), write_posts(directory / "b.jsonl", range(90, 150))]
    fit(paths, make_labels(label_weights="count"), directory / "labeler")
    return paths, directory / "labeler"


def posts_of(paths: list[Path]) -> dict[str, dict[str, Any]]:
    every = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return {post["post_id"]: post for post in every}


def read_examples(directory: Path, split: str = "train") -> dict[str, dict[str, Any]]:
    """Examples by the hash of their posts' ids, in the order of the shards."""
    manifest = shards.read_manifest(directory)
    of_split = manifest["shards"] if split == "train" else manifest["validation"]["shards"]
    examples = {}
    for shard in of_split:
        for record in tf.data.TFRecordDataset(str(directory / shard["name"])).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            examples[features["post_id"].bytes_list.value[0].decode()] = {
                "image": features["image/encoded"].bytes_list.value[0],
                "labels": list(features["comments/labels"].int64_list.value),
                "weights": list(features["comments/weights"].float_list.value),
                "reaction": features["reactions/label"].int64_list.value[0],
            }
    return examples


def groups_of(paths: list[Path], salt: bytes) -> dict[int, list[str]]:
    """Ids of the posts of each picture that are examples, by their split."""
    groups: dict[int, list[str]] = defaultdict(list)
    for post_id in posts_of(paths):
        if hashing.split(post_id, salt, 0.2, 0.2) in ("train", "validation"):
            groups[int(post_id.removeprefix("post-")) % 60].append(post_id)
    return groups


SALT = hashing.salt("", 0)


def ids(post_ids: list[str]) -> set[str]:
    return {hashing.hash_id(post_id, SALT).decode() for post_id in post_ids}


def bytes_of(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_duplicates_are_counted_and_the_largest_named(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, labeler = corpus
    manifest = label(paths, labeler, make_labels(), tmp_path / "shards")
    groups = [group for group in groups_of(paths, SALT).values() if group]
    counted = manifest["duplicates"]
    assert counted["groups"] == sum(len(group) > 1 for group in groups)
    assert counted["examples"] == sum(len(group) - 1 for group in groups)
    assert counted["left_out"] == 0
    largest = counted["largest"]
    assert [group["posts"] for group in largest] == sorted((len(group) for group in groups), reverse=True)[:20]
    every = {**read_examples(tmp_path / "shards"), **read_examples(tmp_path / "shards", "validation")}
    hashes = {name: perceptual.hash_file(example["image"], ("JPEG",)) for name, example in every.items()}
    for group in largest:
        members = []
        for member in group["members"]:
            records = list(tf.data.TFRecordDataset(str(tmp_path / "shards" / member["shard"])).as_numpy_iterator())
            post_id = tf.train.Example.FromString(records[member["record"]]).features.feature["post_id"]
            members.append(post_id.bytes_list.value[0].decode())
        assert len(members) == group["posts"]
        assert any(set(members) == ids(of_picture) for of_picture in groups)
        assert all((hashes[members[0]] ^ hashes[member]).bit_count() <= 4 for member in members)


@pytest.mark.parametrize("way", [pytest.param("drop", marks=pytest.mark.slow), "merge"])
def test_one_example_of_each_group_stays(corpus: tuple[list[Path], Path], tmp_path: Path, way: str) -> None:
    paths, directory = corpus
    before = label(paths, directory, make_labels(), tmp_path / "all")
    manifest = label(paths, directory, make_labels(duplicates=way), tmp_path / "shards")
    every = {split: read_examples(tmp_path / "all", split) for split in ("train", "validation")}
    left = {split: read_examples(tmp_path / "shards", split) for split in every}
    labeler, posts = Labeler.load(directory), posts_of(paths)
    of_hash = {hashing.hash_id(post_id, SALT).decode(): post for post_id, post in posts.items()}
    groups = [group for group in groups_of(paths, SALT).values() if group]
    expected = {"train": 0, "validation": 0}
    for group in map(ids, groups):
        split = "train" if group & every["train"].keys() else "validation"
        expected[split] += 1
        stays = next(name for name in every[split] if name in group)
        assert group & (left["train"].keys() | left["validation"].keys()) == {stays}
        example, first = left[split][stays], every[split][stays]
        if way == "drop":
            assert example == first
            continue
        members = [of_hash[name] for name in group]
        assert example["image"] == first["image"]
        weights: dict[int, float] = defaultdict(float)
        for labels in labeler.label(members):
            for number, weight in zip(labels.comment_labels, labels.comment_weights, strict=True):
                weights[number] += weight
        assert dict(zip(example["labels"], example["weights"], strict=True)) == dict(weights)
        assert example["labels"] == sorted(weights)
        sums = {name: sum((post["reactions"] or {}).get(name, 0) for post in members) for name in BUTTONS}
        merged = labeler.label([{"post_id": "all", "comments": [], "reactions": sums}])[0]
        assert example["reaction"] == merged.reaction_label
    assert (manifest["examples"], manifest["validation"]["examples"]) == (expected["train"], expected["validation"])
    assert manifest["duplicates"]["left_out"] == before["duplicates"]["examples"] > 20
    assert manifest["duplicates"]["groups"] == before["duplicates"]["groups"]
    assert manifest["duplicates"]["examples"] == 0
    sizes = [group["posts"] for group in manifest["duplicates"]["largest"]]
    assert sizes == [group["posts"] for group in before["duplicates"]["largest"]]
    # Statistics are of the labels that are there, and no count of a button is left.
    statistics = shards.read_statistics(tmp_path / "shards", manifest)
    counted = [sum(number in example["labels"] for example in left["train"].values()) for number in range(4)]
    assert statistics["comments"].tolist() == counted
    for path in (tmp_path / "shards").rglob("*.safetensors"):
        assert "reaction_counts" not in safetensors.numpy.load(path.read_bytes())


@pytest.mark.parametrize("way", [pytest.param("drop", marks=pytest.mark.slow), "merge"])
def test_a_job_that_is_killed_at_any_write_ends_in_the_same_bytes(
    corpus: tuple[list[Path], Path], tmp_path: Path, way: str, run_with_kills: Callable[..., int]
) -> None:
    paths, labeler = corpus
    labels = make_labels(duplicates=way)
    label(paths, labeler, labels, tmp_path / "whole")
    output = tmp_path / "shards"
    # More writes each time, since the plans are written again: kills fall upon shards, tables, plans and records.
    kills = run_with_kills(lambda: label(paths, labeler, labels, output), 5, 4)
    assert kills > 3
    assert bytes_of(output) == bytes_of(tmp_path / "whole")


def test_a_job_that_is_killed_after_its_manifest_leaves_no_counts_of_buttons(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, labeler = corpus
    labels = make_labels(duplicates="merge")
    label(paths, labeler, labels, tmp_path / "whole")

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(manifest_module, "remove_unnamed", killed)
        with pytest.raises(KeyboardInterrupt):
            label(paths, labeler, labels, tmp_path / "shards")
    assert list((tmp_path / "shards").rglob("*.engagement.safetensors"))
    label(paths, labeler, labels, tmp_path / "shards")
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "whole")


@pytest.mark.slow
def test_workers_write_the_same_bytes_without_duplicates(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, labeler = corpus
    for workers in (0, 2):
        label(paths, labeler, make_labels(duplicates="merge"), tmp_path / f"{workers}", workers=workers)
    assert bytes_of(tmp_path / "0") == bytes_of(tmp_path / "2")


def test_an_example_goes_with_any_of_its_posts(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, labeler = corpus
    labels = make_labels(duplicates="merge")
    before = label(paths, labeler, labels, tmp_path / "shards")
    group = next(group for group in groups_of(paths, SALT).values() if len(group) > 2)
    (stays,) = ids(group) & (
        read_examples(tmp_path / "shards").keys() | read_examples(tmp_path / "shards", "validation").keys()
    )
    merged = next(post_id for post_id in group if ids([post_id]) != {stays})
    (tmp_path / "ids").write_text(f"{merged}\n")
    after = delete(tmp_path / "shards", labels, labeler, tmp_path / "ids")
    assert after["deleted"] == 1
    assert after["unmatched"] == 0
    assert stays not in read_examples(tmp_path / "shards") | read_examples(tmp_path / "shards", "validation")
    assert after["duplicates"]["left_out"] == before["duplicates"]["left_out"] - len(group) + 1


def excluded_picture(number: int) -> str:
    """The line of a photo as somebody sends it: larger, of another quality."""
    image = picture(number).resize((300, 300), Image.Resampling.BICUBIC)
    return hashing.image_line(perceptual.hash_file(encoded(image, 70), ("JPEG",)))


@pytest.mark.parametrize("way", ["keep", pytest.param("drop", marks=pytest.mark.slow)])
def test_an_excluded_image_reaches_no_shard(corpus: tuple[list[Path], Path], tmp_path: Path, way: str) -> None:
    paths, labeler = corpus
    labels = make_labels(duplicates=way)
    groups = groups_of(paths, SALT)
    number = max(groups, key=lambda number: len(groups[number]))
    # A post, a photo, a photo that nobody posted.
    other = next(group[0] for key, group in groups.items() if key != number)
    list_of = f"{excluded_picture(number)}\n{other}\n{excluded_picture(1000)}\n"
    (tmp_path / "list").write_text(list_of)
    manifest = label(paths, labeler, labels, tmp_path / "run", exclude=tmp_path / "list")
    assert (manifest["excluded"], manifest["excluded_images"]) == (1, len(groups[number]))
    assert manifest["unmatched"] == 1
    gone = ids([*groups[number], other])
    for split in ("train", "validation"):
        assert not gone & read_examples(tmp_path / "run", split).keys()
    # Taking them out afterwards leaves the same examples, whether or not copies were dropped before.
    label(paths, labeler, labels, tmp_path / "relabel")
    after = delete(tmp_path / "relabel", labels, labeler, tmp_path / "list")
    assert after["unmatched"] == 1
    if way == "keep":
        assert after["deleted"] == len(gone)
        assert read_examples(tmp_path / "relabel") == read_examples(tmp_path / "run")
    for split in ("train", "validation"):
        assert not gone & read_examples(tmp_path / "relabel", split).keys()
    # The same list again, and a list that matches nothing.
    assert delete(tmp_path / "relabel", labels, labeler, tmp_path / "list") == after
    # An id that matches no post is not made up for by the examples that went with a photo.
    (tmp_path / "longer").write_text(f"{list_of}never-seen\n")
    assert delete(tmp_path / "relabel", labels, labeler, tmp_path / "longer")["unmatched"] == 2
    (tmp_path / "nothing").write_text(f"{excluded_picture(1000)}\n")
    with pytest.raises(UserError, match="None of the 1 ids"):
        label(paths, labeler, labels, tmp_path / "none", exclude=tmp_path / "nothing")


def test_an_excluded_image_changes_no_labeler(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, labeler = corpus
    (tmp_path / "list").write_text(excluded_picture(1))
    fitted = fit(paths, make_labels(label_weights="count"), tmp_path / "labeler", exclude=tmp_path / "list")
    assert fitted.fingerprint == Labeler.load(labeler).fingerprint
    assert fitted.fitted["origin"] == Labeler.load(labeler).fitted["origin"]
