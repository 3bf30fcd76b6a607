"""Perceptual hashes: near-duplicates of an image differ in few bits."""

import io

import imagehash
import numpy as np
from PIL import Image

from vise_jax.data.formats import to_rgb

# Images are decoded at a fraction of their size, but not smaller than this.
MIN_SIDE = 64


def draft(image: Image.Image) -> None:
    """Prepare a JPEG file to be decoded at the smallest scale that `perceptual_hash` needs."""
    image.draft(None, (min(image.width, MIN_SIDE), min(image.height, MIN_SIDE)))


def perceptual_hash(image: Image.Image) -> int:
    """Return the 64-bit perceptual hash of an image: signs of low frequencies of its gray values (pHash).

    Args:
        image: decoded, at any scale of at least `MIN_SIDE`.

    Raises:
        one of `formats.DAMAGE`: a truncated or corrupt file.
    """
    bits = imagehash.phash(to_rgb(image)).hash
    return int(np.packbits(bits.ravel()).view(">u8")[0])


def hash_file(encoded: bytes, formats: tuple[str, ...]) -> int:
    """Return the perceptual hash of an encoded image.

    Args:
        encoded: the image file.
        formats: Pillow's names of the formats that are decoded.

    Raises:
        one of `formats.DAMAGE`: a truncated or corrupt file.
    """
    with Image.open(io.BytesIO(encoded), formats=formats) as image:
        draft(image)
        return perceptual_hash(image)
