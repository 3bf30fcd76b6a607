"""Pictures of every kind that is read."""

import io

import numpy as np
from PIL import Image


def picture(width: int, height: int) -> Image.Image:
    """A smooth color picture, so that JPEG stays close to it."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str) -> bytes:
    mode, file_format = {
        "jpeg": ("RGB", "JPEG"),
        "gray jpeg": ("L", "JPEG"),
        "cmyk jpeg": ("CMYK", "JPEG"),
        "png": ("RGB", "PNG"),
        "gray png": ("L", "PNG"),
        "palette png": ("P", "PNG"),
        "alpha png": ("RGBA", "PNG"),
    }[kind]
    file = io.BytesIO()
    image.convert(mode).save(file, file_format)
    return file.getvalue()


KINDS = ["jpeg", "gray jpeg", "cmyk jpeg", "png", "gray png", "palette png", "alpha png"]
