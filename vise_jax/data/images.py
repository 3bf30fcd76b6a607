"""Images from bytes to pixels: random crops for training, the fixed centre crop for evaluation.

Orientation tags (EXIF) are ignored and transparency is dropped, as torchvision's image folders do.
"""

import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from vise_jax.data.downstream import ImageSet
from vise_jax.errors import UserError

INTERPOLATIONS = ("bilinear", "bicubic")


def decode_random_crop(
    encoded: tf.Tensor,
    image_size: int,
    crop_area: tuple[float, float],
    crop_ratio: tuple[float, float],
    antialias: bool,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Decode a random crop of a JPEG or PNG image and resize it to a square (random-resized-crop).

    Only the crop of a JPEG is decoded. Stateless: the same seed gives the same crop.

    Args:
        encoded: string scalar, the file's bytes.
        image_size: side of the result.
        crop_area: range of the crop's area, as a share of the image's.
        crop_ratio: range of its width divided by its height. Where ten draws don't fit, the whole image is the crop.
        antialias: low-pass filter when the crop shrinks.
        seed: int32 [2].

    Returns:
        uint8 [image_size, image_size, 3].
    """

    def box(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=crop_ratio,
            area_range=crop_area,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return begin, size

    def crop_jpeg() -> tf.Tensor:
        begin, size = box(tf.io.extract_jpeg_shape(encoded))
        return tf.image.decode_and_crop_jpeg(encoded, tf.concat([begin[:2], size[:2]], 0), channels=3)

    def crop_png() -> tf.Tensor:
        image = tf.io.decode_png(encoded, channels=3)
        begin, size = box(tf.shape(image))
        return tf.slice(image, begin, size)

    crop = tf.cond(tf.image.is_jpeg(encoded), crop_jpeg, crop_png)
    crop.set_shape([None, None, 3])
    resized = tf.image.resize(crop, [image_size, image_size], method="bilinear", antialias=antialias)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def decode_for_evaluation(encoded: tf.Tensor, resize: int, crop: int, interpolation: str) -> tf.Tensor:
    """Decode a whole JPEG or PNG image, resize its shorter side, and cut out the centre.

    Equals Pillow's decoding and resizing, and torchvision's `Resize` and `CenterCrop`, up to rounding in the resize.

    Args:
        encoded: string scalar, the file's bytes.
        resize: length of the shorter side after resizing; the longer one follows, rounded down.
        crop: side of the result, at most `resize`.
        interpolation: one of `INTERPOLATIONS`, with a low-pass filter when the image shrinks.

    Returns:
        uint8 [crop, crop, 3].
    """
    image = tf.cond(
        tf.image.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_png(encoded, channels=3),
    )
    image.set_shape([None, None, 3])
    shape = tf.shape(image, tf.int64)[:2]
    shape = tf.cast(shape * resize // tf.reduce_min(shape), tf.int32)
    image = tf.image.resize(image, shape, method=interpolation, antialias=True)
    image = tf.saturate_cast(tf.round(image), tf.uint8)
    # tf.round rounds halves to even, as Python's round does in torchvision.
    top, left = tf.unstack(tf.cast(tf.round(tf.cast(shape - crop, tf.float32) / 2), tf.int32))
    return tf.ensure_shape(image[top : top + crop, left : left + crop], [crop, crop, 3])


def batches(
    images: ImageSet,
    indices: Sequence[int] | np.ndarray,
    preprocessing: Mapping[str, Any],
    batch_size: int,
    threads: int,
    max_image_pixels: int,
) -> Iterator[np.ndarray]:
    """Decode images for evaluation, in the order of `indices`, each once.

    Args:
        images: the set they come from.
        indices: int [N], which of them.
        preprocessing: `resize`, `crop` and `interpolation`, as for `decode_for_evaluation`.
        batch_size: images in each batch but the last, which holds what is left.
        threads: threads that decode; 0 = one per core.
        max_image_pixels: an image with more, as it is or resized, is refused before it is decoded.

    Yields:
        uint8 [at most batch_size, crop, crop, 3].

    Raises:
        UserError: an image that can't be read or decoded, by name; or preprocessing that is not supported.
    """
    settings = preprocessing["resize"], preprocessing["crop"], preprocessing["interpolation"]
    if settings[2] not in INTERPOLATIONS:
        raise UserError(f"The interpolation {settings[2]!r} is not supported: use {' or '.join(INTERPOLATIONS)}.")
    if settings[1] > settings[0]:
        raise UserError(f"A crop of {settings[1]} from images resized to {settings[0]} leaves their edges: crop less.")

    def encoded() -> Iterator[bytes]:
        for index in indices:
            yield _read_bounded(images, int(index), settings[0], max_image_pixels)

    threads = threads or os.cpu_count() or 1
    dataset = tf.data.Dataset.from_generator(encoded, output_signature=tf.TensorSpec([], tf.string))
    dataset = dataset.map(lambda one: decode_for_evaluation(one, *settings), num_parallel_calls=threads)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    dataset = dataset.batch(batch_size).prefetch(2).with_options(options)
    done = 0
    try:
        for batch in dataset.as_numpy_iterator():
            yield batch
            done += len(batch)
    except tf.errors.OpError:
        # tf.data doesn't say which image it was: the first one of this batch that fails again.
        for index in indices[done : done + batch_size]:
            one = _read_bounded(images, int(index), settings[0], max_image_pixels)
            try:
                decode_for_evaluation(tf.constant(one), *settings)
            except tf.errors.OpError as error:
                raise UserError(f"{_named(images, int(index))} can't be decoded: replace it or drop it.") from error
        raise


def _read_bounded(images: ImageSet, index: int, resize: int, max_pixels: int) -> bytes:
    """Read an image file whose header promises a JPEG or PNG image that stays within `max_pixels`."""
    encoded = images.read(index)
    too_large = f"{_named(images, index)} has more than {max_pixels:,} pixels (max_image_pixels), as it is or resized."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as header:
                shorter, longer = sorted(header.size)
    except Image.DecompressionBombError as error:
        raise UserError(too_large) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{_named(images, index)} is no JPEG or PNG image: replace it or drop it.") from error
    # A line of pixels, a thousand times longer than it is wide, only grows large when it is resized.
    if max(shorter * longer, resize * resize * longer // max(shorter, 1)) > max_pixels:
        raise UserError(too_large)
    return encoded


def _named(images: ImageSet, index: int) -> str:
    return f"The image {images.names[index]} in {images.title}"
