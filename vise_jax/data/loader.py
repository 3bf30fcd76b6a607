"""Batches for pre-training, read from engagement shards.

A place in the data is a function of (seed, example number, batch size, manifest): example number t is the (t mod N)-th
of epoch t // N, so that a run resumes anywhere by reading one group of shards, and every example of an epoch comes
once. Which process reads an example follows from its row in the batch: the order does not depend on their number.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from vise_jax.data.crops import decode_random_crop
from vise_jax.data.images import DAMAGE, decode_for_evaluation
from vise_jax.data.records import CorruptExamples, read_shard
from vise_jax.data.shards import MADE_BY
from vise_jax.errors import UserError
from vise_jax.machine import available_cpus

Batch = dict[str, np.ndarray]
# Records, [R] bytes, empty for a damaged one; the number of each example in the run, int64 [R]; and where it comes
# from: index of its shard and of the record in it, int64 [R, 2].
Part = tuple[np.ndarray, np.ndarray, np.ndarray]
# From records, string [R], to columns; from an encoded image and the example's number to uint8 [S, S, 3].
Parse = Callable[[tf.Tensor], dict[str, tf.Tensor]]
Crop = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# The defaults are for empty records; a record that lacks its image is an error.
_FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string, ""),
    "post_id": tf.io.FixedLenFeature([], tf.string, ""),
    "comments/labels": tf.io.VarLenFeature(tf.int64),
    "comments/weights": tf.io.VarLenFeature(tf.float32),
    "reactions/label": tf.io.FixedLenFeature([], tf.int64, -1),
}
_PARSED_TOGETHER = 128


def epoch_groups(
    examples_per_shard: list[int], shuffle_shards: int, seed: int, epoch: int, batch_size: int, skip: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The order of one epoch: shards in random order, and the records of `shuffle_shards` of them at a time shuffled.

    A group of S shards is cut into S lanes of consecutive records, and the rows of a batch into as many runs: run i is
    drawn from lane i. So a batch mixes records of all S shards, while a process, which has consecutive rows, reads
    those of its lanes only.

    Each group is ordered when it is asked for, and those that end before the first `skip` examples of the epoch not at
    all: an epoch of hundreds of millions is entered anywhere within seconds.

    Yields:
        For each group its shards, int64 [S], and the order in which the records of these shards, one shard behind the
        other, come, the skipped ones left out: int64 [R]. The same on any machine and with any NumPy: only the raw bits
        of Philox, whose stream is fixed, decide.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    counts = np.asarray(examples_per_shard, np.int64)
    shards = np.argsort(bits.random_raw(len(counts)), kind="stable")
    first = epoch * int(counts.sum())
    for start in range(0, len(shards), shuffle_shards):
        group = shards[start : start + shuffle_shards]
        size = int(counts[group].sum())
        random = bits.random_raw(size)
        if skip >= size:
            first, skip = first + size, skip - size
            continue
        lane = (first + np.arange(size)) % batch_size * shuffle_shards // batch_size
        # Both are sorted by lane: the places in their own order, the records shuffled within.
        places = np.argsort(lane, kind="stable")
        records = np.lexsort((random, lane[places]))
        order = np.empty(size, np.int64)
        order[places] = records
        yield group, order[skip:]
        first, skip = first + size, 0


def batches(
    folder: Path,
    manifest: dict[str, Any],
    config: ConfigDict,
    *,
    batch_size: int,
    seed: int,
    bad: CorruptExamples,
    first_step: int = 0,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yield batches without end, from the one of step `first_step` on.

    A batch may hold the end of an epoch and the beginning of the next. An example whose record or image is damaged
    keeps its place as a black image without labels and with an empty `post_id`, so that no other one moves.

    Args:
        folder: the engagement shards.
        manifest: their manifest, from `shards.read_manifest`.
        config: the `data` section.
        batch_size: examples in a batch over all processes, B.
        seed: decides the order and the crops.
        bad: where damaged examples are named.
        first_step: batches to pass over, at no cost.
        rows: int [L], sorted: the rows of each batch to yield, those of this process; None = all, L = B.

    Yields:
        `images` uint8 [L, S, S, 3], random crops; `comment_labels` int32 [L, M], filled up with -1; `comment_weights`
        float32 [L, M]; `reaction_label` int32 [L], -1 for none; `post_id`, the salted hashes, [L] bytes.

    Raises:
        UserError: too many examples are damaged, or a shard is gone.
    """
    counts = [shard["examples"] for shard in manifest["shards"]]
    ours = _mask(batch_size, rows)

    def crop(encoded: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        return decode_random_crop(
            encoded,
            image_size=config.image_size,
            crop_area=tuple(config.crop_area),
            crop_ratio=tuple(config.crop_ratio),
            antialias=config.antialias,
            seed=tf.stack([tf.constant(seed, tf.int64), number]),
        )

    def parts(step: int) -> Iterator[Part]:
        epoch, skip = divmod(step * batch_size, sum(counts))
        while True:
            first = epoch * sum(counts) + skip
            for group, order in epoch_groups(counts, config.shuffle_shards, seed, epoch, batch_size, skip):
                numbers = np.arange(first, first + len(order))
                mine = ours[numbers % batch_size]
                yield _read(folder, manifest["shards"], group, order[mine], numbers[mine], bad)
                first += len(order)
            epoch, skip = epoch + 1, 0

    crop_or_black = _or_black(crop, config.image_size)
    parse, size = _parser(manifest), int(ours.sum())
    return _decoded(parts, parse, crop_or_black, folder, manifest["shards"], bad, first_step, size, config.threads)


def validation_batches(
    folder: Path,
    manifest: dict[str, Any],
    config: ConfigDict,
    preprocessing: dict[str, Any],
    *,
    batch_size: int,
    bad: CorruptExamples,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yield the examples of the validation shards once, as center crops; see `batches`.

    The last batch is filled up with black images without labels.

    Args:
        preprocessing: an encoder's: `resize`, `crop`, `interpolation`.
    """
    shards = manifest["validation"]["shards"]
    ours = _mask(batch_size, rows)

    def pixels(encoded: bytes | np.ndarray) -> np.ndarray:
        try:
            # Outside of tf.data, the bytes come in an array.
            content = encoded if isinstance(encoded, bytes) else encoded.item()
            return decode_for_evaluation(content, *(preprocessing[key] for key in ("resize", "crop", "interpolation")))
        except DAMAGE as error:
            raise tf.errors.InvalidArgumentError(None, None, "no whole JPEG or PNG image") from error

    def crop(encoded: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(pixels, [encoded], tf.uint8)

    def parts(step: int) -> Iterator[Part]:
        first = 0
        for shard, described in enumerate(shards):
            numbers = np.arange(max(first, step * batch_size), first + described["examples"])
            mine = numbers[ours[numbers % batch_size]]
            yield _read(folder, shards, np.array([shard]), mine - first, mine, bad)
            first += described["examples"]
        filling = np.arange(first, -(-first // batch_size) * batch_size)
        filling = filling[ours[filling % batch_size]]
        yield np.full(len(filling), b"", object), filling, np.zeros((len(filling), 2), np.int64)

    crop_or_black = _or_black(crop, preprocessing["crop"])
    return _decoded(parts, _parser(manifest), crop_or_black, folder, shards, bad, 0, int(ours.sum()), config.threads)


def _mask(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    """Which rows of a batch are ours, bool [B]."""
    mask = np.full(batch_size, rows is None)
    mask[slice(0) if rows is None else rows] = True
    return mask


def _read(
    folder: Path,
    shards: list[dict[str, Any]],
    group: np.ndarray,
    order: np.ndarray,
    numbers: np.ndarray,
    bad: CorruptExamples,
) -> Part:
    """Read records of a group of shards in the given order; damaged ones are named and empty."""
    ends = np.cumsum([shards[shard]["examples"] for shard in group])
    place = np.searchsorted(ends, order, side="right")
    starts = np.concatenate([[0], ends])[place]
    origins = np.stack([group[place], order - starts], axis=1)
    records = np.empty(len(order), object)
    for shard in group:
        name, examples = shards[shard]["name"], shards[shard]["examples"]
        here = np.flatnonzero(origins[:, 0] == shard)
        if not len(here):
            continue
        inside = origins[here, 1].tolist()
        wanted = range(min(inside), max(inside) + 1)
        data, damaged = read_shard(folder / name, examples, wanted)
        for record in sorted(damaged.keys() & set(inside)):
            bad.add(name, record, damaged[record])
        records[here] = [b"" if (name, record) in bad else data[record - wanted.start] for record in inside]
    return records, numbers, origins


def _parser(manifest: dict[str, Any]) -> Parse:
    """From records, string [R], to the columns of a batch, with `image/encoded` in the place of `images`.

    An empty record becomes an example without image, labels and post id. Many at a time, since each operation of
    TensorFlow costs as much for one as for hundreds.
    """
    most = max(manifest["max_comment_labels"], 1)
    classes = {name: tf.constant(count, tf.int64) for name, count in manifest["classes"].items()}

    def parse(records: tf.Tensor) -> dict[str, tf.Tensor]:
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


def _or_black(crop: Crop, image_size: int) -> Crop:
    """As `crop`, but black where there is no image."""

    def crop_or_black(encoded: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        black = tf.zeros([image_size, image_size, 3], tf.uint8)
        pixels = tf.cond(tf.strings.length(encoded) > 0, lambda: crop(encoded, number), lambda: black)
        return tf.ensure_shape(pixels, [image_size, image_size, 3])

    return crop_or_black


def _padded(rows: tf.Tensor, width: int, value: float) -> tf.Tensor:
    """Fill [R, K] up to [R, width]; an error where K is larger."""
    padded = tf.pad(rows, [[0, 0], [0, width - tf.shape(rows)[1]]], constant_values=tf.constant(value, rows.dtype))
    return tf.ensure_shape(padded, [None, width])


def _decoded(
    parts: Callable[[int], Iterator[Part]],
    parse: Parse,
    crop: Crop,
    folder: Path,
    shards: list[dict[str, Any]],
    bad: CorruptExamples,
    step: int,
    size: int,
    threads: int,
) -> Iterator[Batch]:
    """Decode the parts from a step on into batches of so many examples; who can't be decoded is named, and black."""
    while True:
        try:
            for batch in _pipeline(parts(step), parse, crop, size, threads):
                yield batch
                step += 1
        except tf.errors.OpError as error:
            # tf.data doesn't say which example it was, but it is one of the next.
            if not _name_undecodable(parts(step), parse, crop, shards, bad, size):
                raise UserError(
                    f"The shards {folder} can't be read ({_reason(error)}): make them again with `{MADE_BY}`."
                ) from error
        else:
            return


def _pipeline(parts: Iterator[Part], parse: Parse, crop: Crop, size: int, threads: int) -> Iterator[Batch]:
    failures: list[UserError] = []

    def generate() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        try:
            for records, numbers, _ in _ahead(parts):
                for start in range(0, len(records), _PARSED_TOGETHER):
                    end = start + _PARSED_TOGETHER
                    yield records[start:end], numbers[start:end]
        except UserError as error:
            failures.append(error)
            raise

    def to_columns(records: tf.Tensor, numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        return parse(records) | {"number": numbers}

    def with_image(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        encoded, number = example.pop("image/encoded"), example.pop("number")
        return example | {"images": crop(encoded, number)}

    threads = threads or available_cpus()
    signature = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64))
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    dataset = dataset.map(to_columns).prefetch(1).unbatch()
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


def _ahead(parts: Iterator[Part]) -> Iterator[Part]:
    """The same parts, each read while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = pool.submit(next, parts, None)
            yield part


def _name_undecodable(
    parts: Iterator[Part], parse: Parse, crop: Crop, shards: list[dict[str, Any]], bad: CorruptExamples, size: int
) -> bool:
    """Try the next examples one by one, and name those that can't be decoded; whether there were any.

    Records are parsed together, so that one that can't be is an error before its batch: all near the next `size` are
    tried; images only of these.
    """
    known, left = len(bad), size
    for records, numbers, origins in parts:
        for place, (record, number, (shard, index)) in enumerate(zip(records, numbers, origins, strict=True)):
            if place >= left + _PARSED_TOGETHER:
                break
            try:
                encoded = parse(tf.constant([record]))["image/encoded"][0]
                if place < left:
                    crop(encoded, tf.constant(number, tf.int64))
            except tf.errors.OpError as error:
                bad.add(shards[shard]["name"], int(index), _reason(error))
        left -= len(records)
        if left <= -_PARSED_TOGETHER * 2:
            break
    return len(bad) > known


def _reason(error: tf.errors.OpError) -> str:
    """The point of an error: TensorFlow puts names of nodes before and behind it."""
    return re.sub(
        r"\{\{.*?\}\}|, value: .*|\[Op:.*|^assertion failed: \[|\].*", "", error.message.splitlines()[0]
    ).strip()[:200]
