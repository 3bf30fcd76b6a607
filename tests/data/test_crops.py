"""Random crops are checked against Pillow, which shares no code with tf.image's resize."""

import io

import numpy as np
import pytest
import tensorflow as tf
from pictures import KINDS, encode, picture
from PIL import Image

from vise_jax.data import augmented, crops, formats


def random_crop(
    encoded: bytes, seed: int, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3), antialias=True, scaled=False
) -> np.ndarray:
    (window,) = crops.random_windows([encoded], np.array([seed]), seed=7, crop_area=area, crop_ratio=ratio)
    return crops.decode_window(tf.constant(encoded), tf.constant(window), 32, antialias, scaled).numpy()


def box_of(width: int, height: int, seed: int) -> tuple[int, int, int, int]:
    """Return the box of a random crop with the default area and ratio, in Pillow's order."""
    stream = int(crops.split_mix(7, np.zeros(1, np.uint64))[0])
    bits = crops.split_mix(stream, np.arange(40, dtype=np.uint64) + np.uint64(40 * seed))
    draws = (bits >> np.uint64(11)) / 2**53
    return augmented.random_resized_crop_box(width, height, (0.08, 1.0), (3 / 4, 4 / 3), draws.reshape(4, 10).T.ravel())


def test_random_numbers_are_those_of_split_mix():
    # The first of its stream from 1234567, as published with its code in C.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    np.testing.assert_array_equal(crops.split_mix(1234567, np.arange(4, dtype=np.uint64)), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + b"x" * 5000, "comment": b"c"}])
def test_the_shape_in_the_header_is_pillows(options):
    file = io.BytesIO()
    picture(91, 67).save(file, "JPEG", **options)
    encoded = file.getvalue()
    assert formats.image_shape(encoded) == (67, 91)
    # Fill bytes may come before a marker.
    assert formats.image_shape(encoded[:2] + b"\xff\xff" + encoded[2:]) == (67, 91)
    assert formats.image_shape(encode(picture(91, 67), "png")) == (67, 91)
    start = encoded.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    for damaged in (b"", b"GIF89a", encoded[:start], encoded[: start + 6], formats.PNG + b"\0" * 8):
        assert formats.image_shape(damaged) == (0, 0)


def test_windows_do_not_depend_on_what_is_beside_them():
    files = [encode(picture(90, 60), "jpeg"), b"no image", encode(picture(50, 70), "png")]
    how = {"seed": 3, "crop_area": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3)}
    together = crops.random_windows(files, np.array([5, 6, 2**40]), **how)
    for number, (file, at) in enumerate(zip(files, (5, 6, 2**40), strict=True)):
        np.testing.assert_array_equal(crops.random_windows([file], np.array([at]), **how)[0], together[number])
    np.testing.assert_array_equal(together[1], 0)
    assert len({tuple(crops.random_windows(files[:1], np.array([at]), **how)[0]) for at in range(50)}) > 45


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_of_everything_is_the_resized_image(kind):
    encoded = encode(picture(90, 90), kind)
    crop = random_crop(encoded, seed=0, area=(1.0, 1.0), ratio=(1.0, 1.0))
    expected = Image.open(io.BytesIO(encoded)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    assert crop.dtype == np.uint8
    assert crop.shape == (32, 32, 3)
    assert np.abs(crop.astype(int) - np.asarray(expected, int)).max() <= 1


def test_the_same_seed_gives_the_same_crop_and_another_seed_another():
    encoded = encode(picture(90, 60), "jpeg")
    np.testing.assert_array_equal(random_crop(encoded, 0), random_crop(encoded, 0))
    assert len({random_crop(encoded, seed).tobytes() for seed in range(8)}) == 8


def test_a_crop_has_the_area_and_the_ratio_requested():
    # Red grows from left to right and green from top to bottom: a crop's colors say where its edges were.
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


def test_an_impossible_crop_is_the_largest_central_box():
    encoded = encode(picture(200, 20), "png")
    crop = random_crop(encoded, 0, area=(0.99, 1.0), ratio=(1.0, 2.0))
    expected = picture(200, 20).crop((80, 0, 120, 20)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(crop.astype(int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(500, 375), (37, 90), (300, 40), (8, 8)])
def test_boxes_are_those_of_fine_tuning_which_are_torchvisions(width, height):
    draws = np.random.default_rng(0).random((300, 4, 10))
    law = (0.08, 1.0), (3 / 4, 4 / 3)
    boxes = crops.random_crop_boxes(np.full((300, 2), (height, width), float), *law, draws)
    for box, drawn in zip(boxes, draws, strict=True):
        top, left, rows, columns = box
        expected = augmented.random_resized_crop_box(width, height, *law, drawn.T.ravel())
        assert (left, top, left + columns, top + rows) == expected
        assert 0 <= top < top + rows <= height
        assert 0 <= left < left + columns <= width
    if width == 500:
        assert (boxes[:, 2] * boxes[:, 3] / (width * height)).mean() == pytest.approx(0.43, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_crop_is_pillows_to_one_level(kind):
    encoded = encode(picture(201, 151), kind)
    # Of the crops of a JPEG, the outermost pixels differ first.
    for seed in range(25):
        box = box_of(201, 151, seed)
        expected = Image.open(io.BytesIO(encoded)).convert("RGB").crop(box).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.abs(random_crop(encoded, seed).astype(int) - np.asarray(expected, int)).max() <= 1


def test_antialias_is_a_low_pass_filter():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    encoded = encode(Image.fromarray(stripes), "png")
    whole = {"area": (1.0, 1.0), "ratio": (1.0, 1.0)}
    smooth = random_crop(encoded, 0, **whole, antialias=True).astype(float)
    assert smooth[:, 1:-1].std() < 5
    assert abs(smooth.mean() - 127.5) < 2
    assert not np.array_equal(smooth, random_crop(encoded, 0, **whole, antialias=False))


def test_a_scaled_crop_is_pillows_of_the_image_that_libjpeg_decodes_at_that_scale():
    divisors = set()
    # No multiples of the largest block, 64 pixels.
    for number, (width, height) in enumerate([(603, 461), (151, 113)] * 15):
        encoded, (left, top, right, bottom) = encode(picture(width, height), "jpeg"), box_of(width, height, number)
        divisor = max(d for d in (1, 2, 4, 8) if d == 1 or min(right - left, bottom - top) >= 32 * d)
        image = Image.open(io.BytesIO(encoded))
        image.draft("RGB", (width // divisor, height // divisor))
        assert image.size == (-(-width // divisor), -(-height // divisor))
        box = (left / divisor, top / divisor, right / divisor, bottom / divisor)
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR, box), int)
        difference = np.abs(random_crop(encoded, number, scaled=True).astype(int) - expected)
        # At the edges, Pillow leaves out what is outside of the box.
        assert difference[1:-1, 1:-1].max() <= 1
        assert difference.max() <= 8
        divisors.add(divisor)
    assert divisors == {1, 2, 4, 8}


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_crop_is_close_to_that_of_all_pixels_and_a_small_image_is_not_scaled(kind):
    large, small = encode(picture(603, 461), kind), encode(picture(50, 40), kind)
    for seed in range(5):
        difference = np.abs(random_crop(large, seed, scaled=True).astype(int) - random_crop(large, seed))
        assert difference.mean() < 1
        np.testing.assert_array_equal(random_crop(small, seed, scaled=True), random_crop(small, seed))
