"""Random crops for training, decoded by TensorFlow.

Orientation tags (EXIF) are ignored and transparency is dropped, as torchvision's image directories do.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from vise_jax.data.formats import image_shape

# Boxes that are drawn before the crop is the largest central box, and the numbers of each: area, ratio, left and top.
_TRIES, _OF_A_TRY = 10, 4
# Scales at which libjpeg decodes, as divisors.
_DIVISORS = (1, 2, 4, 8)
# Pixels that are decoded around a box.
_MARGIN = 2


def random_windows(
    encoded: Sequence[bytes],
    numbers: np.ndarray,
    *,
    seed: int,
    crop_area: tuple[float, float],
    crop_ratio: tuple[float, float],
) -> np.ndarray:
    """Return the boxes of random crops of JPEG or PNG images (torchvision's RandomResizedCrop).

    Args:
        encoded: the files.
        numbers: of the examples, int64 [R]. Seed and number decide a box.
        seed: of the run.
        crop_area: range of a box's area, as a fraction of the image's.
        crop_ratio: range of its width divided by its height.

    Returns:
        int32 [R, 6]: top, left, height and width of the box, height and width of the image; zeros for a file without a
        header.
    """
    shapes = np.array([image_shape(file) for file in encoded], np.int32)
    places = numbers.astype(np.uint64)[:, None] * np.uint64(_TRIES * _OF_A_TRY)
    (stream,) = split_mix(seed, np.zeros(1, np.uint64)).tolist()
    bits = split_mix(stream, places + np.arange(_TRIES * _OF_A_TRY, dtype=np.uint64))
    draws = (bits >> np.uint64(11)) * 2.0**-53
    boxes = random_crop_boxes(shapes.astype(float), crop_area, crop_ratio, draws.reshape(-1, _OF_A_TRY, _TRIES))
    return np.concatenate([boxes, shapes], 1)


def split_mix(seed: int, index: np.ndarray) -> np.ndarray:
    """Return numbers of the stream of SplitMix64 by their index, uint64 (Steele, Lea, Flood: OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        bits = np.uint64(seed % 2**64) + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def random_crop_boxes(
    shapes: np.ndarray, crop_area: tuple[float, float], crop_ratio: tuple[float, float], draws: np.ndarray
) -> np.ndarray:
    """Return boxes of random resized crops by torchvision's law.

    Area and logarithm of the aspect ratio are uniform. The first of ten boxes that fits is returned; if none does, the
    largest central box whose aspect ratio is in the range.

    Args:
        shapes: heights and widths, float64 [R, 2].
        crop_area: range of a box's area, as a fraction of the image's.
        crop_ratio: range of its width divided by its height.
        draws: uniform in [0, 1), float64 [R, 4, 10]: area, ratio, left and top.

    Returns:
        int32 [R, 4]: top, left, height and width.
    """
    of_area, of_ratio, of_left, of_top = draws.swapaxes(0, 1)
    area = shapes.prod(1)[:, None] * (crop_area[0] + (crop_area[1] - crop_area[0]) * of_area)
    low, high = math.log(crop_ratio[0]), math.log(crop_ratio[1])
    aspect = np.exp(low + (high - low) * of_ratio)
    sizes = np.round(np.sqrt([area / aspect, area * aspect]))  # [2, R, 10]
    fits = np.logical_and.reduce((sizes >= 1) & (sizes <= shapes.T[:, :, None]))
    # Of equal values the first.
    rows, first = np.arange(len(shapes)), fits.argmax(1)
    drawn = sizes[:, rows, first].T
    start = np.floor(np.stack([of_top, of_left])[:, rows, first].T * (shapes - drawn + 1))
    height, width = shapes.T
    largest = np.stack(
        [np.minimum(height, np.round(width / crop_ratio[0])), np.minimum(width, np.round(height * crop_ratio[1]))], 1
    )
    central = np.concatenate([(shapes - largest) // 2, largest], 1)
    return np.where(np.logical_or.reduce(fits, axis=1)[:, None], np.concatenate([start, drawn], 1), central).astype(
        np.int32
    )


def decode_window(
    encoded: tf.Tensor, window: tf.Tensor, image_size: int, antialias: bool, scaled: bool = False
) -> tf.Tensor:
    """Decode a box of a JPEG or PNG image and resize it to a square.

    Only the box of a JPEG is decoded.

    Args:
        encoded: string scalar, the file's bytes.
        window: int32 [6], top, left, height and width of the box, height and width of the image.
        image_size: side of the result.
        antialias: low-pass filter when the box shrinks.
        scaled: decode a JPEG at a half, quarter or eighth of its size where the box stays as large as the result.

    Returns:
        uint8 [image_size, image_size, 3].
    """
    box, shape = window[:4], window[4:]
    divisors = _DIVISORS if scaled else _DIVISORS[:1]
    fitting = sum(tf.cast(tf.reduce_min(box[2:]) >= image_size * divisor, tf.int32) for divisor in divisors[1:])
    is_jpeg = tf.cast(tf.image.is_jpeg(encoded), tf.int32)
    branch = is_jpeg * (1 + fitting)
    divisor = tf.constant([1, *divisors])[branch]
    # Pixels of the scaled image that the box's edges cut are decoded, too; resampling cuts them.
    first, last = box[:2] // divisor, -(-(box[:2] + box[2:]) // divisor)
    # So is a margin: libjpeg takes the colors of the outermost pixels of what it decodes from fewer neighbors.
    decoded_first = is_jpeg * tf.maximum(first - _MARGIN, 0)
    decoded_last = tf.minimum(last + _MARGIN, -(-shape // divisor))

    def of_jpeg(divisor: int) -> tf.Tensor:
        # By default TensorFlow decodes 0.8 of 255 levels too dark; the exact method is Pillow's and evaluation's.
        place = tf.concat([decoded_first, decoded_last - decoded_first], 0)
        return tf.image.decode_and_crop_jpeg(encoded, place, channels=3, dct_method="INTEGER_ACCURATE", ratio=divisor)

    whole = functools.partial(tf.io.decode_png, encoded, channels=3)
    decoded = tf.switch_case(branch, [whole, *(functools.partial(of_jpeg, divisor) for divisor in divisors)])
    pixels = tf.slice(decoded, tf.concat([first - decoded_first, [0]], 0), tf.concat([last - first, [3]], 0))
    scale = tf.cast(divisor, tf.float64)
    start = tf.cast(box[:2] - first * divisor, tf.float64) / scale
    return _resampled(pixels, start, tf.cast(box[2:], tf.float64) / scale, image_size, antialias)


def _resampled(pixels: tf.Tensor, start: tf.Tensor, shape: tf.Tensor, size: int, antialias: bool) -> tf.Tensor:
    """Resample a box of an image by a triangle filter, first its columns and then its rows.

    Both are resampled as columns, whose elements are next to each other: TensorFlow's loop over those of a row takes
    five times as long.

    Args:
        pixels: uint8 [H, W, 3].
        start: top and left of the box, float64 [2].
        shape: its height and width, float64 [2].
        size: of the result.
        antialias: widen the filter when the box shrinks.

    Returns:
        uint8 [size, size, 3].
    """
    scale = tf.cast(size / shape, tf.float32)
    translation = tf.cast(-start * size / shape, tf.float32)

    def columns(matrix: tf.Tensor, axis: int) -> tf.Tensor:
        return tf.raw_ops.ScaleAndTranslate(
            images=matrix[None, :, None],
            size=[size, 1],
            scale=tf.stack([scale[axis], 1.0]),
            translation=tf.stack([translation[axis], 0.0]),
            kernel_type="triangle",
            antialias=antialias,
        )

    height, width = tf.unstack(tf.shape(pixels)[:2])
    # Conversions are faster here than within the loop.
    values = columns(tf.reshape(tf.cast(pixels, tf.float32), [height, width * 3]), 0)
    values = columns(tf.reshape(tf.transpose(tf.reshape(values, [size, width, 3]), [1, 0, 2]), [width, size * 3]), 1)
    # The weights are positive, so that nothing leaves the range.
    rounded = tf.cast(tf.round(tf.reshape(values, [size, size, 3])), tf.uint8)
    return tf.transpose(rounded, [1, 0, 2])
