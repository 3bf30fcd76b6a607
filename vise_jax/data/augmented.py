"""Batches of a labeled dataset for fine-tuning: random crops and flips by torchvision's laws, decoded by Pillow."""

import collections
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vise_jax.data.datasets import Dataset
from vise_jax.data.formats import DAMAGE, to_rgb
from vise_jax.data.images import FORMATS, INTERPOLATIONS, decode_for_evaluation, named, read_bounded
from vise_jax.errors import UserError
from vise_jax.machine import available_cpus
from vise_jax.preprocessing import Preprocessing

# Batches that are decoded ahead, while the device works.
_AHEAD = 3
# Random numbers of an example: a flip, and four for each of ten tries to place a crop.
_TRIES = 10
_DRAWS = 1 + 4 * _TRIES


@dataclass(frozen=True)
class Augmentation:
    """Random transformations of training images; the config keys of the same names have the defaults.

    Attributes:
        augment: "crop_flip" (random resized crop and flip), "flip" (center crop and flip) or "center".
        crop_area: range of the crop's area, as a fraction of the image's.
        crop_ratio: range of the crop's width divided by its height.
    """

    augment: str
    crop_area: tuple[float, float]
    crop_ratio: tuple[float, float]


def random_resized_crop_box(
    width: int, height: int, area: tuple[float, float], ratio: tuple[float, float], draws: np.ndarray
) -> tuple[int, int, int, int]:
    """Return the box of a random resized crop by torchvision's law.

    Area and logarithm of the aspect ratio are uniform. After ten boxes that don't fit, the largest central box whose
    aspect ratio is in the range is returned.

    Args:
        width: of the image.
        height: of the image.
        area: range of the box's area, as a fraction of the image's.
        ratio: range of its width divided by its height.
        draws: uniform in [0, 1), float64 [40].

    Returns:
        left, top, right and bottom.
    """
    for of_area, of_ratio, of_left, of_top in draws.reshape(_TRIES, 4).tolist():
        target = width * height * (area[0] + (area[1] - area[0]) * of_area)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * of_ratio)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(of_left * (width - w + 1)), int(of_top * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def decode_augmented(
    encoded: bytes, preprocessing: Preprocessing, augmentation: Augmentation, draws: np.ndarray
) -> np.ndarray:
    """Decode an image and transform it at random.

    Args:
        encoded: the image file.
        preprocessing: `resize`, `crop` and `interpolation`.
        augmentation: the transformations.
        draws: uniform in [0, 1), float64 [41].

    Returns:
        uint8 [crop, crop, 3].

    Raises:
        one of `formats.DAMAGE`: a truncated or corrupt file.
    """
    crop = preprocessing.crop
    if augmentation.augment == "crop_flip":
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as file:
            image = to_rgb(file)
        box = random_resized_crop_box(*image.size, augmentation.crop_area, augmentation.crop_ratio, draws[1:])
        pixels = np.asarray(image.crop(box).resize((crop, crop), INTERPOLATIONS[preprocessing.interpolation]))
    else:
        pixels = decode_for_evaluation(encoded, preprocessing.resize, crop, preprocessing.interpolation)
    flipped = augmentation.augment != "center" and draws[0] < 0.5
    return pixels[:, ::-1] if flipped else pixels


def order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the examples in an epoch, a permutation of `size`, int64."""
    return np.argsort(np.random.Philox(key=seed, counter=[0, 0, epoch, 1]).random_raw(size), kind="stable")


def batches(
    dataset: Dataset,
    rows: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    local_rows: np.ndarray | None = None,
    columns: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    preprocessing: Preprocessing | None,
    augmentation: Augmentation,
    threads: int,
    max_image_pixels: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield training batches without end, from a step on. Step, seed and rows decide every byte of a batch.

    Each epoch is a permutation of `rows`; a batch may hold the end of one epoch and the beginning of the next.

    Args:
        dataset: the dataset.
        rows: int [N], its training examples.
        batch_size: number of examples of a batch over all processes.
        seed: of order and augmentation.
        first_step: number of batches to skip.
        local_rows: rows of a batch to yield, int [L]; None = all.
        columns: from indices of examples, int [L], to the other columns of a batch, [L, ...].
        preprocessing: of the images; None = no images.
        augmentation: of the images.
        threads: number of decoding threads; 0 = one per available CPU.
        max_image_pixels: refuse larger images.

    Yields:
        `images` uint8 [L, S, S, 3], and `columns`.

    Raises:
        UserError: an image that can't be decoded.
    """
    local_rows = np.arange(batch_size) if local_rows is None else local_rows

    def positions(step: int) -> list[tuple[int, int]]:
        """Return epoch and example of the rows of a batch."""
        epochs, places = np.divmod(step * batch_size + local_rows, len(rows))
        orders = {epoch: order(len(rows), seed, epoch) for epoch in np.unique(epochs).tolist()}
        return [(epoch, int(rows[orders[epoch][at]])) for epoch, at in zip(epochs.tolist(), places, strict=True)]

    def image(epoch: int, index: int) -> np.ndarray:
        assert preprocessing is not None
        bits = np.random.Philox(key=seed, counter=[0, index, epoch, 2]).random_raw(_DRAWS)
        encoded = read_bounded(dataset, index, preprocessing.resize, max_image_pixels)
        try:
            return decode_augmented(encoded, preprocessing, augmentation, (bits >> 11) * 2.0**-53)
        except DAMAGE as error:
            raise UserError(f"{named(dataset, index)} can't be decoded: replace it or drop it.") from error

    # Pillow releases Python's lock while it decodes and resizes.
    with ThreadPoolExecutor(threads or available_cpus()) as pool:
        waiting: collections.deque[tuple[list[tuple[int, int]], list[Future[np.ndarray]]]] = collections.deque()
        try:
            for step in itertools.count(first_step):
                batch = positions(step)
                futures = [pool.submit(image, *position) for position in batch] if preprocessing else []
                waiting.append((batch, futures))
                if len(waiting) > _AHEAD:
                    batch, futures = waiting.popleft()
                    indices = np.array([index for _, index in batch])
                    images = {"images": np.stack([future.result() for future in futures])} if preprocessing else {}
                    yield {**images, **columns(indices)}
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()
