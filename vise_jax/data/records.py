"""Records of engagement shards, read so that a damaged one costs itself and no other.

A TFRecord is the length of its data (8 bytes), a checksum of that (4), the data, and a checksum of these (4); numbers
are little-endian, checksums are CRC-32C, masked. `tf.data.TFRecordDataset` gives up a file at the first wrong checksum.
"""

import json
import struct
from pathlib import Path

import google_crc32c
import numpy as np

from vise_jax import artifact
from vise_jax.errors import UserError

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
# Offsets that are searched for a header at a time.
_SEARCH_BLOCK = 1 << 20
_CRC_OF_ZERO = google_crc32c.value(bytes(8))
# CRC-32C of an 8-byte length with one nonzero byte, relative to that of zero: uint32 [4, 256].
_CRC_TABLES = np.array(
    [
        [google_crc32c.value((value << 8 * byte).to_bytes(8, "little")) ^ _CRC_OF_ZERO for value in range(256)]
        for byte in range(4)
    ],
    np.uint32,
)
# What the reader says of a record that it can't give.
CHECKSUM, CUT_OFF = "wrong checksum", "missing or cut off"


def read_shard(path: Path, examples: int, wanted: range) -> tuple[list[bytes], dict[int, str]]:
    """Read consecutive records of a TFRecord file.

    Args:
        path: the file.
        examples: how many records it was written with.
        wanted: numbers of the records to read, from 0.

    Returns:
        the data of each of them, b"" for a damaged one; and what is wrong with these, by number.

    Raises:
        UserError: the file can't be opened, or holds more records than it was written with.
    """
    try:
        with open(path, "rb", buffering=1 << 20) as file:
            found = _walk(file, wanted)
            if found is None:
                file.seek(0)
                found = _salvage(path, file.read(), examples)[wanted.start : wanted.stop]
    except OSError as error:
        raise UserError(f"The shard {path} can't be read ({error.strerror}): copy it again.") from error
    bad = {number: why for number, (data, why) in zip(wanted, found, strict=True) if data is None}
    return [data or b"" for data, _ in found], bad


Found = tuple[bytes | None, str]


def _walk(file, wanted: range) -> list[Found] | None:  # type: ignore[no-untyped-def]
    """The wanted records of an open file; None where a length is wrong or the file ends too early."""
    found: list[Found] = []
    for number in range(wanted.stop):
        header = file.read(_HEADER.size)
        if not _is_header(header):
            return None
        length = _HEADER.unpack(header)[0]
        if number < wanted.start:
            file.seek(length + _FOOTER.size, 1)
            continue
        data, footer = file.read(length), file.read(_FOOTER.size)
        if len(footer) < _FOOTER.size:
            return None
        found.append(_checked(data, footer))
    return found


def _salvage(path: Path, content: bytes, examples: int) -> list[Found]:
    """All records of a damaged file: behind a wrong length, the next header that its own checksum confirms goes on."""
    found: list[Found] = []
    gap, offset = None, 0
    while offset < len(content):
        header = content[offset : offset + _HEADER.size]
        if _is_header(header):
            start = offset + _HEADER.size
            end = start + _HEADER.unpack(header)[0]
            if end + _FOOTER.size <= len(content):
                found.append(_checked(content[start:end], content[end : end + _FOOTER.size]))
                offset = end + _FOOTER.size
                continue
        gap = len(found) if gap is None else gap
        offset = _next_header(content, offset + 1)
    missing = examples - len(found)
    if missing < 0:
        raise UserError(f"The shard {path} holds {len(found):,} records instead of {examples:,}: copy it again.")
    # Where there are several gaps, how many records each has swallowed is not known; all of them are said to be in one.
    gap = len(found) if gap is None else gap
    return found[:gap] + [(None, CUT_OFF)] * missing + found[gap:]


def _next_header(content: bytes, offset: int) -> int:
    """Return the first offset from `offset` on where a header with a valid checksum starts, or the end of `content`.

    CRC-32C is affine: that of a length below 2**32 is the XOR of one table entry per byte, for all offsets of a block
    at once.
    """
    data = np.frombuffer(content, np.uint8)
    end = len(content) - _HEADER.size + 1
    for first in range(offset, end, _SEARCH_BLOCK):
        stop = min(first + _SEARCH_BLOCK, end)
        zero = data[first + 4 : stop + 7] == 0
        # No record is empty, and runs of zeros are common.
        filled = data[first : stop + 3] != 0
        filled = filled[:-3] | filled[1:-2] | filled[2:-1] | filled[3:]
        starts = first + np.flatnonzero(filled & zero[:-3] & zero[1:-2] & zero[2:-1] & zero[3:])
        crc = np.full(len(starts), _CRC_OF_ZERO, np.uint32)
        stored = np.zeros(len(starts), np.uint32)
        for byte in range(4):
            crc ^= _CRC_TABLES[byte][data[starts + byte]]
            stored |= data[starts + 8 + byte].astype(np.uint32) << np.uint32(8 * byte)
        masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
        valid = starts[masked == stored]
        if len(valid):
            return int(valid[0])
    return len(content)


def _is_header(header: bytes) -> bool:
    return len(header) == _HEADER.size and _masked_crc(header[:8]) == _HEADER.unpack(header)[1]


def _checked(data: bytes, footer: bytes) -> Found:
    return (data, "") if _masked_crc(data) == _FOOTER.unpack(footer)[0] else (None, CHECKSUM)


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class CorruptExamples:
    """Log corrupt examples, one line of JSON each, and count the distinct ones.

    Args:
        path: the log; examples that an earlier process has logged count, too.
    """

    def __init__(self, path: Path):
        self._path = path
        self._known: set[tuple[str, int]] = set()
        if path.exists():
            lines = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
            self._known = {(entry["shard"], entry["record"]) for entry in map(json.loads, lines)}
            # A kill can cut the last line short.
            artifact.write_text(path, "".join(lines))

    def __contains__(self, record: tuple[str, int]) -> bool:
        return record in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, shard: str, record: int, reason: str) -> None:
        """Log an example, once."""
        if (shard, record) not in self._known:
            self._known.add((shard, record))
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"shard": shard, "record": record, "reason": reason}) + "\n")
