"""Labeling from a bucket into a bucket, and training input from it: the bytes of the same job on disk."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from vise_jax import artifact, config
from vise_jax.data import loader, shards
from vise_jax.data.epoch_order import Shuffle
from vise_jax.data.records import CorruptExamples
from vise_jax.demo.corpus import make_corpus
from vise_jax.engagement import Labeler, hashing
from vise_jax.errors import UserError
from vise_jax.labeling import beam_runner
from vise_jax.labeling.delete import delete
from vise_jax.labeling.fit import fit
from vise_jax.labeling.images import begin_image, with_image
from vise_jax.labeling.label import label
from vise_jax.posts import BadPost, Post, RejectLog, expand, read

ROOT = Path(__file__).parents[2]

# Each starts a job in a bucket.
pytestmark = pytest.mark.slow


def make_labels(**changes: Any) -> ConfigDict:
    labels = config.base().labels
    labels.update(comment_clusters=4, reaction_clusters=3, cluster_fraction=0.3, comment_dim=6, min_comment_count=2)
    labels.update({"min_posts_to_stop": 0, "shard_megabytes": 0.05, "duplicates": "merge", "duplicate_distance": 8})
    labels.update(changes)
    return labels


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with posts in two files, one packed, a labeler and shards of it."""
    directory = tmp_path_factory.mktemp("disk")
    make_corpus(directory, posts=60, labeled=1)
    (directory / "truth.csv").unlink()
    path = min(directory.glob("posts/*.jsonl"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:9], "{malformed\n", *lines[9:], '{"post_id": 1}\n']))
    labels, paths = make_labels(), expand(f"{directory}/posts/*.jsonl")
    fit(paths, labels, directory / "labeler")
    label(paths, directory / "labeler", labels, directory / "shards")
    return directory


def upload(store: Any, directory: Path) -> str:
    """Put the posts and their images into the bucket; return the glob of the posts."""
    root = artifact.location(store.root)
    root.fs.put(str(directory / "posts"), f"{root.path.rstrip('/')}/", recursive=True)
    return f"{store.root}/posts/*.jsonl"


def bytes_of(directory: Path) -> dict[str, str]:
    """SHA-256 of the files of an artifact, on disk or not, without the lock."""
    digests = {}
    for part in ("", "records"):
        where = directory / part if part else directory
        for name, content in artifact.read_files(where, "").items():
            if name != ".lock":
                digests[f"{part}/{name}"] = hashlib.sha256(content).hexdigest()
    return digests


def run(store: Any, on_disk: Path, **changes: Any) -> Path:
    """Fit and label in the bucket; return the shards."""
    labels, paths = make_labels(**changes), expand(upload(store, on_disk))
    labeler = artifact.location(f"{store.root}/labeler")
    fit(paths, labels, labeler)
    output = artifact.location(f"{store.root}/shards")
    label(paths, labeler, labels, output)
    return output


def test_the_job_gives_the_bytes_of_the_disk(store: Any, on_disk: Path, tmp_path: Path) -> None:
    output = run(store, on_disk)
    assert bytes_of(output) == bytes_of(on_disk / "shards")
    assert bytes_of(output.parent / "labeler") == bytes_of(on_disk / "labeler")
    assert Labeler.load(output.parent / "labeler").fingerprint == Labeler.load(on_disk / "labeler").fingerprint
    assert shards.read_manifest(output) == shards.read_manifest(on_disk / "shards")
    records = [json.loads(content) for content in artifact.read_files(output / "records", ".json").values()]
    assert sum((Counter(record["rejected"]) for record in records), Counter())["malformed_json"] == 1
    # The same commands again find everything done, and other keys are refused.
    label(expand(f"{store.root}/posts/*.jsonl"), output.parent / "labeler", make_labels(), output)
    with pytest.raises(UserError, match="of another labeler or other labels keys"):
        label(
            expand(f"{store.root}/posts/*.jsonl"), output.parent / "labeler", make_labels(transcode_quality=50), output
        )
    # A post is taken out as on disk.
    posts = [post.post_id for path in on_disk.glob("posts/*.jsonl") for post in read(path, RejectLog(path))]
    post = next(name for name in posts if hashing.split(name, hashing.salt("", 0), 0.3) == "train")
    (tmp_path / "list").write_text(post)
    copied = tmp_path / "shards"
    label(expand(f"{on_disk}/posts/*.jsonl"), on_disk / "labeler", make_labels(), copied)
    for where, labeler in ((copied, on_disk / "labeler"), (output, output.parent / "labeler")):
        assert delete(where, make_labels(), labeler, tmp_path / "list")["deleted"] == 1
    assert bytes_of(output) == bytes_of(copied)


def test_a_path_of_an_image_is_that_of_the_disk(store: Any) -> None:
    root = artifact.location(f"{store.root}/posts")
    artifact.write_text(root / "deep" / "1.jpg", "one")
    post, missing = Post("a", "./deep//1.jpg"), Post("b", "deep")
    begin = begin_image(root / "posts.jsonl")
    assert with_image(post, begin(post)).image_bytes == b"one"
    with pytest.raises(BadPost, match="image_missing"):
        with_image(missing, begin(missing))


def test_workers_of_beam_use_the_bucket(store: Any, on_disk: Path) -> None:
    if store.scheme == "gs":
        pytest.skip("what differs between the stores is in the tests of files")
    paths, output = expand(upload(store, on_disk)), artifact.location(f"{store.root}/shards")
    options = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    options += [f"--temp_location={store.root}/temporary"]
    labeler = artifact.location(f"{store.root}/labeler")
    fit(paths, make_labels(), labeler, beam_options=options)
    assert bytes_of(labeler) == bytes_of(on_disk / "labeler")
    assert not artifact.tree(artifact.location(f"{store.root}/temporary"))
    label(paths, labeler, make_labels(), output, beam_options=options)
    assert bytes_of(output) == bytes_of(on_disk / "shards")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "/somewhere/statistics.json.gz"),
        (["--temp_location=/tmp/beam"], "/somewhere/statistics.json.gz"),
        (["--temp_location=hdfs://node/tmp"], "/somewhere/statistics.json.gz"),
        (["--temp_location", "BUCKET/tmp"], "BUCKET/tmp/vise_jax-"),
    ],
)
def test_statistics_pass_through_the_temporary_bucket_of_beam(store: Any, options: list[str], expected: str) -> None:
    options = [option.replace("BUCKET", store.root) for option in options]
    found = beam_runner._seen_by_workers(Path("/somewhere/statistics.json.gz"), options)
    assert str(found).startswith(expected.replace("BUCKET", store.root))


def test_processes_that_share_only_the_bucket_fit_as_one(
    store: Any, on_disk: Path, tmp_path: Path, free_port: int
) -> None:
    if store.scheme == "gs":
        pytest.skip("what differs between the stores is in the tests of files")
    posts, keys = upload(store, on_disk), {"comment_clusters": 4, "reaction_clusters": 3, "cluster_fraction": 0.3}
    keys |= {"comment_dim": 6, "min_comment_count": 2, "min_posts_to_stop": 0}
    command = [sys.executable, str(ROOT / "scripts" / "label.py"), "fit", "--config=configs/demo.py", "--posts", posts]
    command += [f"--config.labels.{key}={value}" for key, value in keys.items()]
    started, labelers = [], []
    for index, where in enumerate([f"localhost:{free_port},2,{index}" for index in range(2)] + ["off"]):
        temporary = tmp_path / str(index)
        temporary.mkdir()
        labelers.append(f"{store.root}/{'one' if where == 'off' else 'two'}")
        words = [*command, f"--distributed={where}", f"--output={labelers[-1]}"]
        started.append(subprocess.Popen(words, cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}))
    assert [process.wait(timeout=240) for process in started] == [0, 0, 0]
    assert bytes_of(artifact.location(labelers[0])) == bytes_of(artifact.location(labelers[2]))
    assert not list(tmp_path.glob("*/vise_jax-*"))


def test_a_store_that_fails_now_and_then_changes_no_byte(
    store: Any, on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = expand(upload(store, on_disk))
    store.faults.refused, store.faults.cut = 0.05, 0.05
    output = artifact.location(f"{store.root}/shards")
    label(paths, on_disk / "labeler", make_labels(), output)
    store.faults.refused = store.faults.cut = 0.0
    assert bytes_of(output) == bytes_of(on_disk / "shards")


def test_a_job_that_is_killed_ends_in_the_same_bytes(
    store: Any, on_disk: Path, run_with_kills: Callable[..., int]
) -> None:
    paths, output = expand(upload(store, on_disk)), artifact.location(f"{store.root}/shards")
    kills = run_with_kills(lambda: label(paths, on_disk / "labeler", make_labels(), output), 2, 2)
    assert kills >= 5
    assert bytes_of(output) == bytes_of(on_disk / "shards")


def test_posts_that_are_overwritten_are_named(store: Any, on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, output = expand(upload(store, on_disk)), artifact.location(f"{store.root}/shards")
    content = paths[0].read_bytes()
    write = artifact.write_json

    def overwriting(path: Path, value: Any) -> None:
        write(path, value)
        if path.parent.name == "records":
            paths[0].write_bytes(content.replace(b"post", b"tsop"))

    monkeypatch.setattr("vise_jax.labeling.input_split.artifact.write_json", overwriting)
    with pytest.raises(UserError, match="was changed while the job was running"):
        label(paths, on_disk / "labeler", make_labels(), output)


def batches(directory: Path, tmp_path: Path, count: int) -> list[dict[str, np.ndarray]]:
    manifest = shards.read_manifest(directory)
    iterator = loader.batches(
        directory,
        manifest,
        batch_size=4,
        seed=0,
        corrupt=CorruptExamples(tmp_path / "corrupt.jsonl"),
        shuffle=Shuffle(shards=4, block=2, slots=1, window=16),
        image_size=32,
        crop_area=(0.08, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        antialias=True,
    )
    return [next(iterator) for _ in range(count)]


def test_batches_are_those_of_the_disk(
    store: Any, on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = artifact.location(store.root)
    root.fs.put(str(on_disk / "shards"), f"{root.path.rstrip('/')}/", recursive=True)
    store.faults.refused, store.faults.cut = 0.05, 0.05
    found = batches(artifact.location(f"{store.root}/shards"), tmp_path, 12)
    for batch, expected in zip(found, batches(on_disk / "shards", tmp_path, 12), strict=True):
        assert batch.keys() == expected.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], expected[name])
    assert CorruptExamples(tmp_path / "corrupt.jsonl").__len__() == 0


def test_a_bucket_that_does_not_exist_is_named(store: Any, on_disk: Path, tmp_path: Path) -> None:
    missing = f"{store.scheme}://no-such-bucket"
    with pytest.raises(UserError, match="no-such-bucket"):
        expand(f"{missing}/posts/*.jsonl")
    with pytest.raises(UserError, match="no-such-bucket"):
        shards.read_manifest(artifact.location(f"{missing}/shards"))
    with pytest.raises(UserError, match="no-such-bucket"):
        Labeler.load(artifact.location(f"{missing}/labeler"))
    paths = expand(f"{on_disk}/posts/*.jsonl")
    with pytest.raises(UserError, match="no-such-bucket"):
        label(paths, on_disk / "labeler", make_labels(), artifact.location(f"{missing}/shards"))
