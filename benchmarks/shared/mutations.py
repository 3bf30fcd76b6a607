"""Mutate files on purpose, with what is inside their containers: packed content, members, JSON values, records."""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import google_crc32c
import zstandard

# Values that readers must expect in JSON, whatever was there.
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 1e308, float("nan")),
    *(float("inf"), "", " ", "\0", "\ud800", "../../../../etc/passwd", "/etc/passwd", "C:\\x", "a" * 100_000, "１２"),
    *([], {}, [[]], [None], {"": None}, {"a": {}}, "NaN", "1e400", "%s%n", "<script>", "0" * 5000, -1.0, 1e-320),
)
# Text and bytes that have a meaning to some reader.
_TOKENS = (
    *(b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b"\r\n", b",", b'"', b"'", b" ", b"\t", b"-", b"1"),
    *(b"nan", b"inf", b"1e999", b"..", b"/", b"../", b"[" * 5000, b"{", b"}", b"\x80\x04", b"\xe2\x80\xa8", b"\x1a"),
    *(b"99999999999999999999", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0" * 64, b"\x85", b"\x0b", b"\x0c"),
)
_Inner = tuple[bytes, Callable[[bytes], bytes]]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return a file with one or a few mutations, most of them inside of what it contains."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        content = _mutated(content, draw)
    return content


def _mutated(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.8:
        for view in VIEWS:
            try:
                opened = view(content, draw)
            except Exception:  # an earlier mutation has damaged it
                continue
            if opened is not None:
                inner, pack = opened
                return pack(_mutated(inner, draw))
        if (changed := _with_hostile_json(content, draw)) is not None:
            return changed
    return _with_other_bytes(content, draw)


def _gzip(content: bytes, draw: random.Random) -> _Inner | None:
    return (gzip.decompress(content), gzip.compress) if content.startswith(b"\x1f\x8b") else None


def _zstandard(content: bytes, draw: random.Random) -> _Inner | None:
    if not content.startswith(b"\x28\xb5\x2f\xfd"):
        return None
    return zstandard.ZstdDecompressor().decompressobj().decompress(content), zstandard.ZstdCompressor().compress


def _zip(content: bytes, draw: random.Random) -> _Inner | None:
    if not content.startswith(b"PK\x03\x04"):
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    chosen = draw.randrange(len(members))

    def pack(inner: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for number, (info, old) in enumerate(members):
                name = info.filename
                if number == chosen and draw.random() < 0.1:
                    name = str(draw.choice(("../x.jpg", "/x.jpg", "a/../../x.jpg", "", "x" * 1000, "a\nb.jpg", name)))
                archive.writestr(zipfile.ZipInfo(name), inner if number == chosen else old)
        return file.getvalue()

    return members[chosen][1], pack


def _tar(content: bytes, draw: random.Random) -> _Inner | None:
    if content[257:262] != b"ustar":
        return None
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(info, file.read()) for info in archive if (file := archive.extractfile(info))]
    chosen = draw.randrange(len(members))

    def pack(inner: bytes) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number, (info, old) in enumerate(members):
                member, body = tarfile.TarInfo(info.name), inner if number == chosen else old
                if number == chosen and draw.random() < 0.2:
                    member.name = str(draw.choice(("../x.jpg", "/x.json", ".jpg", "x", "a" * 200, member.name)))
                    member.type = draw.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE))
                    member.linkname = "/etc/passwd"
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
        return file.getvalue()

    return members[chosen][1], pack


def _safetensors(content: bytes, draw: random.Random) -> _Inner | None:
    (length,) = struct.unpack_from("<Q", content)
    if length > len(content) or content[8:9] != b"{":
        return None
    return content[8 : 8 + length], lambda header: struct.pack("<Q", len(header)) + header + content[8 + length :]


def _tfrecord(content: bytes, draw: random.Random) -> _Inner | None:
    """Open one record, so that a mutation has valid checksums."""
    records, offset = [], 0
    while offset < len(content):
        length, crc = struct.unpack_from("<QI", content, offset)
        if _masked(content[offset : offset + 8]) != crc:
            return None
        records.append(content[offset + 12 : offset + 12 + length])
        offset += length + 16
    if not records:
        return None
    chosen = draw.randrange(len(records))

    def pack(inner: bytes) -> bytes:
        framed = []
        for number, old in enumerate(records):
            data = inner if number == chosen else old
            length = struct.pack("<Q", len(data))
            framed += [length, struct.pack("<I", _masked(length)), data, struct.pack("<I", _masked(data))]
        return b"".join(framed)

    return records[chosen], pack


def _masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


VIEWS = (_gzip, _zstandard, _zip, _tar, _safetensors, _tfrecord)


def _with_hostile_json(content: bytes, draw: random.Random) -> bytes | None:
    """Change a value of a JSON file, or of a line of JSON lines; None for another file."""
    if content[:1] not in (b"{", b"["):
        return None
    lines, number = [content], 0
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        lines = content.split(b"\n")
        number = draw.randrange(len(lines))
        try:
            value = json.loads(lines[number])
        except (ValueError, RecursionError):
            return None
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        for key in keys:
            places.append((inner, key))
            if len(places) < 2000:
                walk(inner[key])

    walk(root := [value])
    parent, key = draw.choice(places)
    old = parent[key]
    action = draw.randrange(8)
    if action == 0 and parent is not root:
        del parent[key]
    elif action == 1:
        parent[key] = draw.choice(([old], {"a": old}, str(old)))
    elif action == 2 and isinstance(parent, dict):
        parent[draw.choice((f"{key}x", "", "__class__", key.upper()))] = old
    elif action == 3 and isinstance(old, int | float):
        parent[key] = draw.choice((old + 1, old - 1, -old, old * 1000, float(old) if abs(old) < 1e300 else 0))
    else:
        parent[key] = draw.choice(HOSTILE)
    if not root:
        return b""
    lines[number] = json.dumps(root[0]).encode()
    return b"\n".join(lines)


def _with_other_bytes(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    start = draw.randrange(len(data) + 1)
    # Headers decide more than what follows.
    if draw.random() < 0.5:
        start = min(start, draw.randrange(200))
    end = min(start + draw.choice((1, 1, 2, 4, 8, 30, 300)), len(data))
    action = draw.randrange(7)
    if action == 0:
        del data[start:]
    elif action == 1:
        del data[start:end]
    elif action == 2:
        data[start:start] = draw.choice(_TOKENS)
    elif action == 3:
        data[start:end] = draw.choice(_TOKENS)
    elif action == 4:
        data[start:start] = data[start:end] * draw.choice((1, 2, 50))
    elif start < len(data):
        data[start] = draw.choice((data[start] ^ (1 << draw.randrange(8)), 0, 255, draw.randrange(256)))
    return bytes(data)
