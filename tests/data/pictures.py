"""Pictures of every kind that is read."""

import io

import numpy as np
from PIL import Image


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
