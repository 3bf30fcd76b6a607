"""Random crops for training, decoded by TensorFlow.

Orientation tags (EXIF) are ignored and transparency is dropped, as torchvision's image directories do.
"""

import tensorflow as tf


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
        window = tf.concat([begin[:2], size[:2]], 0)
        # By default TensorFlow decodes 0.8 of 255 levels too dark; the exact method is Pillow's and evaluation's.
        return tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_ACCURATE")

    def crop_png() -> tf.Tensor:
        image = tf.io.decode_png(encoded, channels=3)
        begin, size = box(tf.shape(image))
        return tf.slice(image, begin, size)

    crop = tf.cond(tf.image.is_jpeg(encoded), crop_jpeg, crop_png)
    crop.set_shape([None, None, 3])
    resized = tf.image.resize(crop, [image_size, image_size], method="bilinear", antialias=antialias)
    # The weights are positive, so that nothing leaves the range.
    return tf.cast(tf.round(resized), tf.uint8)
