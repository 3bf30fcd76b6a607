"""Whether a post's image is one that can be trained on; nothing large or foreign is ever decoded."""

import io
import struct
import warnings
import zlib

from PIL import Image

from vise_jax.posts import BadPost, Post

MAX_IMAGE_BYTES = 64 * 2**20

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# First bytes of images that are real but of a format that training does not read.
_OTHER_FORMATS = (b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0", b"\xff\x0a", b"8BPS")
# What Pillow raises on files that are cut off or damaged, depending on where.
_DAMAGE = (OSError, SyntaxError, ValueError, IndexError, struct.error, zlib.error)


def read_image(post: Post, max_pixels: int) -> bytes:
    """The encoded image of a post, decoded once to its end to be sure of it.

    Args:
        post: with `image` or `image_bytes`.
        max_pixels: an image whose header says more is not decoded.

    Raises:
        BadPost: `no_image`, `image_missing`, `image_path_leaves_folder` (also through a link), `image_empty`,
            `image_too_large` (bytes or pixels), `image_format`, `image_not_an_image` or `image_truncated`.
    """
    encoded = post.image_bytes if post.image_bytes is not None else _read_file(post)
    if not encoded:
        raise BadPost("image_empty")
    if len(encoded) > MAX_IMAGE_BYTES:
        raise BadPost("image_too_large")
    if not encoded.startswith((_JPEG, _PNG)):
        other = encoded.startswith(_OTHER_FORMATS) or encoded[4:8] == b"ftyp"
        raise BadPost("image_format" if other else "image_not_an_image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG"))
        if image.width * image.height > max_pixels:
            raise BadPost("image_too_large")
        # An eighth of the size takes a JPEG's decoder through all its bytes at a fraction of the work.
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
    except Image.DecompressionBombError as error:
        raise BadPost("image_too_large") from error
    except _DAMAGE as error:
        raise BadPost("image_truncated") from error
    return encoded


def _read_file(post: Post) -> bytes:
    if post.image is None:
        raise BadPost("no_image")
    folder = post.source.parent.resolve()
    try:
        path = (folder / post.image).resolve()
        if not path.is_relative_to(folder):
            raise BadPost("image_path_leaves_folder")
        if not path.is_file():
            raise BadPost("image_missing")
        with open(path, "rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, RuntimeError) as error:  # unreadable, or links in a circle
        raise BadPost("image_missing") from error
