"""Batches for pre-training, read from engagement shards.

A place in the data is a function of (seed, example number, manifest): example number t is the (t mod N)-th of epoch
t // N, so that a run resumes anywhere by reading one group of shards, and every example of an epoch comes once.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from vise_jax.data.crops import decode_random_crop
from vise_jax.data.shards import MADE_BY
from vise_jax.errors import UserError

_FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "post_id": tf.io.FixedLenFeature([], tf.string),
    "comments/labels": tf.io.VarLenFeature(tf.int64),
    "comments/weights": tf.io.VarLenFeature(tf.float32),
    "reactions/label": tf.io.FixedLenFeature([], tf.int64),
}


def epoch_groups(
    examples_per_shard: list[int], shuffle_shards: int, seed: int, epoch: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The order of one epoch: shards in random order, and the records of `shuffle_shards` of them at a time shuffled.

    Returns:
        For each group its shards, int64 [S], and the order in which the records of these shards, one shard behind the
        other, come: int64 [R]. The same on any machine and with any NumPy: only the raw bits of Philox, whose
        stream is fixed, decide.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    counts = np.asarray(examples_per_shard, np.int64)
    shards = np.argsort(bits.random_raw(len(counts)), kind="stable")
    starts = range(0, len(shards), shuffle_shards)
    groups = [shards[start : start + shuffle_shards] for start in starts]
    return [(group, np.argsort(bits.random_raw(int(counts[group].sum())), kind="stable")) for group in groups]


def batches(
    folder: Path, manifest: dict[str, Any], config: ConfigDict, *, batch_size: int, seed: int, first_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches without end, from the one of step `first_step` on.

    A batch may hold the end of an epoch and the beginning of the next.

    Args:
        folder: the engagement shards.
        manifest: their manifest, from `shards.read_manifest`.
        config: the `data` section.
        batch_size: examples in a batch, B.
        seed: decides the order and the crops.
        first_step: batches to pass over, at no cost.

    Yields:
        `images` uint8 [B, S, S, 3], random crops; `comment_labels` int32 [B, M], filled up with -1; `comment_weights`
        float32 [B, M]; `reaction_label` int32 [B], -1 for none; `post_id`, the salted hashes, [B] bytes.

    Raises:
        UserError: a record is damaged, or its image can't be decoded.
    """
    counts = [shard["examples"] for shard in manifest["shards"]]
    paths = np.array([str(Path(folder) / shard["name"]) for shard in manifest["shards"]])
    examples, labels = sum(counts), max(manifest["max_comment_labels"], 1)
    threads = config.threads or os.cpu_count() or 1

    def groups() -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        first = first_step * batch_size
        epoch, skip = divmod(first, examples)
        while True:
            for shards, order in epoch_groups(counts, config.shuffle_shards, seed, epoch):
                if skip < len(order):
                    yield paths[shards], order[skip:], first
                    first += len(order) - skip
                skip = max(skip - len(order), 0)
            epoch += 1

    def read_group(files: tf.Tensor, order: tf.Tensor, first: tf.Tensor) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(files).batch(tf.int64.max).get_single_element()
        return tf.gather(records, order), first + tf.range(tf.size(order, tf.int64))

    def decode(record: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
        example = tf.io.parse_single_example(record, _FEATURES)
        image = decode_random_crop(
            example["image/encoded"],
            image_size=config.image_size,
            crop_area=tuple(config.crop_area),
            crop_ratio=tuple(config.crop_ratio),
            antialias=config.antialias,
            seed=tf.stack([tf.constant(seed, tf.int64), number]),
        )
        comment_labels = tf.sparse.to_dense(example["comments/labels"], default_value=-1)
        comment_weights = tf.sparse.to_dense(example["comments/weights"])
        padding = [[0, labels - tf.size(comment_labels)]]
        return {
            "images": image,
            "comment_labels": tf.ensure_shape(
                tf.pad(tf.cast(comment_labels, tf.int32), padding, constant_values=-1), [labels]
            ),
            "comment_weights": tf.ensure_shape(tf.pad(comment_weights, padding), [labels]),
            "reaction_label": tf.cast(example["reactions/label"], tf.int32),
            "post_id": example["post_id"],
        }

    signature = (
        tf.TensorSpec([None], tf.string),
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([], tf.int64),
    )
    dataset = tf.data.Dataset.from_generator(groups, output_signature=signature)
    dataset = dataset.map(read_group).prefetch(1).unbatch()
    dataset = dataset.map(decode, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.deterministic = True
    try:
        yield from dataset.with_options(options).as_numpy_iterator()
    except tf.errors.OpError as error:
        # The first line names the whole pipeline before it comes to the point.
        reason = error.message.splitlines()[0].rsplit(": ", 1)[-1][:200]
        raise UserError(
            f"A record of the shards {folder} can't be read ({reason}): copy them again, or make them again with "
            f"`{MADE_BY}`."
        ) from error
