"""Leak check: evaluation images that pre-training has seen, by perceptual hash."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vise_jax.data import perceptual, shards
from vise_jax.data.datasets import Dataset
from vise_jax.data.formats import DAMAGE
from vise_jax.data.images import FORMATS, read_bounded
from vise_jax.errors import UserError
from vise_jax.labeling.tables import read_table
from vise_jax.machine import available_cpus
from vise_jax.progress import Progress

# Pairs of hashes that are compared at a time.
_MAX_PAIRS = 1 << 24


class Leaks(NamedTuple):
    """Evaluation images with a near-duplicate among the training examples.

    Attributes:
        indices: int64 [L], of the images, ascending.
        distances: int64 [L], Hamming distance to the nearest training example.
        compared: number of images with a hash; those that can't be decoded have none.
        examples: number of training examples.
    """

    indices: np.ndarray
    distances: np.ndarray
    compared: int
    examples: int


def find(dataset: Dataset, directory: Path, *, max_distance: int, threads: int, max_image_pixels: int) -> Leaks:
    """Find the images of a dataset whose hash is near that of a training example.

    Every pair is compared: N images and M examples take N · M / 10⁹ seconds or so, and 8 (N + M) bytes.

    Args:
        dataset: the evaluation images.
        directory: of engagement shards.
        max_distance: largest number of differing bits, of 64.
        threads: number of decoding threads; 0 = one per available CPU.
        max_image_pixels: larger images have no hash.

    Raises:
        UserError: shards without hashes, which were labeled by an earlier version.
    """
    known = np.unique(training_hashes(directory))
    hashes = _hashes(dataset, threads, max_image_pixels)
    hashed = np.array([value is not None for value in hashes])
    values = np.array([value for value in hashes if value is not None], np.uint64)
    nearest = np.full(len(values), 64)
    rows = max(_MAX_PAIRS // max(len(values), 1), 1)
    for start in range(0, len(known), rows):
        differing = np.bitwise_count(values[:, None] ^ known[None, start : start + rows])
        nearest = np.minimum(nearest, differing.min(axis=1))
    near = nearest <= max_distance
    examples = shards.read_manifest(directory)["examples"]
    return Leaks(np.flatnonzero(hashed)[near], nearest[near], len(values), examples)


def training_hashes(directory: Path) -> np.ndarray:
    """Return the perceptual hashes of the training examples of shards, uint64 [M].

    Raises:
        UserError: shards without hashes.
    """
    hashes = []
    for shard in shards.read_manifest(directory)["shards"]:
        name = shard["name"].removesuffix(".tfrecord")
        table = read_table(directory / "records" / f"{name}.safetensors", frozenset({"post_ids"}))
        if "image_hashes" not in table:
            raise UserError(
                f"The shards {directory} have no perceptual hashes: label the posts again with label.py run."
            )
        hashes.append(table["image_hashes"])
    return np.concatenate(hashes)


def _hashes(dataset: Dataset, threads: int, max_image_pixels: int) -> list[int | None]:
    def of_image(index: int) -> int | None:
        with contextlib.suppress(UserError, *DAMAGE):
            return perceptual.hash_file(read_bounded(dataset, index, 1, max_image_pixels), FORMATS)
        return None

    hashes = []
    with (
        ThreadPoolExecutor(threads or available_cpus()) as pool,
        Progress("hash images", len(dataset), "images") as progress,
    ):
        for value in pool.map(of_image, range(len(dataset))):
            hashes.append(value)
            progress.advance(1)
    return hashes
