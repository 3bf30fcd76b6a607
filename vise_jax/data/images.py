"""Images from bytes to the fixed center crop of evaluation, by Pillow: published numbers depend on its rounding.

Orientation tags (EXIF) are ignored and transparency is dropped, as torchvision's image directories do.
"""

import collections
import io
import struct
import warnings
import zlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from vise_jax.data.datasets import Dataset
from vise_jax.data.formats import to_rgb
from vise_jax.errors import UserError
from vise_jax.machine import available_cpus
from vise_jax.preprocessing import Preprocessing

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# What Pillow reads of people's images; of several frames the first.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
# What Pillow raises on files that are cut off or damaged, depending on where.
DAMAGE = (OSError, SyntaxError, ValueError, IndexError, struct.error, zlib.error)
# The caller says how many pixels an image may have.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Images that are read and decoded before they are asked for, while the device works.
_AHEAD = 128


def decode_for_evaluation(encoded: bytes, resize: int, crop: int, interpolation: str) -> np.ndarray:
    """Decode an image, resize its shorter side, and crop its center.

    Equal to torchvision's `Resize` and `CenterCrop` on a Pillow image that was converted to RGB, to the bit: two passes
    with fixed-point weights, the horizontal one first, rounded to 8 bits after each.

    Args:
        encoded: the file's bytes.
        resize: length of the shorter side after resizing; the longer one follows, rounded down.
        crop: side of the result, at most `resize`.
        interpolation: one of `INTERPOLATIONS`, with a low-pass filter when the image shrinks.

    Returns:
        uint8 [crop, crop, 3].
    """
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as file:
        image = to_rgb(file)
    width, height = (side * resize // min(image.size) for side in image.size)
    # Python's round takes halves to the even number, as in torchvision.
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    resized = image.resize((width, height), INTERPOLATIONS[interpolation])
    return np.asarray(resized.crop((left, top, left + crop, top + crop)))


def decode_each(
    images: Dataset,
    indices: Sequence[int] | np.ndarray,
    preprocessing: Preprocessing,
    threads: int,
    max_image_pixels: int,
) -> Generator[np.ndarray | UserError]:
    """Decode images for evaluation, in the order of `indices`, each once.

    Args:
        images: the set they come from.
        indices: int [N], which of them.
        preprocessing: `resize`, `crop` and `interpolation`, as for `decode_for_evaluation`.
        threads: threads that read and decode; 0 = one per core.
        max_image_pixels: an image with more, as it is or resized, is refused before it is decoded.

    Yields:
        uint8 [crop, crop, 3]; or what is wrong with an image that can't be read or decoded, by name, so that one among
        thousands need not end a job.

    Raises:
        UserError: the crop is larger than the resized images.
    """
    resize, crop, interpolation = preprocessing.resize, preprocessing.crop, preprocessing.interpolation
    if crop > resize:
        raise UserError(f"A crop of {crop} from images resized to {resize} leaves their edges: crop less.")

    def decoded(index: int) -> np.ndarray | UserError:
        try:
            encoded = read_bounded(images, index, resize, max_image_pixels)
            return decode_for_evaluation(encoded, resize, crop, interpolation)
        except UserError as error:
            return error
        except DAMAGE:
            return UserError(f"{_named(images, index)} can't be decoded: replace it or drop it.")

    # Pillow lets go of Python's lock while it decodes and resizes.
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
    images: Dataset,
    indices: Sequence[int] | np.ndarray,
    preprocessing: Preprocessing,
    batch_size: int,
    threads: int,
    max_image_pixels: int,
) -> Iterator[np.ndarray]:
    """As `decode_each`, in batches: uint8 [batch_size, crop, crop, 3], the last one with what is left.

    Raises:
        UserError: also for the first image that can't be read or decoded, by name.
    """
    batch: list[np.ndarray] = []
    for image in decode_each(images, indices, preprocessing, threads, max_image_pixels):
        if isinstance(image, UserError):
            raise image
        batch.append(image)
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def read_bounded(images: Dataset, index: int, resize: int, max_pixels: int) -> bytes:
    """Read an image file whose header promises an image that stays within `max_pixels`.

    Args:
        images: the set it comes from.
        index: which of them.
        resize: length of its shorter side after resizing.
        max_pixels: an image with more, as it is or resized, is refused.

    Raises:
        UserError: names the image that can't be read, is of another format, or is too large.
    """
    encoded = images.read(index)
    too_large = f"{_named(images, index)} has more than {max_pixels:,} pixels (max_image_pixels), as it is or resized."
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as header:
            shorter, longer = sorted(header.size)
    except Image.DecompressionBombError as error:
        raise UserError(too_large) from error
    except DAMAGE as error:
        raise UserError(f"{_named(images, index)} is no image that can be read: replace it or drop it.") from error
    # A line of pixels, a thousand times longer than it is wide, only grows large when it is resized.
    if max(shorter * longer, resize * resize * longer // max(shorter, 1)) > max_pixels:
        raise UserError(too_large)
    return encoded


def thumbnail(images: Dataset, index: int, side: int, max_pixels: int) -> bytes:
    """A small picture of an image for people to look at: a JPEG file without anything else, at most `side` pixels wide
    and high.

    Args:
        images: the set it comes from.
        index: which of them.
        side: in pixels.
        max_pixels: an image with more is refused before it is decoded.

    Raises:
        UserError: names the image that can't be read or decoded.
    """
    encoded = read_bounded(images, index, 1, max_pixels)
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            image.draft("RGB", (side, side))
            small = to_rgb(image)
    except DAMAGE as error:
        raise UserError(f"{_named(images, index)} can't be decoded: replace it or drop it.") from error
    small.thumbnail((side, side))
    file = io.BytesIO()
    # Pillow hands on a JPEG's comment, unlike its EXIF data.
    small.save(file, "JPEG", quality=80, comment=b"")
    return file.getvalue()


def _named(images: Dataset, index: int) -> str:
    return f"The image {images.names[index]} in {images.title}"
