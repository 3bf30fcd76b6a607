"""Engagement shards: TFRecord files of labeled images, and the manifest that describes them.

An example holds `image/encoded` (JPEG or PNG bytes), `post_id` (salted hash), `comments/labels` (int64 list, may be
empty), `comments/weights` (float list, one for each label) and `reactions/label` (int64, -1 for none). No text.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter
from typing_extensions import TypedDict

from vise_jax import arrays, artifact
from vise_jax.data import records
from vise_jax.errors import UserError

FORMAT_VERSION = 2
MADE_BY = "label.py run"

# Folders up to this size are checked byte by byte before they are read from, within seconds. Of larger ones sizes are
# compared, and each record has its own checksum.
_MOST_HASHED = 1 << 30

# Beside the manifest: how often each label occurs.
STATISTICS = "statistics.safetensors"

Example = Mapping[str, Any]


class _Shard(TypedDict):
    name: str
    examples: NonNegativeInt
    bytes: NonNegativeInt
    sha256: str


class _Split(TypedDict):
    examples: NonNegativeInt
    shards: list[_Shard]


class _Member(TypedDict):
    shard: str
    record: NonNegativeInt


class _Group(TypedDict):
    posts: NonNegativeInt
    members: list[_Member]


class _Duplicates(TypedDict):
    groups: NonNegativeInt
    examples: NonNegativeInt
    left_out: NonNegativeInt
    largest: list[_Group]


class _Manifest(TypedDict):
    """What readers of a manifest need; labeling writes more."""

    posts: NonNegativeInt
    examples: PositiveInt
    # Labels are int32.
    classes: dict[Literal["comments", "reactions"], Annotated[int, Field(ge=0, lt=2**31)]]
    max_comment_labels: NonNegativeInt
    labeler: str
    fingerprint: str
    shards: list[_Shard]
    validation: _Split
    duplicates: NotRequired[_Duplicates]


_SCHEMA = TypeAdapter(_Manifest)


def write_shard(examples: Iterable[Example], path: Path) -> dict[str, Any]:
    """Write one TFRecord file atomically; equal examples give equal bytes.

    Args:
        examples: with `image/encoded` and `post_id` as bytes, `comments/labels`, `comments/weights`, `reactions/label`.
        path: the file.

    Returns:
        Its `name`, `examples`, `bytes` and `sha256`.

    Raises:
        UserError: the disk is full.
    """
    import tensorflow as tf  # only here: reading a manifest doesn't need it

    def serialized() -> Iterator[bytes]:
        for example in examples:
            features = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example["image/encoded"]])),
                "post_id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example["post_id"]])),
                **_labels(example),
            }
            example_proto = tf.train.Example(features=tf.train.Features(feature=features))
            yield example_proto.SerializeToString(deterministic=True)

    return _write_records(serialized(), path)


def _labels(example: Example) -> dict[str, Any]:
    import tensorflow as tf

    return {
        "comments/labels": tf.train.Feature(int64_list=tf.train.Int64List(value=example["comments/labels"])),
        "comments/weights": tf.train.Feature(float_list=tf.train.FloatList(value=example["comments/weights"])),
        "reactions/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[example["reactions/label"]])),
    }


def copy_records(
    sources: Iterable[tuple[Path, Sequence[bool]]], path: Path, relabeled: Mapping[int, Example] | None = None
) -> dict[str, Any]:
    """Copy selected records of TFRecord files into one file, atomically.

    Args:
        sources: files, and for each of a file's records whether it is copied.
        path: the file to write.
        relabeled: new labels of some records, by their number in the new file.

    Returns:
        Its `name`, `examples`, `bytes` and `sha256`.

    Raises:
        UserError: a source is damaged or has another number of records; or the disk is full.
    """
    import tensorflow as tf

    def selected() -> Iterator[bytes]:
        for source, keep in sources:
            with artifact.local_copy(source) as copy:
                records = tf.data.TFRecordDataset(str(copy)).as_numpy_iterator()
                try:
                    yield from (record for record, is_kept in zip(records, keep, strict=True) if is_kept)
                except (tf.errors.OpError, ValueError) as error:
                    raise UserError(
                        f"The shard {source} is damaged: copy it again, or make it with `{MADE_BY}`."
                    ) from error

    def labeled() -> Iterator[bytes]:
        for number, record in enumerate(selected()):
            if relabeled and number in relabeled:
                example = tf.train.Example.FromString(record)
                for name, feature in _labels(relabeled[number]).items():
                    example.features.feature[name].CopyFrom(feature)
                record = example.SerializeToString(deterministic=True)
            yield record

    return _write_records(labeled(), path)


def _write_records(records: Iterable[bytes], path: Path) -> dict[str, Any]:
    import tensorflow as tf

    count = 0
    with artifact.atomic_file(path) as file:
        try:
            with tf.io.TFRecordWriter(file.name) as writer:
                for record in records:
                    writer.write(record)
                    count += 1
        except tf.errors.ResourceExhaustedError as error:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        described = describe_shard(Path(file.name), count)
    return {**described, "name": path.name}


def describe_shard(path: Path, examples: int) -> dict[str, Any]:
    """Describe a shard for the manifest: its `name`, `examples`, `bytes` and `sha256`."""
    return {
        "name": path.name,
        "examples": examples,
        "bytes": path.stat().st_size,
        "sha256": artifact.file_sha256(path),
    }


def read_manifest(directory: Path | str, damaged: bool = False) -> dict[str, Any]:
    """Read and check `manifest.json`.

    Args:
        directory: the shards.
        damaged: accept damaged or truncated shards, for a reader that skips corrupt records.

    Returns:
        `posts`, `examples` (counts), `classes` (`comments` and `reactions`, 0 for none), `max_comment_labels` (of any
        example), `shards` (`name`, `examples`, `bytes`, `sha256` each), `validation` (`examples` and `shards` that are
        not trained on), `labeler` and `fingerprint` (SHA-256), and further keys of the labeling job.

    Raises:
        UserError: no directory, no or a wrong manifest, a shard that is missing, of another size, of another labeling
            job, or that the manifest does not name.
    """
    directory = artifact.location(directory)
    with artifact.explained(directory):
        missing = not directory.is_dir()
    if missing:
        raise UserError(
            f"The shards directory {directory} does not exist: give one that `{MADE_BY}` has finished writing."
        )
    manifest = artifact.read_description(directory, "manifest.json", version=FORMAT_VERSION, made_by=MADE_BY)
    artifact.check_schema(directory / "manifest.json", manifest, _SCHEMA, f"make the shards again with `{MADE_BY}`")
    every = [*manifest["shards"], *manifest["validation"]["shards"]]
    sizes = {shard["name"]: shard["bytes"] for shard in every}
    counted = sum(shard["examples"] for shard in manifest["shards"])
    has_both = len(manifest["classes"]) == 2 and manifest["max_comment_labels"] <= manifest["classes"]["comments"]
    if counted != manifest["examples"] or not has_both or any(Path(name).name != name for name in sizes):
        raise UserError(f"{directory}/manifest.json does not hold together: make the shards again with `{MADE_BY}`.")
    there = artifact.sizes(directory)
    for name, size in sizes.items():
        if name not in there:
            raise UserError(f"The shard {directory / name} is missing: copy it again, or make it with `{MADE_BY}`.")
        if (actual := there[name]) != size and not damaged:
            raise UserError(
                f"The shard {directory / name} has {actual:,} bytes instead of {size:,}: copy it again, or make it "
                f"again with `{MADE_BY}`."
            )
    # A deletion writes new revisions of shards, NAME.rN.tfrecord, before the manifest that names them, and removes the
    # old ones afterwards.
    named = {base_name(name) for name in sizes}
    others = sorted(name for name in there if name.endswith(".tfrecord") and base_name(name) not in named)
    recorded = artifact.sizes(directory / "records") if others else {}
    if strangers := [name for name in others if f"{base_name(name)}.json" not in recorded]:
        raise UserError(
            f"{directory} holds {strangers[0]}, which its manifest does not name: shards of two labeling jobs don't "
            "belong in one directory, move one job's away."
        )
    if sum(sizes.values()) <= _MOST_HASHED:
        for shard in every:
            _check_origin(directory / shard["name"], shard, damaged)
    return manifest


def read_image(path: Path, examples: int, record: int) -> bytes:
    """Return the encoded image of a record of a shard of `examples` records.

    Raises:
        UserError: the shard is damaged.
    """
    import tensorflow as tf

    (content,), corrupt = records.read_records(path, records.read_index(path, examples), [record])
    if corrupt:
        raise UserError(f"The shard {path} is damaged: copy it again, or make it with `{MADE_BY}`.")
    return tf.train.Example.FromString(content).features.feature["image/encoded"].bytes_list.value[0]


def next_revision(name: str) -> str:
    """Return the name of a shard that replaces another: NAME.tfrecord, NAME.r1.tfrecord, NAME.r2.tfrecord, ..."""
    stem, _, revision = name.removesuffix(".tfrecord").partition(".r")
    return f"{stem}.r{int(revision or 0) + 1}.tfrecord"


def base_name(name: str) -> str:
    """Return a shard's name without split, revision and suffix."""
    return name.split(".")[0]


def _check_origin(path: Path, shard: Mapping[str, Any], damaged: bool) -> None:
    """Check that a file is the shard that the manifest describes, not one that another labeler made of the posts."""
    if artifact.file_sha256(path) == shard["sha256"]:
        return
    index = records.read_index(path, shard["examples"])
    _, bad = records.read_records(path, index, range(shard["examples"]))
    if bad and damaged:
        return
    what = "is damaged" if bad else "holds other examples than the manifest says, another labeler's perhaps"
    raise UserError(f"The shard {path} {what}: copy it again, or make it again with `{MADE_BY}`.")


def count_labels(tables: Iterable[Mapping[str, np.ndarray]], classes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Count the labels of examples.

    Args:
        tables: of shards: `comment_labels` int32 [M], `comment_counts` int32 [N], `reaction_labels` int32 [N].
        classes: of `comments` (K_C) and `reactions` (K_R).

    Returns:
        As `read_statistics`.
    """
    comments, reactions = classes["comments"], classes["reactions"]
    counts = {
        "comments": np.zeros(comments, np.int64),
        "reactions": np.zeros(reactions, np.int64),
        "labels_per_post": np.zeros(1, np.int64),
        "pairs": np.zeros((comments, reactions), np.int64),
    }
    for table in tables:
        labels, sizes, reaction = table["comment_labels"], table["comment_counts"], table["reaction_labels"]
        counts["comments"] += np.bincount(labels, minlength=comments)
        counts["reactions"] += np.bincount(reaction[reaction >= 0], minlength=reactions)
        length = max(len(counts["labels_per_post"]), sizes.max(initial=0) + 1)
        histogram = np.zeros(length, np.int64)
        histogram[: len(counts["labels_per_post"])] = counts["labels_per_post"]
        counts["labels_per_post"] = histogram + np.bincount(sizes, minlength=length)
        with_both = np.repeat(reaction, sizes)
        known = with_both >= 0
        np.add.at(counts["pairs"], (labels[known], with_both[known]), 1)
    return counts


def read_statistics(directory: Path | str, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read how often each label occurs among the training examples of a directory of shards.

    Args:
        directory: the shards.
        manifest: theirs.

    Returns:
        `comments` int64 [K_C] and `reactions` int64 [K_R], examples with each label; `labels_per_post` int64 [L],
        number of examples by number of comment labels; `pairs` int64 [K_C, K_R], examples with both labels.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = artifact.location(directory) / STATISTICS
    try:
        with artifact.explained(path):
            counts, _ = arrays.from_safetensors(path.read_bytes())
        shape = manifest["classes"]["comments"], manifest["classes"]["reactions"]
        if counts["pairs"].shape != shape or counts["labels_per_post"].sum() != manifest["examples"]:
            raise ValueError
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged: copy it again, or make it with `{MADE_BY}`.") from error
    return counts
