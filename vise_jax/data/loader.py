"""Batches for pre-training, read from engagement shards.

A position in the data is a function of (seed, example number, batch size, manifest): example number t is the
(t mod N)-th of epoch t // N. So a run resumes anywhere by reading one shuffle window, and every example of an epoch
comes once. The row of an example decides which process reads it: the order does not depend on the number of processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vise_jax.data import decoding, deletions, shards
from vise_jax.data.crops import decode_window, random_windows
from vise_jax.data.decoding import Batch, Chunk
from vise_jax.data.epoch_order import Shuffle, windows
from vise_jax.data.formats import DAMAGE
from vise_jax.data.images import decode_for_evaluation
from vise_jax.data.records import CorruptExamples, read_index, read_records
from vise_jax.errors import UserError
from vise_jax.preprocessing import Preprocessing

# Threads that read shards, for storage that answers slowly.
_READERS = 16


def batches(
    directory: Path,
    manifest: dict[str, Any],
    *,
    batch_size: int,
    seed: int,
    corrupt: CorruptExamples,
    shuffle: Shuffle,
    image_size: int,
    crop_area: tuple[float, float],
    crop_ratio: tuple[float, float],
    antialias: bool,
    scaled_decoding: bool = False,
    threads: int = 0,
    first_step: int = 0,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yield batches without end, from step `first_step` on.

    A batch may hold the end of an epoch and the beginning of the next. A corrupt example is replaced by a black image
    without labels and with an empty `post_id`, so that no other example moves. So is an example that was deleted since
    `manifest`, also during the iteration.

    Args:
        directory: the engagement shards.
        manifest: their manifest, from `shards.read_manifest` or `deletions.as_of`.
        batch_size: examples in a batch over all processes, B.
        seed: decides the order and the crops.
        corrupt: log of the corrupt examples.
        shuffle: the order of an epoch, see `epoch_order.windows`.
        image_size: side of the crops, S, in pixels.
        crop_area: range of the area of a crop, as a fraction of the image's.
        crop_ratio: range of its aspect ratio.
        antialias: whether crops that shrink are antialiased.
        scaled_decoding: whether large JPEG images are decoded at a smaller scale, see `crops.decode_random_crop`.
        threads: decoding threads; 0 = one per available CPU.
        first_step: number of batches to skip, at no cost.
        rows: int [L], ascending: the rows of each batch to yield, those of this process; None = all, L = B.

    Yields:
        `images` uint8 [L, S, S, 3], random crops; `comment_labels` int32 [L, M], padded with -1; `comment_weights`
        float32 [L, M]; `reaction_label` int32 [L], -1 for none; `post_id`, the salted hashes, [L] bytes.

    Raises:
        UserError: a shard is missing, or of another labeler.
    """
    described = list(manifest["shards"])
    counts = [shard["examples"] for shard in described]
    is_local = _mask(batch_size, rows)
    read = _reader(directory, described, corrupt, 2 * shuffle.shards, manifest.get("fingerprint", ""))

    place = partial(random_windows, seed=seed, crop_area=crop_area, crop_ratio=crop_ratio)
    parse = decoding.parser(manifest)

    def parse_and_place(records: tf.Tensor, numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        columns = parse(records, numbers)
        # Of many images together: as operations of TensorFlow on each image, this takes as long as to decode it.
        window = tf.numpy_function(place, [columns["image/encoded"], numbers], tf.int32, stateful=False)
        return columns | {"image/window": tf.ensure_shape(window, [None, 6])}

    def crop(encoded: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        return decode_window(encoded, window, image_size, antialias, scaled_decoding)

    def chunks(step: int) -> Iterator[Chunk]:
        epoch, skip = divmod(step * batch_size, sum(counts))
        while True:
            first = epoch * sum(counts) + skip
            for shard, record in windows(counts, shuffle, seed, epoch, batch_size, skip):
                numbers = np.arange(first, first + len(record))
                local = is_local[numbers % batch_size]
                yield read(shard[local], record[local], numbers[local])
                first += len(record)
            epoch, skip = epoch + 1, 0

    crop_or_black = decoding.or_black(crop, image_size)
    size = int(is_local.sum())
    return decoding.decoded(
        chunks, parse_and_place, crop_or_black, directory, described, corrupt, first_step, size, threads
    )


def validation_batches(
    directory: Path,
    manifest: dict[str, Any],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    corrupt: CorruptExamples,
    threads: int = 0,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yield each example of the validation shards once, as a center crop; see `batches`.

    The last batch is padded with black images without labels. Examples that were deleted since `manifest` are left out.

    Args:
        preprocessing: its `resize`, `crop` and `interpolation`.
    """
    described = manifest["validation"]["shards"]
    if not all((directory / entry["name"]).exists() for entry in described):
        # A deletion has replaced them since the run began.
        described = shards.read_manifest(directory, damaged=True)["validation"]["shards"]
    is_local = _mask(batch_size, rows)
    read = _reader(directory, described, corrupt, 1, "")

    def pixels(encoded: bytes | np.ndarray) -> np.ndarray:
        try:
            # Outside of tf.data, the bytes come in an array.
            content = encoded if isinstance(encoded, bytes) else encoded.item()
            return decode_for_evaluation(content, preprocessing.resize, preprocessing.crop, preprocessing.interpolation)
        except DAMAGE as error:
            raise tf.errors.InvalidArgumentError(None, None, "no whole JPEG or PNG image") from error

    def crop(encoded: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(pixels, [encoded], tf.uint8)

    def chunks(step: int) -> Iterator[Chunk]:
        first = 0
        for shard, entry in enumerate(described):
            numbers = np.arange(max(first, step * batch_size), first + entry["examples"])
            numbers = numbers[is_local[numbers % batch_size]]
            yield read(np.full(len(numbers), shard), numbers - first, numbers)
            first += entry["examples"]
        padding = np.arange(first, -(-first // batch_size) * batch_size)
        padding = padding[is_local[padding % batch_size]]
        yield np.full(len(padding), b"", object), padding, np.zeros((len(padding), 2), np.int64)

    crop_or_black = decoding.or_black(crop, preprocessing.crop)
    size = int(is_local.sum())
    return decoding.decoded(
        chunks, decoding.parser(manifest), crop_or_black, directory, described, corrupt, 0, size, threads
    )


def _mask(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    """Return which rows of a batch are this process's, bool [B]."""
    mask = np.full(batch_size, rows is None)
    mask[slice(0) if rows is None else rows] = True
    return mask


def _reader(
    directory: Path, described: list[dict[str, Any]], corrupt: CorruptExamples, indices: int, fingerprint: str
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Chunk]:
    """Return a function that reads records by shard and number.

    Args:
        directory: the engagement shards.
        described: their descriptions, replaced when a deletion removes a shard.
        corrupt: log of the corrupt examples.
        indices: number of shards whose index stays in memory.
        fingerprint: of the manifest that the record numbers are of.
    """
    index = lru_cache(maxsize=indices)(read_index)

    def read_shard(entry: Mapping[str, Any], numbers: Sequence[int]) -> tuple[list[bytes], dict[int, str]]:
        path = directory / entry["name"]
        return read_records(path, index(path, entry.get("stored", entry["examples"])), numbers)

    def read(shard: np.ndarray, record: np.ndarray, numbers: np.ndarray) -> Chunk:
        records = np.full(len(numbers), b"", object)
        stored = np.array(record)
        rows: list[np.ndarray] = []
        entries: list[Mapping[str, Any]] = []
        for number in np.unique(shard):
            of_shard = np.flatnonzero(shard == number)
            entry = described[number]
            if "positions" in entry:
                stored[of_shard] = entry["positions"][record[of_shard]]
                of_shard = of_shard[stored[of_shard] >= 0]
            if len(of_shard):
                rows.append(of_shard[np.argsort(stored[of_shard], kind="stable")])
                entries.append(entry)
        with ThreadPoolExecutor(_READERS) as pool:
            contents = list(pool.map(read_shard, entries, [stored[ordered].tolist() for ordered in rows]))
        for entry, ordered, (data, reasons) in zip(entries, rows, contents, strict=True):
            for number, reason in sorted(reasons.items()):
                corrupt.add(entry["name"], number, reason)
            known = [(entry["name"], number) in corrupt for number in stored[ordered].tolist()]
            records[ordered] = [b"" if is_known else content for content, is_known in zip(data, known, strict=True)]
        return records, numbers, np.stack([shard, stored], axis=1)

    def read_current(shard: np.ndarray, record: np.ndarray, numbers: np.ndarray) -> Chunk:
        try:
            return read(shard, record, numbers)
        except UserError:
            # A deletion replaces shards while a run reads them.
            current = deletions.as_of(shards.read_manifest(directory, damaged=True), fingerprint)["shards"]
            if [entry["name"] for entry in current] == [entry["name"] for entry in described]:
                raise
            described[:] = current
            return read(shard, record, numbers)

    return read_current if fingerprint else read
