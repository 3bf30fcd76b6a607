"""The labelling job: what reaches a shard, what is rejected, and going on after a stop."""

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image

from vise_jax import config
from vise_jax.data import shards
from vise_jax.engagement import Labeler, jobs, privacy
from vise_jax.errors import UserError

SECRET = "unmistakable"


def make_labels(**changes: Any) -> ConfigDict:
    labels = config.base().labels
    labels.update(comment_clusters=4, reaction_clusters=3, cluster_share=0.3, comment_dim=6, min_comment_count=2)
    labels.update(changes)
    return labels


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_posts(path: Path, count: int, first: int = 0) -> Path:
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    draw = random.Random(first)
    lines = []
    for number in range(first, first + count):
        (path.parent / "images" / f"{number}.jpg").write_bytes(jpeg(number))
        words = [f"w{number % 4}{letter}" for letter in "abcdef"]
        post = {
            "post_id": f"post-{number}",
            "image": f"images/{number}.jpg",
            "comments": [" ".join([SECRET, *draw.sample(words, 3)]) for _ in range(3)],
            "reactions": {"love": draw.randint(1, 9), "wow": draw.randint(0, 9), "angry": draw.randint(0, 9)},
        }
        lines.append(json.dumps(post))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Two posts files and a labeler fitted on them."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = [write_posts(folder / "a.jsonl", 60), write_posts(folder / "b.jsonl", 40, first=60)]
    jobs.fit(paths, make_labels(), folder / "labeler")
    return paths, folder / "labeler"


def read_examples(folder: Path) -> list[dict[str, Any]]:
    examples = []
    for shard in shards.read_manifest(folder)["shards"]:
        for record in tf.data.TFRecordDataset(str(folder / shard["name"])).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            kinds = {"image/encoded": "bytes_list", "post_id": "bytes_list", "comments/weights": "float_list"}
            examples.append({key: list(getattr(features[key], kinds.get(key, "int64_list")).value) for key in features})
    return examples


def bytes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of the artefact's files."""
    files = [*folder.glob("*.tfrecord"), folder / "manifest.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_examples_hold_the_images_and_labels_of_the_training_split(
    corpus: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, folder = corpus
    labeler = Labeler.load(folder)
    manifest = jobs.run(paths, labeler, make_labels(), tmp_path / "shards")
    salt = privacy.salt("", 0)
    posts = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    train = [post for post in posts if privacy.split(post["post_id"], salt, 0.3) == "train"]
    expected = {}
    for post, label in zip(train, labeler.label(train), strict=True):
        expected[privacy.hash_id(post["post_id"], salt)] = {
            "image/encoded": [(paths[0].parent / post["image"]).read_bytes()],
            "comments/labels": label.comment_labels,
            "comments/weights": label.comment_weights,
            "reactions/label": [label.reaction_label],
        }
    found = {example.pop("post_id")[0]: example for example in read_examples(tmp_path / "shards")}
    assert found == expected
    assert manifest == shards.read_manifest(tmp_path / "shards")
    assert manifest["posts"] == 100
    assert manifest["examples"] == len(train) == manifest["splits"]["train"] == 100 - manifest["splits"]["cluster"]
    assert manifest["classes"] == {"comments": 4, "reactions": 3}
    assert manifest["labeler"] == labeler.fingerprint
    assert manifest["max_comment_labels"] == max(len(example["comments/labels"]) for example in expected.values())
    written = b"".join(path.read_bytes() for path in (tmp_path / "shards").rglob("*") if path.is_file())
    assert SECRET.encode() not in written
    assert b"post-1" not in written


def test_every_bad_image_has_its_reason(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    folder = tmp_path / "posts"
    path = write_posts(folder / "p.jsonl", 40, first=1000)
    posts = [json.loads(line) for line in path.read_text().splitlines()]
    salt = privacy.salt("", 0)
    train = [post for post in posts if privacy.split(post["post_id"], salt, 0.3) == "train"]
    (tmp_path / "outside.jpg").write_bytes(jpeg(0))
    image = folder / "images"
    (image / "truncated.jpg").write_bytes(jpeg(1)[:-100])
    (image / "empty.jpg").write_bytes(b"")
    (image / "text.jpg").write_text("a text file")
    (image / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    Image.new("RGB", (600, 600)).save(image / "large.png")
    bad = {
        "truncated.jpg": "image_truncated",
        "empty.jpg": "image_empty",
        "text.jpg": "image_not_an_image",
        "link.jpg": "image_path_leaves_folder",
        "../../outside.jpg": "image_path_leaves_folder",
        "large.png": "image_too_large",
        "none.jpg": "image_missing",
    }
    for post, name in zip(train, bad, strict=False):
        post["image"] = f"images/{name}"
    train[7]["image"] = None
    train[8].update(comments=[], reactions=None)
    path.write_text("\n".join(map(json.dumps, posts)) + '\n{"broken\n')
    manifest = jobs.run([path], Labeler.load(corpus[1]), make_labels(max_image_pixels=90_000), tmp_path / "shards")
    expected = {reason: list(bad.values()).count(reason) for reason in bad.values()}
    assert manifest["rejected"] == {**expected, "no_image": 1, "no_label": 1, "malformed_json": 1}
    assert manifest["examples"] == len(train) - 9
    lines = {posts.index(post) + 1 for post in train[:9]} | {41}
    assert {entry["line"] for entry in manifest["rejected_posts"]} == lines
    assert {entry["file"] for entry in manifest["rejected_posts"]} == {"p.jsonl"}


def test_shards_are_cut_at_their_size_and_hold_the_same_examples(
    corpus: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, folder = corpus
    labeler = Labeler.load(folder)
    one = jobs.run(paths, labeler, make_labels(), tmp_path / "one")
    many = jobs.run(paths, labeler, make_labels(shard_megabytes=0.004), tmp_path / "many")
    assert len(one["shards"]) == 2
    assert len(many["shards"]) > 10
    assert max(shard["bytes"] for shard in many["shards"]) < 0.004 * 2**20 + 2000
    assert read_examples(tmp_path / "one") == read_examples(tmp_path / "many")


class Killed(BaseException):
    pass


def kill_after(calls: int) -> Callable[..., Any]:
    """`label_file` that is killed at its call number `calls`, half-way through the file."""
    original, count = jobs.label_file, 0

    def label_file(*args: Any, **options: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count < calls:
            return original(*args, **options)
        done = original(*args, **options)
        (args[3] / done["shards"][0]["name"]).write_bytes(b"half of it")
        raise Killed

    return label_file


def test_a_stopped_job_goes_on_and_ends_with_the_same_bytes(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, folder = corpus
    labeler, output = Labeler.load(folder), tmp_path / "shards"
    jobs.run(paths[::-1], labeler, make_labels(), tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "label_file", kill_after(2))
        with pytest.raises(Killed):
            jobs.run(paths, labeler, make_labels(), output)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        shards.read_manifest(output)
    (output / ".x.tfrecord.tmp-1").write_bytes(b"left by a kill")
    (output / "0123456789abcdef-00000.tfrecord").write_bytes(b"of an input that has changed since")
    kept = {path: path.stat().st_mtime_ns for path in output.glob("records/*.json")}
    assert len(kept) == 1
    first_shard = output / json.loads(next(iter(kept)).read_text())["shards"][0]["name"]
    written_at = first_shard.stat().st_mtime_ns
    jobs.run(paths, labeler, make_labels(), output)
    assert bytes_of(output) == bytes_of(tmp_path / "undisturbed")
    assert first_shard.stat().st_mtime_ns == written_at
    assert not list(output.glob(".*"))


def test_a_complete_job_is_kept_and_other_input_is_refused(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, folder = corpus
    labeler, output = Labeler.load(folder), tmp_path / "shards"
    first = jobs.run(paths, labeler, make_labels(), output)
    before = bytes_of(output)
    monkeypatch.setattr(jobs, "label_file", lambda *_, **__: pytest.fail("labelled again"))
    assert jobs.run(paths, labeler, make_labels(), output) == first
    with pytest.raises(UserError, match=r"not given now \(b\.jsonl"):
        jobs.run(paths[:1], labeler, make_labels(), output)
    more = write_posts(tmp_path / "c.jsonl", 5, first=500)
    with pytest.raises(UserError, match=r"complete without the posts of c\.jsonl"):
        jobs.run([*paths, more], labeler, make_labels(), output)
    with pytest.raises(UserError, match="another labeler or other labels keys"):
        jobs.run(paths, labeler, make_labels(max_image_pixels=1000), output)
    with pytest.raises(UserError, match="hold the same posts"):
        jobs.run([paths[0], paths[0]], labeler, make_labels(), tmp_path / "twice")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="no labelling job"):
        jobs.run(paths, labeler, make_labels(), tmp_path / "mine")
    assert bytes_of(output) == before


def test_nothing_is_left_where_no_post_can_be_trained_on(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    labeler = Labeler.load(corpus[1])
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"post_id": f"{n}", "comments": ["w1a w1b"]}) + "\n" for n in range(20)))
    with pytest.raises(UserError, match=r"None of the 20 posts can be trained on .*no_image"):
        jobs.run([path], labeler, make_labels(), tmp_path / "shards")
    path.write_text(path.read_text().replace("}", ', "image": "none.jpg"}'))
    with pytest.raises(UserError, match=r"p\.jsonl: .* of 20 posts are bad \(image_missing"):
        jobs.run([path], labeler, make_labels(), tmp_path / "shards")
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.jsonl"]


def test_another_salt_is_refused_and_the_labeler_decides_the_rest(
    corpus: tuple[list[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, folder = corpus
    labeler = Labeler.load(folder)
    (tmp_path / "salt").write_bytes(b"other")
    with pytest.raises(UserError, match="another salt"):
        jobs.run(paths, labeler, make_labels(salt_file=str(tmp_path / "salt")), tmp_path / "shards")
    other = jobs.run(paths, labeler, make_labels(cluster_share=0.9, seed=5), tmp_path / "shards")
    assert "labels.cluster_share is 0.3, as the labeler was fitted" in capsys.readouterr().err
    assert other == jobs.run(paths, labeler, make_labels(), tmp_path / "shards")


def test_fitting_again_keeps_the_labeler_and_refuses_other_posts(
    corpus: tuple[list[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, folder = corpus
    fingerprint = Labeler.load(folder).fingerprint
    monkeypatch.setattr(Labeler, "fit", lambda *_: pytest.fail("fitted again"))
    assert jobs.fit(paths[::-1], make_labels(shard_megabytes=1.0), folder).fingerprint == fingerprint
    with pytest.raises(UserError, match="other posts or other labels keys"):
        jobs.fit(paths[:1], make_labels(), folder)
    with pytest.raises(UserError, match="other posts or other labels keys"):
        jobs.fit(paths, make_labels(comment_clusters=2), folder)
