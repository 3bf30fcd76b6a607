"""Images of posts: good ones come back byte by byte, bad ones with a reason, and none is decoded that is too large."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vise_jax.labeling import images
from vise_jax.posts import BadPost, Post


def encode(kind: str = "JPEG", size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A valid PNG header that promises more than the file could ever hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)  # fmt: skip  # noqa: E501
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(),
        encode(progressive=True),
        encode(mode="L"),
        encode(mode="CMYK"),
        encode(size=(1, 1)),
        encode("PNG"),
        encode("PNG", mode="P"),
        encode("PNG", mode="LA"),
    ],
)
def test_good_images_come_back_as_they_are(encoded: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded)
    assert images.read_image(Post("a", "a.jpg", source=tmp_path / "p.jsonl"), 10_000) == encoded
    assert images.read_image(Post("a", image_bytes=encoded), 10_000) == encoded


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "image_empty"),
        (b"just text", "image_not_an_image"),
        (encode("GIF"), "image_format"),
        (encode("WEBP"), "image_format"),
        (encode("BMP"), "image_format"),
        (encode()[:100], "image_truncated"),
        (encode()[:-200], "image_truncated"),
        (encode(progressive=True)[:-200], "image_truncated"),
        (encode("PNG")[:-200], "image_truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "image_truncated"),
        (encode(size=(201, 200)), "image_too_large"),
        (bomb(30_000, 30_000), "image_too_large"),
        (bomb(100, 100), "image_truncated"),
    ],
)
def test_bad_images_say_why(encoded: bytes, reason: str) -> None:
    with pytest.raises(BadPost) as caught:
        images.read_image(Post("a", image_bytes=encoded), 40_000)
    assert caught.value.reason == reason


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    for width in (10_000, 30_000):
        with pytest.raises(BadPost, match="image_too_large"):
            images.read_image(Post("a", image_bytes=bomb(width, 30_000)), 50_000_000)


def test_a_file_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode())
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(BadPost, match="image_too_large"):
        images.read_image(Post("a", "a.jpg", source=tmp_path / "p.jsonl"), 40_000)


def test_paths_stay_in_the_folder_of_the_posts(tmp_path: Path) -> None:
    folder = tmp_path / "posts"
    (folder / "i").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(encode())
    (folder / "i" / "a.jpg").write_bytes(encode())
    (folder / "inside.jpg").symlink_to("i/a.jpg")
    (folder / "outside.jpg").symlink_to("../secret.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")

    def reason(image: str | None) -> str:
        with pytest.raises(BadPost) as caught:
            images.read_image(Post("a", image, source=folder / "p.jsonl"), 40_000)
        return caught.value.reason

    assert images.read_image(Post("a", "inside.jpg", source=folder / "p.jsonl"), 40_000) == encode()
    assert reason("outside.jpg") == reason("../secret.jpg") == "image_path_leaves_folder"
    assert reason(str(tmp_path / "secret.jpg")) == "image_path_leaves_folder"
    assert reason("circle.jpg") == reason("none.jpg") == reason("i") == reason("x" * 5000) == "image_missing"
    assert reason(None) == "no_image"
