"""Engagement shards: TFRecord files of labelled images, and the manifest that describes them.

An example holds `image/encoded` (JPEG or PNG bytes), `post_id` (salted hash), `comments/labels` (int64 list, may be
empty), `comments/weights` (float list, one for each label) and `reactions/label` (int64, -1 for none). No text.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vise_jax import artefact
from vise_jax.errors import UserError

FORMAT_VERSION = 1
MADE_BY = "label.py run"

Example = Mapping[str, Any]


def write_shards(examples: Iterable[Example], folder: Path, prefix: str, max_bytes: float) -> list[dict[str, Any]]:
    """Write examples, in their order, into as many shards as they need; equal examples give equal bytes.

    Args:
        examples: with `image/encoded` and `post_id` as bytes, `comments/labels`, `comments/weights`, `reactions/label`.
        folder: where the shards go; each appears when it is complete.
        prefix: of their names, PREFIX-00000.tfrecord and so on.
        max_bytes: a shard that has grown to so many is closed.

    Returns:
        For each shard its `name`, `examples`, `bytes` and `sha256`.
    """
    remaining = iter(examples)
    shards: list[dict[str, Any]] = []
    for first in remaining:
        name = f"{prefix}-{len(shards):05d}.tfrecord"
        count = write_shard(_until_full(first, remaining, max_bytes), folder / name)
        size = (folder / name).stat().st_size
        shards.append({"name": name, "examples": count, "bytes": size, "sha256": artefact.file_sha256(folder / name)})
    return shards


def write_shard(examples: Iterable[Example], path: Path) -> int:
    """Write one TFRecord file, whole or not at all; returns how many examples it holds."""
    import tensorflow as tf  # only here: reading a manifest doesn't need it

    count = 0
    with artefact.whole_file(path) as file, tf.io.TFRecordWriter(file.name) as writer:
        for example in examples:
            features = tf.train.Features(
                feature={
                    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example["image/encoded"]])),
                    "post_id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example["post_id"]])),
                    "comments/labels": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=example["comments/labels"])
                    ),
                    "comments/weights": tf.train.Feature(
                        float_list=tf.train.FloatList(value=example["comments/weights"])
                    ),
                    "reactions/label": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[example["reactions/label"]])
                    ),
                }
            )
            writer.write(tf.train.Example(features=features).SerializeToString(deterministic=True))
            count += 1
    return count


def _until_full(first: Example, others: Iterator[Example], max_bytes: float) -> Iterator[Example]:
    yield first
    size = len(first["image/encoded"])
    while size < max_bytes and (example := next(others, None)) is not None:
        yield example
        size += len(example["image/encoded"])


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Read and check `manifest.json`.

    Returns:
        `posts`, `examples` (counts), `classes` (`comments` and `reactions`, 0 for none), `max_comment_labels` (of any
        example), `shards` (`name`, `examples`, `bytes`, `sha256` each), `labeler` and `fingerprint` (SHA-256), and what
        else `engagement.jobs` wrote down.

    Raises:
        UserError: no folder, no or a wrong manifest, or a shard that is missing or of another size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"The shards folder {folder} does not exist: give one that `{MADE_BY}` has finished writing.")
    manifest = artefact.read_description(folder, "manifest.json", version=FORMAT_VERSION, made_by=MADE_BY)
    try:
        sizes = {shard["name"]: shard["bytes"] for shard in manifest["shards"]}
        counted = sum(shard["examples"] for shard in manifest["shards"])
        complete = (
            {"comments", "reactions"} == manifest["classes"].keys()
            and counted == manifest["examples"] > 0
            and {"posts", "max_comment_labels", "labeler", "fingerprint"} <= manifest.keys()
            and all(Path(name).name == name for name in sizes)
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/manifest.json lacks what shards need: make them again with `{MADE_BY}`.") from error
    if not complete:
        raise UserError(f"{folder}/manifest.json does not hold together: make the shards again with `{MADE_BY}`.")
    for name, size in sizes.items():
        if not (folder / name).is_file():
            raise UserError(f"The shard {folder / name} is missing: copy it again, or make it with `{MADE_BY}`.")
        if (found := (folder / name).stat().st_size) != size:
            raise UserError(
                f"The shard {folder / name} has {found:,} bytes instead of {size:,}: copy it again, or make it again "
                f"with `{MADE_BY}`."
            )
    return manifest
