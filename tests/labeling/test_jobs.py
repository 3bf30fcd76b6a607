"""The labeling job: what reaches a shard, what is rejected, and going on after a stop."""

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image

from vise_jax import config
from vise_jax.data import deletions, loader, shards
from vise_jax.data.epoch_order import Shuffle
from vise_jax.data.records import CorruptExamples
from vise_jax.engagement import Labeler, hashing
from vise_jax.errors import Interrupted, UserError
from vise_jax.labeling import beam_runner, input_split, output_dir
from vise_jax.labeling import fit as fit_module
from vise_jax.labeling.delete import delete as delete_job
from vise_jax.labeling.fit import fit as fit_job
from vise_jax.labeling.label import label as label_job
from vise_jax.posts import RejectLog
from vise_jax.preprocessing import Preprocessing

SECRET = "unmistakable"


def make_labels(**changes: Any) -> ConfigDict:
    labels = config.base().labels
    labels.update(comment_clusters=4, reaction_clusters=3, cluster_fraction=0.3, comment_dim=6, min_comment_count=2)
    labels.min_posts_to_stop = 0
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
    directory = tmp_path_factory.mktemp("corpus")
    paths = [write_posts(directory / "a.jsonl", 60), write_posts(directory / "b.jsonl", 40, first=60)]
    fit_job(paths, make_labels(), directory / "labeler")
    return paths, directory / "labeler"


def of_shard(path: Path) -> list[dict[str, Any]]:
    examples = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        kinds = {"image/encoded": "bytes_list", "post_id": "bytes_list", "comments/weights": "float_list"}
        examples.append({key: list(getattr(features[key], kinds.get(key, "int64_list")).value) for key in features})
    return examples


def read_examples(directory: Path) -> list[dict[str, Any]]:
    return [
        example
        for shard in shards.read_manifest(directory)["shards"]
        for example in of_shard(directory / shard["name"])
    ]


def bytes_of(directory: Path) -> dict[str, str]:
    """SHA-256 of the artifact's files."""
    files = [*directory.glob("*.tfrecord"), directory / "manifest.json", directory / "statistics.safetensors"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_examples_hold_the_images_and_labels_of_the_training_split(
    corpus: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, directory = corpus
    labeler = Labeler.load(directory)
    manifest = label_job(paths, directory, make_labels(), tmp_path / "shards")
    salt = hashing.salt("", 0)
    posts = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    train = [post for post in posts if hashing.split(post["post_id"], salt, 0.3) == "train"]
    expected = {}
    for post, label in zip(train, labeler.label(train), strict=True):
        expected[hashing.hash_id(post["post_id"], salt)] = {
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


def test_every_invalid_image_has_its_reason(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    directory = tmp_path / "posts"
    path = write_posts(directory / "p.jsonl", 40, first=1000)
    posts = [json.loads(line) for line in path.read_text().splitlines()]
    salt = hashing.salt("", 0)
    train = [post for post in posts if hashing.split(post["post_id"], salt, 0.3) == "train"]
    (tmp_path / "outside.jpg").write_bytes(jpeg(0))
    image = directory / "images"
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
    manifest = label_job([path], corpus[1], make_labels(max_image_pixels=90_000), tmp_path / "shards")
    expected = {reason: list(bad.values()).count(reason) for reason in bad.values()}
    assert manifest["rejected"] == {**expected, "no_image": 1, "no_label": 1, "malformed_json": 1}
    assert manifest["examples"] == len(train) - 9
    lines = {posts.index(post) + 1 for post in train[:9]} | {41}
    assert {entry["line"] for entry in manifest["rejected_posts"]} == lines
    assert {entry["file"] for entry in manifest["rejected_posts"]} == {"p.jsonl"}


def test_shards_are_cut_at_their_size_and_hold_the_same_examples(
    corpus: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, directory = corpus
    one = label_job(paths, directory, make_labels(), tmp_path / "one")
    many = label_job(paths, directory, make_labels(shard_megabytes=0.004), tmp_path / "many")
    assert len(one["shards"]) == 2
    assert len(many["shards"]) > 10
    assert max(shard["bytes"] for shard in many["shards"]) < 0.004 * 2**20 + 2000
    assert read_examples(tmp_path / "one") == read_examples(tmp_path / "many")


class Killed(BaseException):
    pass


def kill_at(calls: int, done: list[str]) -> Callable[..., Any]:
    """`write_shard` that is killed at its call number `calls`; it notes the names of what it has written."""
    original = shards.write_shard

    def write_shard(examples: list[shards.Example], path: Path) -> dict[str, Any]:
        if calls and len(done) + 1 == calls:
            (path.parent / f".{path.name}.tmp-1").write_bytes(b"half of it")
            raise Killed
        done.append(path.name)
        return original(examples, path)

    return write_shard


@pytest.mark.parametrize("kill", [1, 2, 7, 12])
def test_a_stopped_job_resumes_without_writing_a_recorded_shard_again(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    paths, directory = corpus
    labels = make_labels(shard_megabytes=0.004, split_megabytes=0.002, validation_fraction=0.2)
    label_job(paths[::-1], directory, labels, tmp_path / "undisturbed")
    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", kill_at(kill, done))
        with pytest.raises(Killed):
            label_job(paths, directory, labels, tmp_path / "shards")
    if done:
        with pytest.raises(UserError, match=r"no manifest\.json"):
            shards.read_manifest(tmp_path / "shards")
        (tmp_path / "shards" / "0123456789abcdef-00000.tfrecord").write_bytes(b"of an input that has changed since")
    else:
        assert not (tmp_path / "shards").exists()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", kill_at(0, done))
        label_job(paths, directory, labels, tmp_path / "shards")
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "undisturbed")
    # A shard that has no record yet may be damaged: it is written again.
    assert len(done) - 1 <= len(set(done)) > 20
    assert not list(tmp_path.glob("shards/.*"))


def test_a_job_that_resumes_remembers_how_many_posts_were_rejected(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_posts(tmp_path / "p.jsonl", 60, first=4000)
    path.write_text("{broken\n" * 10 + path.read_text())
    for share, enough in ((0.25, True), (0.1, False)):
        labels, done, output = (
            make_labels(shard_megabytes=0.004, max_rejected_fraction=share),
            [],
            tmp_path / f"{share}",
        )
        with monkeypatch.context() as patch:
            # The first check of all is at the end of a shard.
            patch.setattr(RejectLog, "check", lambda self: None)
            patch.setattr(shards, "write_shard", kill_at(5, done))
            with pytest.raises(Killed):
                label_job([path], corpus[1], labels, output)
        assert len(done) == 4
        if enough:
            assert label_job([path], corpus[1], labels, output)["rejected"]["malformed_json"] == 10
        else:
            with pytest.raises(UserError, match=r"10 of \d+ posts were rejected"):
                label_job([path], corpus[1], labels, output)


def records(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "records").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["one worker", "two workers", "beam"])
def test_workers_and_runners_give_the_same_bytes(corpus: tuple[list[Path], Path], tmp_path: Path, runner: str) -> None:
    paths, directory = corpus
    labels = make_labels(shard_megabytes=0.01, split_megabytes=0.004)
    options: dict[str, Any] = {
        "one worker": {"workers": 1},
        "two workers": {"workers": 2},
        "beam": {"beam_options": ["--runner=DirectRunner", "--direct_running_mode=multi_processing"]},
    }[runner]
    (tmp_path / "posts").mkdir()
    mended = json.dumps({"post_id": "long", "comments": ["w0a " * 3000]})
    (tmp_path / "posts" / "c.jsonl").write_text(f"{mended}\n{{broken\n{mended.replace('long', 'longer')}\n")
    paths = [*paths, tmp_path / "posts" / "c.jsonl"]
    label_job(paths, directory, labels, tmp_path / "expected")
    label_job(paths, directory, labels, tmp_path / "shards", **options)
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "expected")
    assert records(tmp_path / "shards") == records(tmp_path / "expected")
    fitted, expected = (
        fit_job(paths, labels, tmp_path / "labeler", **options),
        fit_job(paths, labels, tmp_path / "same"),
    )
    assert fitted.fingerprint == expected.fingerprint
    assert fitted.fitted == expected.fitted
    assert (expected.fitted["rejected"], expected.fitted["notes"]) == ({"malformed_json": 1}, {"comment_cut": 2})
    assert {path.name for path in tmp_path.iterdir()} == {"posts", "expected", "shards", "labeler", "same"}


@pytest.mark.parametrize("options", [{"workers": 1}, {"beam_options": ["--runner=DirectRunner"]}])
def test_a_mistake_in_a_worker_is_reported_in_one_sentence(
    corpus: tuple[list[Path], Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "p.jsonl").write_text('{"post_id": "a"\n' * 3)
    with pytest.raises(
        UserError, match=r"^[^\n]*p\.jsonl: 3 of 3 posts were rejected \(malformed_json 3\)[^\n]*raise that key.$"
    ):
        label_job([tmp_path / "p.jsonl"], corpus[1], make_labels(), tmp_path / "shards", **options)
    with pytest.raises(UserError, match=r"^[^\n]*p\.jsonl: 3 of 3 posts were rejected"):
        fit_job([tmp_path / "p.jsonl"], make_labels(), tmp_path / "labeler", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def ids_of(directory: Path) -> set[bytes]:
    return {example["post_id"][0] for example in read_examples(directory)}


def test_excluded_posts_reach_neither_clusters_nor_shards(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, directory = corpus
    posts = [f"post-{number}" for number in range(0, 100, 3)]
    (tmp_path / "ids.txt").write_text("\n".join(posts) + "\n")
    everyone = label_job(paths, directory, make_labels(), tmp_path / "all")
    salt = hashing.salt("", 0)
    gone = {hashing.hash_id(post, salt) for post in posts}
    manifest = label_job(paths, directory, make_labels(), tmp_path / "shards", exclude=tmp_path / "ids.txt")
    assert ids_of(tmp_path / "shards") == ids_of(tmp_path / "all") - gone
    assert manifest["excluded"] == len(posts)
    assert manifest["posts"] == everyone["posts"] == manifest["excluded"] + sum(manifest["splits"].values())
    with pytest.raises(UserError, match="begun with another --exclude"):
        label_job(paths, directory, make_labels(), tmp_path / "shards")
    with pytest.raises(UserError, match=r"--exclude=.*none\.txt can't be read"):
        label_job(paths, directory, make_labels(), tmp_path / "new", exclude=tmp_path / "none.txt")
    (tmp_path / "without.jsonl").write_text(
        "".join(line for path in paths for line in path.open() if json.loads(line)["post_id"] not in posts)
    )
    fitted = fit_job(paths, make_labels(), tmp_path / "labeler", exclude=tmp_path / "ids.txt")
    expected = fit_job([tmp_path / "without.jsonl"], make_labels(), tmp_path / "expected")
    assert fitted.fingerprint == expected.fingerprint
    assert fitted.fitted["excluded"] > 3


def test_relabel_writes_only_the_shards_that_hold_deleted_posts(
    corpus: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, directory = corpus
    labels = make_labels(shard_megabytes=0.004, validation_fraction=0.2)
    output = tmp_path / "shards"
    before = label_job(paths, directory, labels, output)
    names = {shard["name"] for shard in before["shards"]}
    examples = {
        shard["name"]: [record["post_id"][0] for record in of_shard(output / shard["name"])]
        for shard in (*before["shards"], *before["validation"]["shards"])
    }
    salt = hashing.salt("", 0)
    hashes = {hashing.hash_id(f"post-{number}", salt): f"post-{number}" for number in range(100)}
    train = [name for name in examples if "validation" not in name]
    held_out = next(name for name in examples if "validation" in name)
    # One post of one shard, all of another one, and one that is kept apart.
    gone = [examples[train[0]][0], *examples[train[3]], examples[held_out][0]]
    (tmp_path / "ids.txt").write_text("\n".join([*(hashes[post] for post in gone), "never seen"]))
    after = delete_job(output, labels, directory, tmp_path / "ids.txt")
    kept = {shard["name"] for shard in after["shards"]}
    assert names - kept == {train[0], train[3]}
    assert len(kept - names) == (1 if len(examples[train[0]]) > 1 else 0)
    expected = [post for name in train for post in examples[name] if post not in gone]
    assert sorted(example["post_id"][0] for example in read_examples(output)) == sorted(expected)
    assert after["deleted"] == len(gone)
    assert after["examples"] == before["examples"] - len(gone) + 1 == len(expected)
    assert after["validation"]["examples"] == before["validation"]["examples"] - 1
    assert shards.read_statistics(output, after)["comments"].sum() == sum(
        len(example["comments/labels"]) for example in read_examples(output)
    )
    assert {path.name for path in output.glob("*.tfrecord")} == kept | {
        shard["name"] for shard in after["validation"]["shards"]
    }
    assert after["fingerprint"] != before["fingerprint"]
    assert (
        delete_job(output, labels, directory, tmp_path / "ids.txt")
        == after
        == label_job(paths, directory, labels, output)
    )
    largest = max(after["shards"], key=lambda shard: shard["examples"])["name"]
    for number in (1, 2):
        (tmp_path / "ids.txt").write_text(hashes[of_shard(output / largest)[0]["post_id"][0]])
        last = delete_job(output, labels, directory, tmp_path / "ids.txt")
        assert last["deleted"] == len(gone) + number
        # A new name each time: readers of the old manifest still have its file.
        names = {shard["name"] for shard in last["shards"]}
        assert largest not in names
        largest = f"{largest.removesuffix('.tfrecord').partition('.r')[0]}.r{number}.tfrecord"
        assert largest in names


def batches_of(output: Path, manifest: dict[str, Any], log: Path, first_step: int = 0) -> Iterator[dict[str, Any]]:
    return loader.batches(
        output,
        manifest,
        batch_size=6,
        seed=0,
        corrupt=CorruptExamples(log),
        shuffle=Shuffle(shards=2, block=2, slots=2, window=4),
        image_size=8,
        crop_area=(0.5, 1.0),
        crop_ratio=(1.0, 1.0),
        antialias=False,
        first_step=first_step,
    )


@pytest.mark.parametrize("moment", ["between two runs", "during a run"])
def test_a_run_keeps_the_positions_of_deleted_examples(
    corpus: tuple[list[Path], Path], tmp_path: Path, moment: str
) -> None:
    paths, directory = corpus
    labels, output, log = make_labels(shard_megabytes=0.01), tmp_path / "shards", tmp_path / "corrupt.jsonl"
    before = label_job(paths, directory, labels, output)
    steps = 2 * before["examples"] // 6 + 1
    expected = list(itertools.islice(batches_of(output, before, log), steps))
    running = batches_of(output, before, log)
    if moment == "during a run":
        next(running)
    salt = hashing.salt("", 0)
    hashes = {hashing.hash_id(f"post-{number}", salt): f"post-{number}" for number in range(100)}
    examples = [[record["post_id"][0] for record in of_shard(output / shard["name"])] for shard in before["shards"]]
    # A whole shard, and in two deletions the first and the last example of others.
    id_lists = [[examples[0][0], *examples[1]], [examples[0][-1], examples[2][0]]]
    for deleted in id_lists:
        (tmp_path / "ids.txt").write_text("\n".join(hashes[post] for post in deleted))
        after = delete_job(output, labels, directory, tmp_path / "ids.txt")
    assert after["examples"] == before["examples"] - sum(map(len, id_lists))
    if moment == "between two runs":
        running = batches_of(output, deletions.as_of(shards.read_manifest(output), before["fingerprint"]), log, 1)
    gone = set(itertools.chain.from_iterable(id_lists))
    empty = 0
    for batch, found in zip(expected[1:], running, strict=False):
        assert found.keys() == batch.keys()
        for row, post in enumerate(batch["post_id"]):
            if post in gone and found["post_id"][row] == b"":
                empty += 1
                assert not found["images"][row].any()
                assert found["comment_labels"][row].max() == found["reaction_label"][row] == -1
            else:
                # What was read before the deletion is still used.
                assert post not in gone or moment == "during a run"
                for name, column in batch.items():
                    np.testing.assert_array_equal(found[name][row], column[row])
    assert empty >= len(gone)
    assert not log.exists()
    with pytest.raises(UserError, match="neither those of the run"):
        deletions.as_of(after, "another")
    # A new run has fewer examples, and none is empty.
    fresh = list(itertools.islice(batches_of(output, shards.read_manifest(output), log), after["examples"] // 6))
    assert not (gone | {b""}) & {post for batch in fresh for post in batch["post_id"]}


def test_a_run_evaluates_on_what_a_deletion_leaves(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, directory = corpus
    labels, output = make_labels(validation_fraction=0.3), tmp_path / "shards"
    before = label_job(paths, directory, labels, output)
    held_out = [record["post_id"][0] for record in of_shard(output / before["validation"]["shards"][0]["name"])]
    salt = hashing.salt("", 0)
    gone = next(f"post-{n}" for n in range(100) if hashing.hash_id(f"post-{n}", salt) == held_out[0])
    (tmp_path / "ids.txt").write_text(gone)
    delete_job(output, labels, directory, tmp_path / "ids.txt")
    batches = loader.validation_batches(
        output, before, Preprocessing.imagenet(8), batch_size=4, corrupt=CorruptExamples(tmp_path / "corrupt.jsonl")
    )
    seen = [post for batch in batches for post in batch["post_id"] if post]
    assert len(seen) == before["validation"]["examples"] - 1
    assert held_out[0] not in seen


def test_relabel_refuses_what_is_not_finished_or_of_another_labeler(
    corpus: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, directory = corpus
    (tmp_path / "ids.txt").write_text("post-1\n")
    label_job(paths, directory, make_labels(), tmp_path / "shards")
    other = make_labels(comment_clusters=3)
    fit_job(paths, other, tmp_path / "other")
    with pytest.raises(UserError, match="were not made with the labeler"):
        delete_job(tmp_path / "shards", make_labels(), tmp_path / "other", tmp_path / "ids.txt")
    (tmp_path / "shards" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        delete_job(tmp_path / "shards", make_labels(), directory, tmp_path / "ids.txt")


def test_the_validation_split_has_shards_of_its_own_and_a_smaller_share_is_a_subset(
    corpus: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, directory = corpus
    found: dict[float, set[bytes]] = {}
    held_out: dict[float, list[str]] = {}
    for share in (0.2, 0.5, 1.0):
        labels = make_labels(validation_fraction=0.2, train_fraction=share)
        manifest = label_job(paths, directory, labels, tmp_path / f"{share}")
        found[share] = ids_of(tmp_path / f"{share}")
        held_out[share] = [shard["sha256"] for shard in manifest["validation"]["shards"]]
        assert manifest["examples"] == manifest["splits"]["train"] == len(found[share])
        assert manifest["validation"]["examples"] == manifest["splits"]["validation"] > 5
        assert sum(manifest["splits"].values()) == 100
    assert found[0.2] < found[0.5] < found[1.0]
    assert held_out[0.2] == held_out[0.5] == held_out[1.0]
    everything = label_job(paths, directory, make_labels(), tmp_path / "all")
    assert everything["validation"] == {"examples": 0, "shards": []}
    watched = {
        example["post_id"][0]
        for shard in manifest["validation"]["shards"]
        for example in of_shard(tmp_path / "1.0" / shard["name"])
    }
    assert watched | found[1.0] == ids_of(tmp_path / "all")
    assert not watched & found[1.0]


def test_statistics_count_the_examples_labels(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, directory = corpus
    manifest = label_job(paths, directory, make_labels(shard_megabytes=0.01), tmp_path / "shards")
    counted = shards.read_statistics(tmp_path / "shards", manifest)
    examples = read_examples(tmp_path / "shards")
    for cluster in range(4):
        holders = [example for example in examples if cluster in example["comments/labels"]]
        assert counted["comments"][cluster] == len(holders)
        for reaction in range(3):
            both = [example for example in holders if example["reactions/label"] == [reaction]]
            assert counted["pairs"][cluster, reaction] == len(both)
    lengths = [len(example["comments/labels"]) for example in examples]
    assert counted["labels_per_post"].tolist() == [lengths.count(length) for length in range(max(lengths) + 1)]
    assert counted["reactions"].sum() == manifest["labeled"]["reactions"] == len(examples)
    path = tmp_path / "shards" / "statistics.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), b"half of it"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"statistics\.safetensors is missing or damaged"):
            shards.read_statistics(tmp_path / "shards", manifest)


def test_two_jobs_in_one_directory(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, directory = corpus
    with (
        output_dir.locked(tmp_path),
        pytest.raises(UserError, match="Another job is writing into"),
        output_dir.locked(tmp_path),
    ):
        pytest.fail("both have it")
    output = tmp_path / "shards"
    label_job(paths, directory, make_labels(), output)
    (output / "manifest.json").unlink()
    with output_dir.locked(output, output_dir.LOCK), pytest.raises(UserError, match="Another job is writing into"):
        label_job(paths, directory, make_labels(), output)
    label_job(paths, directory, make_labels(), output)


def test_an_input_that_changes_during_the_job(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_posts(tmp_path / "p.jsonl", 30, first=2000)
    other = write_posts(tmp_path / "q.jsonl", 10, first=3000)
    labels = make_labels(shard_megabytes=0.004)
    count, original = 0, input_split.read_image

    def read_image(*args: Any) -> tuple[bytes, int]:
        nonlocal count
        count += 1
        if count == 15:
            path.write_text(path.read_text().replace("w1", "w2"))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(input_split, "read_image", read_image)
        with pytest.raises(UserError, match=r"p\.jsonl was changed while the job was running"):
            label_job([path, other], corpus[1], labels, tmp_path / "shards")
    assert list(tmp_path.glob("shards/*.tfrecord"))
    manifest = label_job([path, other], corpus[1], labels, tmp_path / "shards")
    label_job([path, other], corpus[1], labels, tmp_path / "expected")
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "expected")
    assert manifest["posts"] == 40


def test_a_full_disk_is_one_sentence_and_the_job_resumes_when_there_is_room(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, directory = corpus
    labels = make_labels(shard_megabytes=0.004)
    label_job(paths, directory, labels, tmp_path / "expected")
    original, count = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match=r"The disk is full: .* free some space, and run the same command again"):
            label_job(paths, directory, labels, tmp_path / "shards")
    assert list(tmp_path.glob("shards/*.tfrecord"))
    assert not [path for path in tmp_path.glob("shards/**/.*") if path.name != ".lock"]
    label_job(paths, directory, labels, tmp_path / "shards")
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "expected")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("job.json", r"job\.json is damaged .*: restore it, or name a new directory"),
        ("records/*.json", r"records/.*\.json is damaged .*: delete it and run `label\.py run` again"),
        ("records/*.safetensors", r"\.safetensors is damaged .*: delete it and its record"),
        ("*.tfrecord", r"The shard .* has [\d,]+ bytes instead of [\d,]+: delete .*/records/.*\.json and run"),
    ],
)
def test_a_file_that_is_cut_between_two_starts_is_named_and_written_again(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, words: str
) -> None:
    paths, directory = corpus
    labels = make_labels(shard_megabytes=0.004)
    label_job(paths, directory, labels, tmp_path / "expected")
    # Killed before the manifest.
    with monkeypatch.context() as patch:
        patch.setattr("vise_jax.labeling.label.finish", None)
        with pytest.raises(TypeError):
            label_job(paths, directory, labels, tmp_path / "shards")
    path = sorted((tmp_path / "shards").glob(pattern))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=words):
        label_job(paths, directory, labels, tmp_path / "shards")
    if pattern == "job.json":
        path.write_bytes(whole)
    else:
        (tmp_path / "shards" / "records" / path.name).with_suffix(".json").unlink()
    label_job(paths, directory, labels, tmp_path / "shards")
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "expected")


@pytest.mark.parametrize("writes", [2, 6, 9, 14])
def test_a_full_disk_stops_a_fit_that_resumes_when_there_is_room(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    paths, directory = corpus
    original, count = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="The disk is full"):
            fit_job(paths, make_labels(), tmp_path / "labeler")
    assert [path.name for path in tmp_path.iterdir()] == [".labeler.fit"]
    assert fit_job(paths, make_labels(), tmp_path / "labeler").fingerprint == Labeler.load(directory).fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["labeler"]


def test_a_fit_that_was_stopped_reads_no_part_again(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, directory = corpus
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "fit_corpus", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            fit_job(paths, make_labels(), tmp_path / "labeler")
    work = tmp_path / ".labeler.fit"
    assert work.stat().st_mode & 0o777 == 0o700
    shutil.copytree(work, tmp_path / ".other.fit")
    # Input splits of another size are read again.
    other = fit_job(paths, make_labels(split_megabytes=0.002), tmp_path / "other")
    assert other.fingerprint == fit_job(paths, make_labels(split_megabytes=0.002), tmp_path / "undisturbed").fingerprint
    for folder_name in ("other", "undisturbed"):
        shutil.rmtree(tmp_path / folder_name)
    monkeypatch.setattr(fit_module, "_gather", lambda *_: pytest.fail("read again"))
    assert fit_job(paths, make_labels(), tmp_path / "labeler").fingerprint == Labeler.load(directory).fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["labeler"]
    # Killed when it had saved the labeler.
    work.mkdir()
    fit_job(paths, make_labels(), tmp_path / "labeler")
    assert [path.name for path in tmp_path.iterdir()] == ["labeler"]


def test_fit_makes_a_secret_salt_and_run_needs_it(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, _ = corpus
    labels = make_labels(salt_file=str(tmp_path / "secret" / "salt"))
    fit_job(paths, labels, tmp_path / "labeler")
    salt = tmp_path / "secret" / "salt"
    assert salt.stat().st_mode & 0o777 == 0o600
    assert len(salt.read_bytes()) == 64
    label_job(paths, tmp_path / "labeler", labels, tmp_path / "shards")
    files = [path for name in ("labeler", "shards") for path in (tmp_path / name).rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files)
    assert salt.read_bytes() not in written
    salt.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"salt_file=.* can't be read"):
        label_job(paths, tmp_path / "labeler", labels, tmp_path / "new")


def test_a_complete_job_is_kept_and_other_input_is_refused(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, directory = corpus
    output = tmp_path / "shards"
    first = label_job(paths, directory, make_labels(), output)
    before = bytes_of(output)
    monkeypatch.setattr(input_split, "read_image", lambda *_: pytest.fail("labeled again"))
    assert label_job(paths, directory, make_labels(), output) == first
    with pytest.raises(UserError, match=r"not given now \(b\.jsonl"):
        label_job(paths[:1], directory, make_labels(), output)
    more = write_posts(tmp_path / "c.jsonl", 5, first=500)
    with pytest.raises(UserError, match=r"complete without the posts of c\.jsonl"):
        label_job([*paths, more], directory, make_labels(), output)
    with pytest.raises(UserError, match="another labeler or other labels keys"):
        label_job(paths, directory, make_labels(max_image_pixels=1000), output)
    with pytest.raises(UserError, match="hold the same posts"):
        label_job([paths[0], paths[0]], directory, make_labels(), tmp_path / "twice")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="no labeling job"):
        label_job(paths, directory, make_labels(), tmp_path / "mine")
    assert bytes_of(output) == before


def test_empty_part_files_hold_no_posts(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, directory = corpus
    empty = [tmp_path / "part-1.jsonl", tmp_path / "part-2.jsonl"]
    for path in empty:
        path.touch()
    manifest = label_job([*paths, *empty], directory, make_labels(), tmp_path / "shards")
    assert manifest["posts"] == label_job(paths, directory, make_labels(), tmp_path / "without")["posts"]


def test_one_missing_image_in_a_small_file_does_not_stop_the_job(
    corpus: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, directory = corpus
    lonely = tmp_path / "lonely.jsonl"
    lonely.write_text(json.dumps({"post_id": "lonely", "image": "gone.jpg", "comments": ["w1a w1b"]}) + "\n")
    manifest = label_job([*paths, lonely], directory, make_labels(min_posts_to_stop=100), tmp_path / "shards")
    assert manifest["posts"] == 101


def test_nothing_is_left_where_no_post_can_be_trained_on(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"post_id": f"{n}", "comments": ["w1a w1b"]}) + "\n" for n in range(20)))
    with pytest.raises(UserError, match=r"None of the 20 posts can be trained on .*no_image"):
        label_job([path], corpus[1], make_labels(), tmp_path / "shards")
    path.write_text(path.read_text().replace("}", ', "image": "none.jpg"}'))
    with pytest.raises(UserError, match=r"p\.jsonl: .* of 20 posts were rejected \(image_missing"):
        label_job([path], corpus[1], make_labels(), tmp_path / "shards")
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.jsonl"]


def test_another_salt_is_refused_and_the_labeler_decides_the_rest(
    corpus: tuple[list[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths, directory = corpus
    (tmp_path / "salt").write_bytes(b"other")
    with pytest.raises(UserError, match="another salt"):
        label_job(paths, directory, make_labels(salt_file=str(tmp_path / "salt")), tmp_path / "shards")
    other = label_job(paths, directory, make_labels(cluster_fraction=0.9, seed=5), tmp_path / "shards")
    assert "labels.cluster_fraction is 0.3, as the labeler was fitted" in caplog.text
    assert other == label_job(paths, directory, make_labels(), tmp_path / "shards")


def test_fitting_again_keeps_the_labeler_and_refuses_other_posts(
    corpus: tuple[list[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, directory = corpus
    fingerprint = Labeler.load(directory).fingerprint
    monkeypatch.setattr(fit_module, "fit_corpus", lambda *_: pytest.fail("fitted again"))
    assert fit_job(paths[::-1], make_labels(shard_megabytes=1.0), directory).fingerprint == fingerprint
    with pytest.raises(UserError, match="other posts or other labels keys"):
        fit_job(paths[:1], make_labels(), directory)
    with pytest.raises(UserError, match="other posts or other labels keys"):
        fit_job(paths, make_labels(comment_clusters=2), directory)


def test_a_deletion_can_be_killed_at_any_write(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, directory = corpus
    labels = make_labels(shard_megabytes=0.01, validation_fraction=0.2)
    before = label_job(paths, directory, labels, tmp_path / "shards")
    salt = hashing.salt("", 0)
    first, *_ = (example["post_id"][0] for example in of_shard(tmp_path / "shards" / before["shards"][0]["name"]))
    gone = next(f"post-{number}" for number in range(100) if hashing.hash_id(f"post-{number}", salt) == first)
    (tmp_path / "ids.txt").write_text(gone)
    shutil.copytree(tmp_path / "shards", tmp_path / "expected")
    expected = delete_job(tmp_path / "expected", labels, directory, tmp_path / "ids.txt")
    replace, killed = os.replace, 0
    for after in (False, True):
        for number in itertools.count(1):
            output, done = tmp_path / f"{after}-{number}", 0
            shutil.copytree(tmp_path / "shards", output)

            def kill(source: str, target: str, number: int = number, after: bool = after) -> None:
                nonlocal done
                done += 1
                if after and done == number:
                    replace(source, target)
                if done == number:
                    raise Killed
                replace(source, target)

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", kill)
                try:
                    delete_job(output, labels, directory, tmp_path / "ids.txt")
                    break
                except Killed:
                    killed += 1
            # A reader that starts now works, with the old manifest or with the new one.
            assert shards.read_manifest(output)["examples"] in (before["examples"], expected["examples"])
            assert label_job(paths, directory, labels, output)["examples"] in (before["examples"], expected["examples"])
            assert delete_job(output, labels, directory, tmp_path / "ids.txt")["fingerprint"] == expected["fingerprint"]
            assert ids_of(output) == ids_of(tmp_path / "expected")
            assert {path.name for path in output.glob("*.tfrecord")} == {
                path.name for path in (tmp_path / "expected").glob("*.tfrecord")
            }
    # Shard, table, record, statistics, manifest; before and after each.
    assert killed >= 10


@pytest.mark.parametrize("text", ["\ufeffpost-3\n", '"post-3","asked for it"\r\n', '\ufeff"post-3"\n'])
def test_a_deletion_list_may_have_a_mark_or_quotes(corpus: tuple[list[Path], Path], tmp_path: Path, text: str) -> None:
    paths, directory = corpus
    (tmp_path / "ids.txt").write_text(text, "utf-8")
    manifest = label_job(paths, directory, make_labels(), tmp_path / "shards", exclude=tmp_path / "ids.txt")
    assert (manifest["excluded"], manifest["unmatched"]) == (1, 0)


def test_ids_that_match_no_post_are_counted_and_a_list_of_none_is_an_error(
    corpus: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, directory = corpus
    ids = tmp_path / "ids.txt"
    ids.write_text("post-3\nnever-seen\n")
    label_job(paths, directory, make_labels(), tmp_path / "finished")
    assert fit_job(paths, make_labels(), tmp_path / "labeler", exclude=ids).fitted["unmatched"] == 1
    assert label_job(paths, directory, make_labels(), tmp_path / "shards", exclude=ids)["unmatched"] == 1
    ids.write_text("post_id\nnever-seen\n")
    with pytest.raises(UserError, match="None of the 2 ids in --exclude"):
        fit_job(paths, make_labels(), tmp_path / "other", exclude=ids)
    with pytest.raises(UserError, match="None of the 2 ids in --exclude"):
        label_job(paths, directory, make_labels(), tmp_path / "shards2", exclude=ids)
    with pytest.raises(UserError, match="None of the 2 ids in --exclude"):
        delete_job(tmp_path / "finished", make_labels(), directory, ids)


def test_too_many_clusters_do_not_cost_what_was_read(
    corpus: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, directory = corpus
    with pytest.raises(UserError, match="distinct points"):
        fit_job(paths, make_labels(comment_clusters=5000), tmp_path / "labeler")
    monkeypatch.setattr(fit_module, "_gather", lambda *_: pytest.fail("read again"))
    assert fit_job(paths, make_labels(), tmp_path / "labeler").fingerprint == Labeler.load(directory).fingerprint


def test_what_was_read_under_other_bounds_is_read_again(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, _ = corpus
    with pytest.raises(UserError, match="distinct points"):
        fit_job(paths, make_labels(comment_clusters=5000), tmp_path / "labeler")
    labels = make_labels(max_post_comments=1)
    fresh = fit_job(paths, labels, tmp_path / "fresh")
    assert fit_job(paths, labels, tmp_path / "labeler").fingerprint == fresh.fingerprint


def test_a_job_that_was_killed_before_its_first_file_resumes(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, directory = corpus
    (tmp_path / "shards" / "records").mkdir(parents=True)
    assert label_job(paths, directory, make_labels(), tmp_path / "shards")["posts"] == 100


@pytest.mark.parametrize(
    "message",
    [
        "OSError: [Errno 28] No space left on device [while running 'label']",
        "vise_jax.errors.Interrupted: The disk is full: a can't be written [while running 'label']",
    ],
)
def test_a_full_disk_of_a_beam_worker_is_an_interruption(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    @contextlib.contextmanager
    def pipeline(**_: Any) -> Iterator[None]:
        yield
        raise RuntimeError(message)

    monkeypatch.setattr(beam_runner, "import_beam", lambda: SimpleNamespace(Pipeline=pipeline))
    with pytest.raises(Interrupted, match="disk"), beam_runner._pipeline([]):
        pass


def test_a_published_labeler_has_no_paths(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, _ = corpus
    labels = make_labels(salt_file=str(tmp_path / "secret" / "salt"), link_roots=(str(tmp_path / "cache"),))
    fit_job(paths, labels, tmp_path / "labeler")
    for path in (tmp_path / "labeler").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_images_of_links_into_link_roots_are_labeled(corpus: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, labeler = corpus
    directory = tmp_path / "posts"
    directory.mkdir()
    linked = shutil.copy(paths[0], directory / "a.jsonl")
    (directory / "images").symlink_to(paths[0].parent / "images")
    with pytest.raises(UserError, match="image_path_leaves_folder"):
        label_job([linked], labeler, make_labels(), tmp_path / "linked")
    # The same directory: a refused input split leaves nothing that a run with link roots would keep.
    labels = make_labels(link_roots=(str(paths[0].parent),))
    label_job([linked], labeler, labels, tmp_path / "linked")
    label_job([paths[0]], labeler, make_labels(), tmp_path / "plain")
    assert bytes_of(tmp_path / "linked") == bytes_of(tmp_path / "plain")
