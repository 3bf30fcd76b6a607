"""Image files: the one rule for pixels, and JPEG and PNG files without metadata.

Evaluation decodes with Pillow, training with TensorFlow. Both ignore orientation tags (EXIF), drop transparency, and
take the upper 8 bits of 16.
"""

import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

# Text and ICC profiles of a PNG file, unpacked. Pillow's bounds of 1 MiB per chunk refuse sound files.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20
PngImagePlugin.MAX_TEXT_MEMORY = 64 * 2**20

# What Pillow raises on truncated or corrupt files, depending on the format and the position.
DAMAGE = (OSError, SyntaxError, ValueError, IndexError, RuntimeError, struct.error, zlib.error)

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Of a JPEG file's application segments and comments, those that decide the pixels: JFIF's, ICC profiles, Adobe's.
_JPEG_OTHERS = range(0xE0, 0xFF)
_APP0, _APP2, _APP14 = 0xE0, 0xE2, 0xEE
# Bytes of the fields of JFIF's, before the size of a preview, and of Adobe's.
_FIELDS_BYTES = 12
# Start of a frame, with the image's size: all of 0xC0 to 0xCF but tables and extensions.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Ancillary chunks of a PNG file that decide how its pixels are shown.
_PNG_KEPT = frozenset({b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"pHYs", b"cICP"})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"
# The marker after the data of a scan: neither a stuffed byte, nor a restart, nor a fill byte.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to RGB, without transparency. Of 16-bit gray values the upper 8 bits are taken.

    Floating-point gray values up to 1 are fractions of white. Pillow's own `convert` clips to 0 to 255.
    """
    if image.mode == "F" and 0 < (values := np.asarray(image)).max() <= 1:
        image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image.convert("RGB")


def strip_metadata(encoded: bytes) -> bytes:
    """Remove what is no part of the image from a JPEG or PNG file; the pixels are not encoded again.

    Of application segments and ancillary chunks only those stay that decide how pixels are shown. EXIF, XMP, IPTC,
    C2PA, text, comments, previews, further frames and what makers of cameras add are removed.

    Raises:
        ValueError: the file ends within a segment or chunk, or a PNG file has no last chunk.
    """
    if encoded.startswith(JPEG):
        segments = (
            _pixels_of(code, encoded[start:end], encoded[offset + 3 : end])
            for code, start, offset, end in _jpeg_segments(encoded)
        )
        # What follows is not part of the image: previews and trailers, with metadata of their own.
        return encoded[:2] + b"".join(segments) + _END_OF_IMAGE
    # A critical chunk begins with a capital letter.
    return PNG + b"".join(chunk for kind, chunk in _png_chunks(encoded) if kind[:1].isupper() or kind in _PNG_KEPT)


def image_shape(encoded: bytes) -> tuple[int, int]:
    """Return height and width in the header of a JPEG or PNG file; zeros if there is none."""
    try:
        if encoded.startswith(PNG):
            width, height = struct.unpack_from(">II", encoded, 16)
            return height, width
        for code, _, offset, _ in _jpeg_segments(encoded):
            if code in _JPEG_FRAMES:
                return struct.unpack_from(">HH", encoded, offset + 4)
    except (ValueError, struct.error):
        pass
    return 0, 0


def _jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield code, start, offset of the code and end of each segment of a JPEG file; a scan belongs to its segment.

    Raises:
        ValueError: the file ends within a segment.
    """
    offset = 2
    while encoded[offset : offset + 2] != _END_OF_IMAGE or offset == 2:
        start = offset
        while encoded[offset : offset + 1] == b"\xff":  # fill bytes may come before the marker's code
            offset += 1
        if offset == start or offset + 3 > len(encoded):
            raise ValueError("no JPEG marker")
        code, end = encoded[offset], offset + 1 + struct.unpack_from(">H", encoded, offset + 1)[0]
        if end > len(encoded):
            raise ValueError("cut off within a JPEG segment")
        if code == _START_OF_SCAN:
            following = _AFTER_SCAN.search(encoded, end)
            if following is None:
                raise ValueError("cut off within a JPEG scan")
            end = following.start()
        yield code, start, offset, end
        offset = end


def _pixels_of(code: int, segment: bytes, payload: bytes) -> bytes:
    """Return what a segment says of the pixels: all, its first fields, or nothing."""
    if code not in _JPEG_OTHERS:
        return segment
    if code == _APP0 and payload.startswith(b"JFIF\0"):
        # Without the preview, which other tools may have left uncropped.
        return _segment(code, payload[:_FIELDS_BYTES] + b"\0\0")
    if code == _APP2 and payload.startswith(b"ICC_PROFILE\0"):
        return segment
    if code == _APP14 and payload.startswith(b"Adobe"):
        return _segment(code, payload[:_FIELDS_BYTES])
    return b""


def _segment(code: int, payload: bytes) -> bytes:
    return b"\xff" + bytes([code]) + struct.pack(">H", len(payload) + 2) + payload


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and bytes of each chunk up to the last one, IEND."""
    offset, kind = len(PNG), b""
    while kind != b"IEND":
        if offset + 12 > len(encoded):
            raise ValueError("a PNG file without its last chunk")
        length, kind = struct.unpack_from(">I4s", encoded, offset)
        end = offset + 12 + length
        if end > len(encoded):
            raise ValueError("cut off within a PNG chunk")
        # Pillow doesn't check the pixels' checksums, TensorFlow does.
        if zlib.crc32(encoded[offset + 4 : end - 4]) != struct.unpack_from(">I", encoded, end - 4)[0]:
            raise ValueError("a PNG chunk with a wrong checksum")
        yield kind, encoded[offset:end]
        offset = end
