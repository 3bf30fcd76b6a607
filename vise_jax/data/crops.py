"""Random crops for training, decoded by TensorFlow.

Orientation tags (EXIF) are ignored and transparency is dropped, as torchvision's image directories do.
"""

import functools
import math

import tensorflow as tf

# Boxes that are drawn before the crop is the largest central box.
_TRIES = 10
# Scales at which libjpeg decodes, as divisors.
_DIVISORS = (1, 2, 4, 8)


def decode_random_crop(
    encoded: tf.Tensor,
    image_size: int,
    crop_area: tuple[float, float],
    crop_ratio: tuple[float, float],
    antialias: bool,
    seed: tf.Tensor,
    scaled: bool = False,
) -> tf.Tensor:
    """Decode a random crop of a JPEG or PNG image and resize it to a square (torchvision's RandomResizedCrop).

    Only the crop of a JPEG is decoded. Stateless: the same seed gives the same crop.

    Args:
        encoded: string scalar, the file's bytes.
        image_size: side of the result.
        crop_area: range of the crop's area, as a fraction of the image's.
        crop_ratio: range of its width divided by its height.
        antialias: low-pass filter when the crop shrinks.
        seed: int32 [2].
        scaled: decode a JPEG at a half, quarter or eighth of its size where the crop stays as large as the result.

    Returns:
        uint8 [image_size, image_size, 3].
    """

    draws = tf.random.stateless_uniform([4, _TRIES], seed)

    def box(shape: tf.Tensor) -> tf.Tensor:
        return random_crop_box(shape[0], shape[1], crop_area, crop_ratio, draws)

    def of_jpeg() -> tf.Tensor:
        window = box(tf.io.extract_jpeg_shape(encoded))
        if not scaled:
            return _decoded_window(encoded, window, image_size, antialias, 1)
        fits = [tf.reduce_min(window[2:]) >= divisor * image_size for divisor in _DIVISORS[1:]]
        branches = [
            functools.partial(_decoded_window, encoded, window, image_size, antialias, divisor) for divisor in _DIVISORS
        ]
        return tf.switch_case(tf.reduce_sum(tf.cast(fits, tf.int32)), branches)

    def of_png() -> tf.Tensor:
        image = tf.io.decode_png(encoded, channels=3)
        top, left, height, width = tf.unstack(box(tf.shape(image)))
        return _resized(image[top : top + height, left : left + width], image_size, antialias)

    resized = tf.cond(tf.image.is_jpeg(encoded), of_jpeg, of_png)
    # The weights are positive, so that nothing leaves the range.
    return tf.cast(tf.round(resized), tf.uint8)


def _decoded_window(encoded: tf.Tensor, window: tf.Tensor, image_size: int, antialias: bool, divisor: int) -> tf.Tensor:
    """Decode a window of a JPEG at a scale of 1 / divisor and resize it, float32 [image_size, image_size, 3]."""
    # Pixels of the scaled image that the window's edges cut are decoded, too; the resize cuts them.
    first = window[:2] // divisor
    last = -(-(window[:2] + window[2:]) // divisor)
    # By default TensorFlow decodes 0.8 of 255 levels too dark; the exact method is Pillow's and evaluation's.
    crop = tf.image.decode_and_crop_jpeg(
        encoded, tf.concat([first, last - first], 0), channels=3, dct_method="INTEGER_ACCURATE", ratio=divisor
    )
    if divisor == 1:
        return _resized(crop, image_size, antialias)
    scale = image_size * divisor / window[2:]
    start = window[:2] / divisor - tf.cast(first, tf.float64)
    return tf.raw_ops.ScaleAndTranslate(
        images=crop[None],
        size=[image_size, image_size],
        scale=tf.cast(scale, tf.float32),
        translation=tf.cast(-start * scale, tf.float32),
        kernel_type="triangle",
        antialias=antialias,
    )[0]


def _resized(crop: tf.Tensor, image_size: int, antialias: bool) -> tf.Tensor:
    crop.set_shape([None, None, 3])
    return tf.image.resize(crop, [image_size, image_size], method="bilinear", antialias=antialias)


def random_crop_box(
    height: tf.Tensor,
    width: tf.Tensor,
    crop_area: tuple[float, float],
    crop_ratio: tuple[float, float],
    draws: tf.Tensor,
) -> tf.Tensor:
    """Return the box of a random resized crop by torchvision's law.

    Area and logarithm of the aspect ratio are uniform. The first of ten boxes that fits is returned; if none does, the
    largest central box whose aspect ratio is in the range.

    Args:
        height: int32, of the image.
        width: int32, of the image.
        crop_area: range of the box's area, as a fraction of the image's.
        crop_ratio: range of its width divided by its height.
        draws: uniform in [0, 1), float32 [4, 10]: area, ratio, left and top.

    Returns:
        int32 [4]: top, left, height and width.
    """
    rows, columns = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = rows * columns * (crop_area[0] + (crop_area[1] - crop_area[0]) * draws[0])
    low, high = math.log(crop_ratio[0]), math.log(crop_ratio[1])
    aspect = tf.exp(low + (high - low) * draws[1])
    size = tf.round(tf.sqrt(tf.stack([area / aspect, area * aspect])))  # [2, 10]
    image = tf.stack([rows, columns])
    fits = tf.reduce_all((size >= 1) & (size <= image[:, None]), 0)
    first = tf.argmax(fits)  # of equal values the first
    drawn = size[:, first]
    start = tf.floor(tf.stack([draws[3, first], draws[2, first]]) * (image - drawn + 1))
    # float32 can round a draw close to 1 up to the next integer.
    start = tf.minimum(start, image - drawn)
    largest = tf.round(tf.stack([tf.minimum(rows, columns / crop_ratio[0]), tf.minimum(columns, rows * crop_ratio[1])]))
    central = tf.concat([tf.floor((image - largest) / 2), largest], 0)
    return tf.cast(tf.where(fits[first], tf.concat([start, drawn], 0), central), tf.int32)
