"""What Pillow decodes is checked against torchvision's steps, and its resampling against arithmetic by hand."""

import io
import zlib
from dataclasses import replace

import numpy as np
import pytest
from pictures import KINDS, encode, picture
from PIL import Image

from vise_jax.data import datasets, images
from vise_jax.errors import UserError
from vise_jax.preprocessing import Preprocessing


def pillow_center_crop(encoded: bytes, resize: int, crop: int, resample: Image.Resampling) -> np.ndarray:
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
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(900, 700), (97, 160), (40, 31), (64, 64)])
def test_evaluation_equals_torchvision(kind, interpolation, size):
    encoded = encode(picture(*size), kind)
    image = images.decode_for_evaluation(encoded, 73, 64, interpolation)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pillow_center_crop(encoded, 73, 64, Image.Resampling[interpolation.upper()]))


def by_hand(line: np.ndarray, length: int, interpolation: str) -> np.ndarray:
    """One pass of Pillow's 8-bit resampling over the first axis, uint8 [N, ...] → uint8 [length, ...]."""

    def bilinear(x):
        return np.maximum(1 - abs(x), 0)

    def bicubic(x):  # a = -0.5
        x = abs(x)
        return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))

    scale = len(line) / length
    stretch = max(scale, 1)
    support = {"bilinear": 1, "bicubic": 2}[interpolation] * stretch
    result = []
    for center in (np.arange(length) + 0.5) * scale:
        begin, end = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), len(line))
        weights = {"bilinear": bilinear, "bicubic": bicubic}[interpolation](
            (np.arange(begin, end) - center + 0.5) / stretch
        )
        weights = weights / weights.sum() * 2**22
        fixed = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int64)
        result.append((np.tensordot(fixed, line[begin:end].astype(np.int64), 1) + 2**21) >> 22)
    return np.clip(np.array(result), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [90, 41])
def test_resizing_is_two_passes_in_fixed_point(interpolation, side):
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    across = by_hand(pixels.swapaxes(0, 1), 50, interpolation).swapaxes(0, 1)
    image = images.decode_for_evaluation(encode(Image.fromarray(pixels), "png"), 50, 50, interpolation)
    np.testing.assert_array_equal(image, by_hand(across, 50, interpolation))


PREPROCESSING = replace(Preprocessing.imagenet(32), resize=36)


def image_set(root, files: dict[str, bytes]) -> datasets.Dataset:
    for name, encoded in files.items():
        (root / name).write_bytes(encoded)
    return datasets.open_unlabeled(root)


def read(image_set, indices, batch_size=2, max_image_pixels=10**6, **changes):
    return list(images.batches(image_set, indices, replace(PREPROCESSING, **changes), batch_size, 2, max_image_pixels))


def test_batches_keep_the_order_and_the_last_short_one(tmp_path):
    files = {f"{n}.jpg": encode(picture(40 + 10 * n, 60), "jpeg") for n in range(5)}
    batches = read(image_set(tmp_path, files), [4, 0, 3, 1, 2])
    assert [batch.shape for batch in batches] == [(2, 32, 32, 3), (2, 32, 32, 3), (1, 32, 32, 3)]
    for image, n in zip(np.concatenate(batches), [4, 0, 3, 1, 2], strict=True):
        expected = pillow_center_crop(files[f"{n}.jpg"], 36, 32, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"", "no image that can be read"),
        (b"some text", "no image that can be read"),
        (encode(picture(60, 60), "jpeg")[:-300], "can't be decoded"),
        (encode(picture(60, 60), "png")[:500], "can't be decoded"),
        (encode(picture(1100, 1000), "jpeg"), "more than 1,000,000 pixels"),
        (encode(picture(2, 2000), "png"), "more than 1,000,000 pixels"),
    ],
)
def test_a_broken_image_is_named(tmp_path, broken, message):
    fine = encode(picture(60, 60), "jpeg")
    found = image_set(tmp_path, {"1.jpg": fine, "2.jpg": fine, "3.jpg": fine, "4.jpg": broken, "5.jpg": fine})
    with pytest.raises(UserError, match=rf"The image 4\.jpg in .* {message}"):
        read(found, range(5))
    assert len(read(found, [0, 1, 2, 4])) == 2
    with pytest.raises(
        UserError, match=r"2 of 5 images in .* can't be read or decoded \(2\.jpg, 4\.jpg\): replace them"
    ):
        read(image_set(tmp_path, {"2.jpg": b""}), range(5))
    (tmp_path / "2.jpg").write_bytes(fine)
    each = list(images.decode_each(found, range(5), PREPROCESSING, 2, 10**6))
    assert message in str(each.pop(3))
    assert [image.shape for image in each] == [(32, 32, 3)] * 4


def test_a_bomb_is_refused_by_its_header(tmp_path):
    # 30,000 x 30,000 pixels in a file of a few bytes: the header alone, decoding it would fail or fill the memory.
    header = b"\x00\x00\x75\x30\x00\x00\x75\x30\x08\x02\x00\x00\x00"
    chunk = b"\x00\x00\x00\x0dIHDR" + header + zlib.crc32(b"IHDR" + header).to_bytes(4)
    data = b"\x00\x00\x00\x00IDAT" + zlib.crc32(b"IDAT").to_bytes(4)
    images = image_set(tmp_path, {"bomb.png": b"\x89PNG\r\n\x1a\n" + chunk + data})
    with pytest.raises(UserError, match=r"bomb\.png in .* more than 50,000,000 pixels"):
        read(images, [0], max_image_pixels=50_000_000)


def test_a_crop_larger_than_the_image_is_refused(tmp_path):
    images = image_set(tmp_path, {"1.jpg": encode(picture(60, 60), "jpeg")})
    with pytest.raises(UserError, match="crop of 32 from images resized to 31"):
        read(images, [0], resize=31)


def test_a_thumbnail_is_small_and_holds_nothing_else(tmp_path):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x010E] = "where I live"
    picture(900, 450).save(file, "JPEG", exif=exif, comment=b"what I think", icc_profile=b"my camera")
    small = images.thumbnail(image_set(tmp_path, {"1.jpg": file.getvalue()}), 0, 160, 10**6)
    assert not [words for words in (b"where I live", b"what I think", b"my camera") if words in small]
    with Image.open(io.BytesIO(small)) as shown:
        assert (shown.format, shown.mode, shown.size) == ("JPEG", "RGB", (160, 80))
        assert np.abs(np.asarray(shown, int) - np.asarray(picture(160, 80), int)).mean() < 8


@pytest.mark.parametrize("kind", KINDS)
def test_any_image_has_a_thumbnail(tmp_path, kind):
    found = image_set(tmp_path, {"1.png": encode(picture(40, 80), kind)})
    with Image.open(io.BytesIO(images.thumbnail(found, 0, 16, 10**6))) as shown:
        assert (shown.format, shown.mode, shown.size) == ("JPEG", "RGB", (8, 16))
    with pytest.raises(UserError, match=r"1\.png in .* more than 1,000 pixels"):
        images.thumbnail(found, 0, 16, 1000)
