"""Decode images for evaluation: the fixed center crop, by Pillow, since published numbers depend on its rounding.

Orientation tags (EXIF) are ignored and transparency is dropped, as in torchvision's `ImageFolder`.
"""

import collections
import io
import itertools
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from vise_jax.data.datasets import Dataset
from vise_jax.data.formats import DAMAGE, to_rgb
from vise_jax.errors import UserError
from vise_jax.machine import available_cpus
from vise_jax.preprocessing import Preprocessing

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Formats that are decoded. Of several frames the first is used.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
# Every caller bounds the number of pixels.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Number of images to read and decode ahead, while the device works.
_AHEAD = 128
# Number of corrupt images that an error names.
_NAMED = 10


def decode_for_evaluation(encoded: bytes, resize: int, crop: int, interpolation: str) -> np.ndarray:
    """Decode an image, resize its shorter side, and crop its center.

    The result is bit-equal to torchvision's `Resize` and `CenterCrop` on a Pillow image in RGB: two passes with
    fixed-point weights, horizontal first, each rounded to 8 bits.

    Args:
        encoded: the image file.
        resize: length of the shorter side after resizing. The longer side keeps the aspect ratio, rounded down.
        crop: side of the result, at most `resize`.
        interpolation: a key of `INTERPOLATIONS`. Images that shrink are antialiased.

    Returns:
        uint8 [crop, crop, 3].

    Raises:
        one of `DAMAGE`: a truncated or corrupt file.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as file:
        image = to_rgb(file)
    width, height = (side * resize // min(image.size) for side in image.size)
    # Round half to even, as torchvision.
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    resized = image.resize((width, height), INTERPOLATIONS[interpolation])
    return np.asarray(resized.crop((left, top, left + crop, top + crop)))


def decode_each(
    dataset: Dataset,
    indices: Sequence[int] | np.ndarray,
    preprocessing: Preprocessing,
    threads: int,
    max_image_pixels: int,
) -> Generator[np.ndarray | UserError]:
    """Decode images for evaluation, in the order of `indices`.

    Args:
        dataset: the dataset.
        indices: int [N], the examples to decode.
        preprocessing: `resize`, `crop` and `interpolation`, as for `decode_for_evaluation`.
        threads: number of threads that read and decode; 0 = one per available CPU.
        max_image_pixels: reject an image with more pixels, as it is or resized, before it is decoded.

    Yields:
        uint8 [crop, crop, 3]; for a corrupt image the error that names it.

    Raises:
        UserError: the crop is larger than the resized images.
    """
    resize, crop, interpolation = preprocessing.resize, preprocessing.crop, preprocessing.interpolation
    if crop > resize:
        raise UserError(f"A crop of {crop} from images resized to {resize} leaves their edges: crop less.")

    def decoded(index: int) -> np.ndarray | UserError:
        try:
            encoded = read_bounded(dataset, index, resize, max_image_pixels)
            return decode_for_evaluation(encoded, resize, crop, interpolation)
        except UserError as error:
            return error
        except DAMAGE:
            return UserError(f"{named(dataset, index)} can't be decoded: replace it or drop it.")

    # Pillow releases Python's lock while it decodes and resizes.
    with ThreadPoolExecutor(threads or available_cpus()) as pool:
        waiting: collections.deque[Future[np.ndarray | UserError]] = collections.deque()
        try:
            for index in indices:
                waiting.append(pool.submit(decoded, int(index)))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(
    dataset: Dataset,
    indices: Sequence[int] | np.ndarray,
    preprocessing: Preprocessing,
    batch_size: int,
    threads: int,
    max_image_pixels: int,
) -> Iterator[np.ndarray]:
    """Decode images for evaluation in batches, in the order of `indices`.

    Args:
        dataset: the dataset.
        indices: int [N], the examples to decode.
        preprocessing: as for `decode_each`.
        batch_size: number of images of a batch; the last batch may be smaller.
        threads: as for `decode_each`.
        max_image_pixels: as for `decode_each`.

    Yields:
        uint8 [batch_size, crop, crop, 3].

    Raises:
        UserError: the crop is larger than the resized images; or corrupt images, all of which are named after the last
            one is decoded.
    """
    batch: list[np.ndarray] = []
    corrupt: dict[str, str] = {}
    decoded = decode_each(dataset, indices, preprocessing, threads, max_image_pixels)
    for index, image in zip(indices, decoded, strict=True):
        if isinstance(image, UserError):
            corrupt[dataset.names[index]] = str(image)
        elif not corrupt:
            batch.append(image)
            if len(batch) == batch_size:
                yield np.stack(batch)
                batch = []
    if corrupt:
        raise UserError(describe_corrupt(dataset, corrupt))
    if batch:
        yield np.stack(batch)


def describe_corrupt(dataset: Dataset, corrupt: Mapping[str, str]) -> str:
    """Return a sentence that names corrupt images.

    Args:
        dataset: the dataset.
        corrupt: the reason by image name, at least one.
    """
    if len(corrupt) == 1:
        return next(iter(corrupt.values()))
    names = f"{', '.join(itertools.islice(corrupt, _NAMED))}{', …' if len(corrupt) > _NAMED else ''}"
    return (
        f"{len(corrupt):,} of {len(dataset):,} images in {dataset.title} can't be read or decoded ({names}): replace "
        "them or drop them."
    )


def read_bounded(dataset: Dataset, index: int, resize: int, max_pixels: int) -> bytes:
    """Read an encoded image whose header states at most `max_pixels` pixels.

    Args:
        dataset: the dataset.
        index: the example.
        resize: length of the shorter side after resizing.
        max_pixels: maximum number of pixels of the image, as it is and resized.

    Raises:
        UserError: the image can't be read, has another format, or is too large. The message names it.
    """
    encoded = dataset.read(index)
    too_large = f"{named(dataset, index)} has more than {max_pixels:,} pixels (max_image_pixels), as it is or resized."
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as header:
            shorter, longer = sorted(header.size)
    except Image.DecompressionBombError as error:
        raise UserError(too_large) from error
    except DAMAGE as error:
        raise UserError(f"{named(dataset, index)} is no image that can be read: replace it or drop it.") from error
    # A line of pixels becomes large only when its shorter side is resized.
    if max(shorter * longer, resize * resize * longer // max(shorter, 1)) > max_pixels:
        raise UserError(too_large)
    return encoded


def thumbnail(dataset: Dataset, index: int, side: int, max_pixels: int) -> bytes:
    """Return a JPEG thumbnail without metadata, at most `side` pixels wide and high.

    Args:
        dataset: the dataset.
        index: the example.
        side: maximum width and height in pixels.
        max_pixels: reject an image with more pixels before it is decoded.

    Raises:
        UserError: the image can't be read or decoded. The message names it.
    """
    encoded = read_bounded(dataset, index, 1, max_pixels)
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            image.draft("RGB", (side, side))
            small = to_rgb(image)
    except DAMAGE as error:
        raise UserError(f"{named(dataset, index)} can't be decoded: replace it or drop it.") from error
    small.thumbnail((side, side))
    file = io.BytesIO()
    # Pillow copies a JPEG's comment unless another is given.
    small.save(file, "JPEG", quality=80, comment=b"")
    return file.getvalue()


def named(dataset: Dataset, index: int) -> str:
    """Return the subject of a message about an image."""
    return f"The image {dataset.names[index]} in {dataset.title}"
