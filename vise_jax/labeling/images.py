"""Images of posts: what labeling accepts, training can decode; nothing large or foreign is ever decoded."""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import cast

from PIL import Image

from vise_jax import artifact
from vise_jax.data import perceptual
from vise_jax.data.formats import DAMAGE, JPEG, PNG, strip_metadata, to_rgb
from vise_jax.posts import BadPost, Post

_KEPT = ("JPEG", "PNG")
# Transcoded to JPEG once; of several frames the first.
_TRANSCODED = ("WEBP", "GIF", "BMP", "TIFF", "AVIF")
# First bytes of images of other formats: icons, JPEG XL, Photoshop; and, after four bytes, HEIC.
_OTHER_FORMATS = (b"\0\0\1\0", b"\xff\x0a", b"8BPS")
# Pixel modes of JPEG and PNG files that TensorFlow decodes as Pillow does.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})


def read_image(
    post: Post,
    max_pixels: int,
    quality: int = 90,
    link_roots: Sequence[str] = (),
    side: int = 0,
    max_bytes: int = 64 * 2**20,
) -> tuple[bytes, int]:
    """Return the encoded image of a post, a JPEG or PNG file without metadata, and its perceptual hash.

    The image is decoded to its end, so that training can decode it. JPEG and PNG files keep their pixels' bytes. Other
    formats, JPEG files that are not gray or RGB, and images that are shrunk are transcoded to JPEG.

    Args:
        post: with `image` or `image_bytes`.
        max_pixels: an image with more, by its header, is not decoded.
        quality: of the transcoded JPEG files, 1 to 95.
        link_roots: directories outside of that of the posts that links may point into.
        side: an image whose shorter side is longer is shrunk to it; 0 = none is.
        max_bytes: a longer file is not opened.

    Raises:
        BadPost: `no_image`, `image_missing`, `image_path_leaves_folder` (also through a link), `image_empty`,
            `image_too_large` (bytes or pixels), `image_format`, `image_not_an_image` or `image_truncated`.
    """
    encoded = post.image_bytes if post.image_bytes is not None else _read_file(post, link_roots, max_bytes)
    if not encoded:
        raise BadPost("image_empty")
    if len(encoded) > max_bytes:
        raise BadPost("image_too_large")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=(*_KEPT, *_TRANSCODED))
        if image.width * image.height > max_pixels:
            raise BadPost("image_too_large")
        shrinks = 0 < side < min(image.size)
        if image.format in _KEPT and image.mode in _MODES and not shrinks:
            # A fraction of the size takes a JPEG decoder through all its bytes with less work.
            perceptual.draft(image)
            return strip_metadata(encoded), perceptual.perceptual_hash(image)
        file, pixels = io.BytesIO(), _shrunk(image, side) if shrinks else to_rgb(image)
        pixels.save(file, "JPEG", quality=quality, comment=b"")
        return file.getvalue(), perceptual.perceptual_hash(pixels)
    except Image.DecompressionBombError as error:
        raise BadPost("image_too_large") from error
    except Image.UnidentifiedImageError as error:
        raise BadPost(_unidentified(encoded)) from error
    except DAMAGE as error:
        raise BadPost("image_truncated") from error


def begin_image(posts: Path) -> Callable[[Post], artifact.Reading]:
    """Return a function that begins to read the image of a post of a file in an object store."""
    begin = artifact.reader(posts.parent)
    # The schema allows no path that leaves the directory, and there are no links. "./a" is "a".
    return lambda post: begin(str(PurePosixPath(cast(str, post.image))))


def with_image(post: Post, reading: artifact.Reading | None) -> Post:
    """Return a post with its image, when that has been read.

    Raises:
        BadPost: `image_missing`.
        UserError: the object store has failed.
    """
    if reading is None:
        return post
    try:
        return replace(post, image_bytes=reading()[0])
    except FileNotFoundError as error:
        raise BadPost("image_missing") from error


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """Shrink an image so that its shorter side is `side`, with an antialiasing filter."""
    scale = side / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    image.draft(None, size)  # a JPEG decoder halves images with less work, as long as they stay larger
    return to_rgb(image).resize(size, Image.Resampling.BICUBIC)


def _unidentified(encoded: bytes) -> str:
    if encoded.startswith((JPEG, PNG)):
        return "image_truncated"
    other = encoded.startswith(_OTHER_FORMATS) or encoded[4:8] == b"ftyp"
    return "image_format" if other else "image_not_an_image"


def _read_file(post: Post, link_roots: Sequence[str], max_bytes: int) -> bytes:
    if post.image is None:
        raise BadPost("no_image")
    directory = post.source.parent.resolve()
    try:
        path = (directory / post.image).resolve()
        roots = [directory]
        # Link roots are for links: a path can't name a file in them by `..` or as an absolute path.
        if Path(os.path.normpath(directory / post.image)).is_relative_to(directory):
            roots += [Path(root).resolve() for root in link_roots]
        if not any(path.is_relative_to(root) for root in roots):
            raise BadPost("image_path_leaves_folder")
        if not path.is_file():
            raise BadPost("image_missing")
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except (OSError, RuntimeError) as error:  # unreadable, or links in a circle
        raise BadPost("image_missing") from error
