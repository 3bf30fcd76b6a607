"""Images of posts: good ones come back byte by byte, bad ones with a reason, and none is decoded that is too large."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from vise_jax.data import formats
from vise_jax.labeling import images
from vise_jax.posts import BadPost, Post


def read(*arguments, **settings) -> bytes:
    return images.read_image(*arguments, **settings)[0]


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
        encode(size=(1, 1)),
        encode("PNG"),
        encode("PNG", mode="P"),
        encode("PNG", mode="LA"),
    ],
)
def test_good_images_come_back_as_they_are(encoded: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded)
    assert read(Post("a", "a.jpg", source=tmp_path / "p.jsonl"), 10_000) == encoded
    assert read(Post("a", image_bytes=encoded), 10_000) == encoded


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_large_images_are_shrunk_to_the_side(kind: str) -> None:
    # Smooth, so that filters that suit photographs agree on it; with metadata, which must go.
    ramp = np.linspace(0, 255, 400 * 300 * 3).reshape(300, 400, 3).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, kind, exif=Image.Exif().tobytes() if kind != "PNG" else b"", quality=95)
    shrunk = read(Post("a", image_bytes=file.getvalue()), 10**6, side=60)
    image = Image.open(io.BytesIO(shrunk))
    assert (image.format, image.size) == ("JPEG", (80, 60))
    expected = np.asarray(Image.fromarray(ramp).resize((80, 60), Image.Resampling.BICUBIC), int)
    assert np.abs(np.asarray(image, int) - expected).mean() < 3
    small = encode(kind if kind != "WEBP" else "PNG")
    assert read(Post("a", image_bytes=small), 10**6, side=48) == small


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "image_empty"),
        (b"just text", "image_not_an_image"),
        (b"\0\0\1\0" + bytes(40), "image_format"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "image_format"),
        (encode("WEBP")[:60], "image_truncated"),
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
def test_invalid_images_have_a_reason(encoded: bytes, reason: str) -> None:
    with pytest.raises(BadPost) as caught:
        read(Post("a", image_bytes=encoded), 40_000)
    assert caught.value.reason == reason


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    for width in (10_000, 30_000):
        with pytest.raises(BadPost, match="image_too_large"):
            read(Post("a", image_bytes=bomb(width, 30_000)), 50_000_000)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode())
    with pytest.raises(BadPost, match="image_too_large"):
        read(Post("a", "a.jpg", source=tmp_path / "p.jsonl"), 40_000, max_bytes=100)


def test_paths_stay_in_the_directory_of_the_posts(tmp_path: Path) -> None:
    directory = tmp_path / "posts"
    (directory / "i").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(encode())
    (directory / "i" / "a.jpg").write_bytes(encode())
    (directory / "inside.jpg").symlink_to("i/a.jpg")
    (directory / "outside.jpg").symlink_to("../secret.jpg")
    (directory / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "1").write_bytes(encode())
    (directory / "cached.jpg").symlink_to("../cache/1")

    def reason(image: str | None, link_roots: Sequence[str] = ()) -> str:
        with pytest.raises(BadPost) as caught:
            read(Post("a", image, source=directory / "p.jsonl"), 40_000, link_roots=link_roots)
        return caught.value.reason

    assert read(Post("a", "inside.jpg", source=directory / "p.jsonl"), 40_000) == encode()
    assert reason("outside.jpg") == reason("../secret.jpg") == "image_path_leaves_folder"
    assert reason(str(tmp_path / "secret.jpg")) == "image_path_leaves_folder"
    roots = [str(tmp_path / "cache")]
    assert reason("outside.jpg", roots) == "image_path_leaves_folder"
    assert reason("cached.jpg") == "image_path_leaves_folder"
    # A link root is for links, not for paths.
    assert reason("../cache/1", roots) == reason(str(tmp_path / "cache" / "1"), roots) == "image_path_leaves_folder"
    cached = Post("a", "cached.jpg", source=directory / "p.jsonl")
    assert read(cached, 40_000, link_roots=roots) == encode()
    assert reason("circle.jpg") == reason("none.jpg") == reason("i") == reason("x" * 5000) == "image_missing"
    assert reason(None) == "no_image"


def pillow_and_tensorflow(encoded: bytes) -> tuple[np.ndarray, np.ndarray]:
    with Image.open(io.BytesIO(encoded)) as image:
        pillow = np.asarray(formats.to_rgb(image), np.int32)
    decode = tf.io.decode_jpeg if encoded.startswith(formats.JPEG) else tf.io.decode_png
    options = {"dct_method": "INTEGER_ACCURATE"} if decode is tf.io.decode_jpeg else {}
    return pillow, decode(encoded, channels=3, **options).numpy().astype(np.int32)


def sixteen_bits(color: bool) -> bytes:
    """A 16-bit PNG file, gray or RGB."""
    values = np.random.default_rng(0).integers(0, 2**16, (24, 32, 3 if color else 1)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 32, 24, 16, 2 if color else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return formats.PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def transparent_palette() -> bytes:
    file = io.BytesIO()
    image = Image.open(io.BytesIO(encode("PNG", mode="P")))
    image.save(file, "PNG", transparency=3)
    return file.getvalue()


@pytest.mark.parametrize(
    "encoded",
    [
        *(encode("PNG", mode=mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *(encode("JPEG", mode=mode) for mode in ("L", "RGB", "CMYK", "YCbCr")),
        sixteen_bits(False),
        sixteen_bits(True),
        transparent_palette(),
        *(encode(kind) for kind in ("WEBP", "GIF", "BMP", "TIFF", "AVIF")),
    ],
)
def test_evaluation_and_training_see_the_same_pixels(encoded: bytes) -> None:
    accepted = read(Post("a", image_bytes=encoded), 40_000)
    pillow, tensorflow = pillow_and_tensorflow(accepted)
    # Decoders of JPEG may round differently.
    assert np.abs(pillow - tensorflow).max() <= (3 if accepted.startswith(formats.JPEG) else 0)


def test_sixteen_bits_keep_their_upper_half() -> None:
    values = np.asarray(formats.to_rgb(Image.open(io.BytesIO(sixteen_bits(False)))))
    expected = np.random.default_rng(0).integers(0, 2**16, (24, 32, 1)) >> 8
    np.testing.assert_array_equal(values[:, :, 0], expected[:, :, 0])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_what_is_accepted_of_cut_files_can_be_decoded(kind: str) -> None:
    encoded = encode(kind)
    for end in np.linspace(len(encoded) - 60, len(encoded), 60).astype(int).tolist():
        try:
            accepted = read(Post("a", image_bytes=encoded[:end]), 40_000)
        except BadPost as bad:
            assert bad.reason == "image_truncated"  # noqa: PT017
        else:
            pillow_and_tensorflow(accepted)


def test_metadata_is_removed_and_pixels_are_not_encoded_again() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where we live"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "where we live")
    text.add_text("Long", "where we live " * 200_000, zip=True)
    for kind, options in (
        ("JPEG", {"exif": exif, "comment": b"where we live", "xmp": b"where we live"}),
        ("PNG", {"exif": exif, "pnginfo": text}),
    ):
        accepted = read(Post("a", image_bytes=encode(kind, **options)), 40_000)
        assert accepted == encode(kind)


def test_what_follows_the_end_of_an_image_is_removed() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where we live"
    for options in ({}, {"progressive": True}):
        trailer = encode(exif=exif) + b"where we live"
        assert read(Post("a", image_bytes=encode(**options) + trailer), 40_000) == encode(**options)


def test_previews_in_a_jpeg_are_removed() -> None:
    plain = encode()
    profile = encode(icc_profile=b"a profile")

    def with_segment(base: bytes, code: int, payload: bytes) -> bytes:
        return base[:2] + bytes([0xFF, code]) + (len(payload) + 2).to_bytes(2) + payload + base[2:]

    jfif = plain[6:20]
    assert jfif.startswith(b"JFIF\0")
    thumbnail = jfif[:12] + bytes([2, 2]) + b"preview here"
    previews = (
        plain[:2] + b"\xff\xe0" + (len(thumbnail) + 2).to_bytes(2) + thumbnail + plain[20:],
        with_segment(plain, 0xE0, b"JFXX\0\x10preview here"),
        with_segment(plain, 0xE2, b"MPF\0 preview here"),
        with_segment(plain, 0xE2, b"FPXR\0preview here"),
    )
    for encoded in previews:
        assert read(Post("a", image_bytes=encoded), 40_000) == plain
    assert read(Post("a", image_bytes=profile), 40_000) == profile


@pytest.mark.parametrize(
    ("code", "payload"),
    [
        *((0xE0 + number, b"GoPro") for number in (0, 3, 4, 6, 10, 11, 12, 15)),
        (0xEB, b"JP\0\1 jumb c2pa"),
        (0xEE, b"no Adobe"),
    ],
)
def test_other_segments_of_a_jpeg_are_removed(code: int, payload: bytes) -> None:
    plain = encode()
    segment = bytes([0xFF, code]) + (len(payload) + 2).to_bytes(2) + payload
    assert read(Post("a", image_bytes=plain[:20] + segment + plain[20:]), 40_000) == plain


def test_the_fields_that_decide_a_jpegs_colors_stay() -> None:
    plain, adobe = encode(), b"Adobe\0\x64\0\0\0\0\1"

    def with_adobe(payload: bytes) -> bytes:
        return plain[:20] + b"\xff\xee" + (len(payload) + 2).to_bytes(2) + payload + plain[20:]

    assert read(Post("a", image_bytes=with_adobe(adobe + b"where we live")), 40_000) == with_adobe(adobe)


@pytest.mark.parametrize("kind", [b"caBX", b"zxIf", b"iDOT", b"mkBT", b"prVW", b"fdAT", b"acTL", b"sPLT"])
def test_other_chunks_of_a_png_are_removed(kind: bytes) -> None:
    plain = encode("PNG")

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    gamma = plain[:33] + chunk(b"gAMA", (45455).to_bytes(4)) + plain[33:]
    encoded = gamma[:33] + chunk(kind, b"where we live") + gamma[33:]
    assert formats.strip_metadata(encoded) == gamma


def test_gray_fractions_are_not_black() -> None:
    values = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    with Image.open(io.BytesIO(file.getvalue())) as image:
        np.testing.assert_allclose(np.asarray(formats.to_rgb(image))[:, :, 0], values * 255, atol=0.51)


def test_a_png_with_a_wrong_checksum_is_rejected() -> None:
    encoded = bytearray(encode("PNG"))
    encoded[encoded.index(b"IDAT") + 200] ^= 1
    with pytest.raises(BadPost, match="image_truncated"):
        read(Post("a", image_bytes=bytes(encoded)), 40_000)
