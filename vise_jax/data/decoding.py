"""Decode records of engagement shards into batches, with tf.data."""

import contextlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vise_jax.data.records import CorruptExamples
from vise_jax.data.shards import MADE_BY
from vise_jax.errors import UserError
from vise_jax.machine import available_cpus, keep_freed_memory

Batch = dict[str, np.ndarray]
# Records, [R] bytes, empty for a corrupt or deleted one; the number of each example in the run, int64 [R]; and its
# origin: index of its shard and of the record in the file, int64 [R, 2].
Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]
# From records, string [R], and the examples' numbers, int64 [R], to columns; from those called `image/` of an example,
# without this prefix, to uint8 [S, S, 3].
Parse = Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
Crop = Callable[..., tf.Tensor]

# The defaults are for empty records; a record that lacks its image is an error.
_FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string, ""),
    "post_id": tf.io.FixedLenFeature([], tf.string, ""),
    "comments/labels": tf.io.VarLenFeature(tf.int64),
    "comments/weights": tf.io.VarLenFeature(tf.float32),
    "reactions/label": tf.io.FixedLenFeature([], tf.int64, -1),
}
_PARSED_TOGETHER = 128
# Images are decoded side by side: operations that divide the work on one of them wait for each other's threads. A
# program that has used TensorFlow before keeps its own setting.
with contextlib.suppress(RuntimeError):
    tf.config.threading.set_intra_op_parallelism_threads(1)
keep_freed_memory()


def parser(manifest: dict[str, Any]) -> Parse:
    """Return a function from records to the columns of a batch, with `image/encoded`, string [R], for `images`.

    An empty record becomes an example without image, labels and post id. Records are parsed together, since an
    operation of TensorFlow costs as much for one as for hundreds.
    """
    most = max(manifest["max_comment_labels"], 1)
    classes = {name: tf.constant(count, tf.int64) for name, count in manifest["classes"].items()}

    def parse(records: tf.Tensor, _: tf.Tensor) -> dict[str, tf.Tensor]:
        columns = tf.io.parse_example(records, _FEATURES)
        labels = tf.sparse.to_dense(columns["comments/labels"], default_value=-1)
        weights = tf.sparse.to_dense(columns["comments/weights"])
        reactions, encoded = columns["reactions/label"], columns["image/encoded"]
        # Labels beyond the manifest's classes are those of another labeler.
        tf.debugging.assert_less(labels, classes["comments"], "comment label out of range")
        tf.debugging.assert_less(reactions, classes["reactions"], "reaction label out of range")
        empty = tf.equal(tf.strings.length(encoded), 0)
        tf.debugging.assert_equal(empty, tf.equal(tf.strings.length(records), 0), "no image")
        return {
            "image/encoded": encoded,
            "comment_labels": _padded(tf.cast(labels, tf.int32), most, -1),
            "comment_weights": _padded(weights, most, 0.0),
            "reaction_label": tf.cast(reactions, tf.int32),
            "post_id": columns["post_id"],
        }

    return parse


def or_black(crop: Crop, image_size: int) -> Crop:
    """Return `crop` with a black image for an empty one."""

    def crop_or_black(encoded: tf.Tensor, **columns: tf.Tensor) -> tf.Tensor:
        black = tf.zeros([image_size, image_size, 3], tf.uint8)
        pixels = tf.cond(tf.strings.length(encoded) > 0, lambda: crop(encoded, **columns), lambda: black)
        return tf.ensure_shape(pixels, [image_size, image_size, 3])

    return crop_or_black


def _padded(rows: tf.Tensor, width: int, value: float) -> tf.Tensor:
    """Pad [R, K] to [R, width]; K must not be larger."""
    padded = tf.pad(rows, [[0, 0], [0, width - tf.shape(rows)[1]]], constant_values=tf.constant(value, rows.dtype))
    return tf.ensure_shape(padded, [None, width])


def decoded(
    chunks: Callable[[int], Iterator[Chunk]],
    parse: Parse,
    crop: Crop,
    directory: Path,
    described: list[dict[str, Any]],
    corrupt: CorruptExamples,
    step: int,
    size: int,
    threads: int,
) -> Iterator[Batch]:
    """Yield decoded batches of `size` examples from `step` on. Undecodable images are logged and replaced."""
    while True:
        try:
            for batch in _pipeline(chunks(step), parse, crop, size, threads):
                yield batch
                step += 1
        except tf.errors.OpError as error:
            # tf.data doesn't say which example it was, but it is one of the next.
            if not _log_undecodable(chunks(step), parse, crop, described, corrupt, size):
                raise UserError(
                    f"The shards {directory} can't be read ({_reason(error)}): make them again with `{MADE_BY}`."
                ) from error
        else:
            return


def _pipeline(chunks: Iterator[Chunk], parse: Parse, crop: Crop, size: int, threads: int) -> Iterator[Batch]:
    failures: list[UserError] = []

    def generate() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        try:
            for records, numbers, _ in _ahead(chunks):
                for start in range(0, len(records), _PARSED_TOGETHER):
                    end = start + _PARSED_TOGETHER
                    yield records[start:end], numbers[start:end]
        except UserError as error:
            failures.append(error)
            raise

    def with_image(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image, others = _image_columns(example)
        return others | {"images": crop(**image)}

    threads = threads or available_cpus()
    signature = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64))
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    dataset = dataset.map(parse).prefetch(1).unbatch()
    dataset = dataset.map(with_image, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(size, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.deterministic = True
    try:
        yield from dataset.with_options(options).as_numpy_iterator()
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise


def _image_columns(columns: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Return the columns that an image is made of, without the prefix of their names, and the others."""
    image = {name.removeprefix("image/"): column for name, column in columns.items() if name.startswith("image/")}
    return image, {name: column for name, column in columns.items() if not name.startswith("image/")}


def _ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield the same chunks, reading each while the previous one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk


def _log_undecodable(
    chunks: Iterator[Chunk],
    parse: Parse,
    crop: Crop,
    described: list[dict[str, Any]],
    corrupt: CorruptExamples,
    size: int,
) -> bool:
    """Decode the next examples one by one and log those that fail; return whether there were any.

    Records are parsed together, so a failure to parse is raised before its batch: all records near the next `size` are
    parsed, and only the images of these `size` are decoded.
    """
    known, left = len(corrupt), size
    for records, numbers, origins in chunks:
        for position, (record, number, (shard, stored)) in enumerate(zip(records, numbers, origins, strict=True)):
            if position >= left + _PARSED_TOGETHER:
                break
            try:
                image, _ = _image_columns(parse(tf.constant([record]), tf.constant([number], tf.int64)))
                if position < left:
                    crop(**{name: column[0] for name, column in image.items()})
            except tf.errors.OpError as error:
                corrupt.add(described[shard]["name"], int(stored), _reason(error))
        left -= len(records)
        if left <= -_PARSED_TOGETHER * 2:
            break
    return len(corrupt) > known


def _reason(error: tf.errors.OpError) -> str:
    """Return the reason in an error of TensorFlow, without the names of nodes around it."""
    return re.sub(
        r"\{\{.*?\}\}|, value: .*|\[Op:.*|^assertion failed: \[|\].*", "", error.message.splitlines()[0]
    ).strip()[:200]
