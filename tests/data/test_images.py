"""Decoding is checked against Pillow, which shares no code with tf.image's resize."""

import io
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vise_jax.data import downstream, images
from vise_jax.errors import UserError


def picture(width: int, height: int) -> Image.Image:
    """A smooth colour picture, so that JPEG stays close to it."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str) -> bytes:
    mode, file_format = {
        "jpeg": ("RGB", "JPEG"),
        "grey jpeg": ("L", "JPEG"),
        "cmyk jpeg": ("CMYK", "JPEG"),
        "png": ("RGB", "PNG"),
        "grey png": ("L", "PNG"),
        "palette png": ("P", "PNG"),
        "alpha png": ("RGBA", "PNG"),
    }[kind]
    file = io.BytesIO()
    image.convert(mode).save(file, file_format)
    return file.getvalue()


KINDS = ["jpeg", "grey jpeg", "cmyk jpeg", "png", "grey png", "palette png", "alpha png"]


def random_crop(encoded: bytes, seed: int, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3), antialias=True) -> np.ndarray:
    return images.decode_random_crop(tf.constant(encoded), 32, area, ratio, antialias, tf.constant([7, seed])).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_of_everything_is_the_resized_image(kind):
    encoded = encode(picture(90, 90), kind)
    crop = random_crop(encoded, seed=0, area=(1.0, 1.0), ratio=(1.0, 1.0))
    expected = Image.open(io.BytesIO(encoded)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    assert crop.dtype == np.uint8
    assert crop.shape == (32, 32, 3)
    assert np.abs(crop.astype(int) - np.asarray(expected, int)).max() <= 4  # TF's fast inverse DCT


def test_the_same_seed_gives_the_same_crop_and_another_seed_another():
    encoded = encode(picture(90, 60), "jpeg")
    np.testing.assert_array_equal(random_crop(encoded, 0), random_crop(encoded, 0))
    assert len({random_crop(encoded, seed).tobytes() for seed in range(8)}) == 8


def test_a_crop_has_the_area_and_the_ratio_asked_for():
    # Red grows from left to right and green from top to bottom: a crop's colours say where its edges were.
    width, height = 300, 200
    across, down = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 250, height))
    ramp = Image.fromarray(np.stack([across, down, 0 * across], -1).astype(np.uint8))
    encoded = encode(ramp, "png")
    for seed in range(20):
        crop = random_crop(encoded, seed, area=(0.2, 0.3), ratio=(0.5, 2.0)).astype(float)
        wide = (crop[0, -1, 0] - crop[0, 0, 0]) / 250 * width * 32 / 31
        tall = (crop[-1, 0, 1] - crop[0, 0, 1]) / 250 * height * 32 / 31
        assert 0.18 < wide * tall / (width * height) < 0.32
        assert 0.47 < wide / tall < 2.13


def test_an_impossible_crop_is_the_whole_image():
    encoded = encode(picture(200, 20), "png")
    crop = random_crop(encoded, 0, area=(0.99, 1.0), ratio=(1.0, 1.0))
    expected = picture(200, 20).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(crop.astype(int) - np.asarray(expected, int)).max() <= 2


def test_antialias_is_a_low_pass_filter():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    encoded = encode(Image.fromarray(stripes), "png")
    whole = {"area": (1.0, 1.0), "ratio": (1.0, 1.0)}
    smooth = random_crop(encoded, 0, **whole, antialias=True).astype(float)
    assert smooth[:, 1:-1].std() < 5
    assert abs(smooth.mean() - 127.5) < 2
    assert not np.array_equal(smooth, random_crop(encoded, 0, **whole, antialias=False))


def pillow_centre_crop(encoded: bytes, resize: int, crop: int, resample: Image.Resampling) -> np.ndarray:
    """torchvision's Resize(resize) and CenterCrop(crop), written out."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = image.size
    if width <= height:
        width, height = resize, int(resize * height / width)
    else:
        width, height = int(resize * width / height), resize
    image = image.resize((width, height), resample)
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    return np.asarray(image.crop((left, top, left + crop, top + crop)), int)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(300, 211), (97, 160), (40, 31), (64, 64)])
def test_evaluation_equals_pillow(kind, size):
    encoded = encode(picture(*size), kind)
    image = images.decode_for_evaluation(tf.constant(encoded), 73, 64, "bilinear").numpy()
    assert image.dtype == np.uint8
    expected = pillow_centre_crop(encoded, 73, 64, Image.Resampling.BILINEAR)
    assert np.abs(image - expected).max() <= 1
    assert np.abs(image - expected).mean() < 0.3  # Pillow rounds after each of its two passes


def test_bicubic_equals_pillow():
    for size in [(300, 211), (40, 31)]:
        encoded = encode(picture(*size), "png")
        image = images.decode_for_evaluation(tf.constant(encoded), 73, 64, "bicubic").numpy()
        assert np.abs(image - pillow_centre_crop(encoded, 73, 64, Image.Resampling.BICUBIC)).max() <= 2


PREPROCESSING = {"resize": 36, "crop": 32, "interpolation": "bilinear"}


def image_set(root, files: dict[str, bytes]) -> downstream.ImageSet:
    for name, encoded in files.items():
        (root / name).write_bytes(encoded)
    return downstream.open_unlabelled(root)


def read(image_set, indices, batch_size=2, max_image_pixels=10**6, **changes):
    return list(images.batches(image_set, indices, PREPROCESSING | changes, batch_size, 2, max_image_pixels))


def test_batches_keep_the_order_and_the_last_short_one(tmp_path):
    files = {f"{n}.jpg": encode(picture(40 + 10 * n, 60), "jpeg") for n in range(5)}
    batches = read(image_set(tmp_path, files), [4, 0, 3, 1, 2])
    assert [batch.shape for batch in batches] == [(2, 32, 32, 3), (2, 32, 32, 3), (1, 32, 32, 3)]
    for image, n in zip(np.concatenate(batches), [4, 0, 3, 1, 2], strict=True):
        expected = pillow_centre_crop(files[f"{n}.jpg"], 36, 32, Image.Resampling.BILINEAR)
        assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"", "no JPEG or PNG"),
        (b"some text", "no JPEG or PNG"),
        (encode(picture(60, 60), "jpeg")[:-300], "can't be decoded"),
        (encode(picture(60, 60), "png")[:500], "can't be decoded"),
        (encode(picture(1100, 1000), "jpeg"), "more than 1,000,000 pixels"),
        (encode(picture(2, 2000), "png"), "more than 1,000,000 pixels"),
    ],
)
def test_a_broken_image_is_named(tmp_path, broken, message):
    fine = encode(picture(60, 60), "jpeg")
    images = image_set(tmp_path, {"1.jpg": fine, "2.jpg": fine, "3.jpg": fine, "4.jpg": broken, "5.jpg": fine})
    with pytest.raises(UserError, match=rf"The image 4\.jpg in .* {message}"):
        read(images, range(5))
    assert len(read(images, [0, 1, 2, 4])) == 2


def test_a_bomb_is_refused_by_its_header(tmp_path):
    # 30,000 x 30,000 pixels in a file of a few bytes: the header alone, decoding it would fail or fill the memory.
    header = b"\x00\x00\x75\x30\x00\x00\x75\x30\x08\x02\x00\x00\x00"
    chunk = b"\x00\x00\x00\x0dIHDR" + header + zlib.crc32(b"IHDR" + header).to_bytes(4)
    data = b"\x00\x00\x00\x00IDAT" + zlib.crc32(b"IDAT").to_bytes(4)
    images = image_set(tmp_path, {"bomb.png": b"\x89PNG\r\n\x1a\n" + chunk + data})
    with pytest.raises(UserError, match=r"bomb\.png in .* more than 50,000,000 pixels"):
        read(images, [0], max_image_pixels=50_000_000)


def test_preprocessing_that_is_not_supported(tmp_path):
    images = image_set(tmp_path, {"1.jpg": encode(picture(60, 60), "jpeg")})
    with pytest.raises(UserError, match="'lanczos' is not supported"):
        read(images, [0], interpolation="lanczos")
    with pytest.raises(UserError, match="crop of 32 from images resized to 31"):
        read(images, [0], resize=31)
