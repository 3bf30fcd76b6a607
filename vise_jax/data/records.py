"""Records of engagement shards, read one by one: a corrupt record loses no other.

A TFRecord is the length of its data (8 bytes), a checksum of the length (4), the data, and a checksum of the data (4).
Numbers are little-endian; checksums are CRC-32C, masked. `tf.data.TFRecordDataset` stops at the first wrong checksum.
"""

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from vise_jax import artifact
from vise_jax.errors import UserError

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
# Bytes of a record beside its data.
_FRAME = _HEADER.size + _FOOTER.size
# Records with a smaller gap between them are read together, up to this size; in bytes.
_LARGEST_GAP, _LARGEST_READ = 1 << 16, 1 << 24
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
# Reasons for a corrupt record.
CHECKSUM, CUT_OFF = "wrong checksum", "missing or cut off"
# No file has more records.
_MOST_RECORDS = 1 << 26


def read_index(path: Path, examples: int) -> np.ndarray:
    """Return offset and length of the data of each record of a TFRecord file, int64 [N, 2].

    The lengths are read from the table that labeling writes beside a shard, or from the headers of all records. A
    record that is cut off, or whose length is damaged, has the length -1.

    Args:
        path: the file.
        examples: number of records that were written to it.

    Raises:
        UserError: the file can't be opened, holds more records than were written to it, or `examples` is out of range.
    """
    if not 0 <= examples <= _MOST_RECORDS:
        raise UserError(f"{path} can't have {examples:,} records: copy the file that states their number again.")
    try:
        with _opened(path) as begin:
            size = artifact.version(path)[0]
            lengths = _lengths_in_table(path, examples, size)
            if lengths is None and not artifact.is_remote(path):
                lengths = _walk(begin, examples, size)
            if lengths is None:
                return _salvage(path, begin(0, size)(), examples)
    except OSError as error:
        raise _unreadable(path, error) from error
    return np.stack([np.cumsum(lengths + _FRAME) - lengths - _FOOTER.size, lengths], axis=1)


def read_records(path: Path, index: np.ndarray, wanted: Sequence[int]) -> tuple[list[bytes], dict[int, str]]:
    """Read records of a TFRecord file; neighbors are read together.

    Args:
        path: the file.
        index: offset and length of each record, from `read_index`.
        wanted: numbers of the records, ascending, from 0.

    Returns:
        The data of each wanted record, b"" for a corrupt one; and the reason for each corrupt one, by number.

    Raises:
        UserError: the file can't be read.
    """
    data: list[bytes] = []
    corrupt: dict[int, str] = {}
    try:
        with _opened(path) as begin:
            # In an object store all of them are in flight.
            readings = []
            for run in _runs(index, wanted):
                offset = int(index[run[0], 0])
                readings.append((run, offset, begin(offset, int(index[run[-1]].sum()) + _FOOTER.size - offset)))
            for run, offset, wait in readings:
                content = wait()
                for number in run:
                    start, length = int(index[number, 0]) - offset, int(index[number, 1])
                    if length < 0 or start + length + _FOOTER.size > len(content):
                        corrupt[number] = CUT_OFF
                    elif (
                        _masked_crc(content[start : start + length]) != _FOOTER.unpack_from(content, start + length)[0]
                    ):
                        corrupt[number] = CHECKSUM
                    data.append(b"" if number in corrupt else content[start : start + length])
    except OSError as error:
        raise _unreadable(path, error) from error
    return data, corrupt


# Begins to read bytes from an offset on, and returns a function that waits for them: fewer at the end of the file.
_Begin = Callable[[int, int], Callable[[], bytes]]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Begin]:
    """Yield a function that reads a part of a file."""
    if artifact.is_remote(path):
        yield partial(artifact.begin_range, path)
        return
    with open(path, "rb", buffering=0) as file:
        yield lambda offset, length: partial(os.pread, file.fileno(), length, offset)


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"The shard {path} can't be read ({error.strerror}): copy it again.")


def _lengths_in_table(path: Path, examples: int, size: int) -> np.ndarray | None:
    """Return the lengths that labeling recorded, int64 [N]; None where they are missing or of another file."""
    table = path.parent / "records" / f"{path.stem}.safetensors"
    try:
        if artifact.is_remote(table):
            lengths = safetensors.numpy.load(artifact.read_object(table))["lengths"].astype(np.int64)
        else:
            with safetensors.safe_open(table, framework="numpy") as opened:
                lengths = opened.get_tensor("lengths").astype(np.int64)
    except (KeyError, OSError, SafetensorError):
        return None
    return lengths if len(lengths) == examples and (lengths + _FRAME).sum() == size else None


def _walk(begin: _Begin, examples: int, size: int) -> np.ndarray | None:
    """Return the length of each record by its header, int64 [N]; None where one is damaged or the file is cut off."""
    lengths, offset = np.empty(examples, np.int64), 0
    for number in range(examples):
        header = begin(offset, _HEADER.size)()
        if not _is_header(header):
            return None
        length = _HEADER.unpack(header)[0]
        if length > size - offset - _FRAME:
            return None
        lengths[number] = length
        offset += length + _FRAME
    return lengths if offset == size else None


def _salvage(path: Path, content: bytes, examples: int) -> np.ndarray:
    """Index a damaged file: after a wrong length, search the next header with a valid checksum."""
    intact: list[tuple[int, int]] = []
    gap, offset = None, 0
    while offset < len(content):
        header = content[offset : offset + _HEADER.size]
        if _is_header(header):
            start, length = offset + _HEADER.size, _HEADER.unpack(header)[0]
            if start + length + _FOOTER.size <= len(content):
                intact.append((start, length))
                offset = start + length + _FOOTER.size
                continue
        gap = len(intact) if gap is None else gap
        offset = _next_header(content, offset + 1)
    missing = examples - len(intact)
    if missing < 0:
        raise UserError(f"The shard {path} holds {len(intact):,} records instead of {examples:,}: copy it again.")
    # With several gaps, the number of records lost in each is unknown: all count as lost in the first.
    gap = len(intact) if gap is None else gap
    lost = [(0, -1)] * missing
    return np.array([*intact[:gap], *lost, *intact[gap:]], np.int64).reshape(-1, 2)


def _runs(index: np.ndarray, wanted: Sequence[int]) -> Iterator[list[int]]:
    """Group ascending record numbers into runs that one read covers, with small gaps."""
    run: list[int] = []
    for number in wanted:
        offset, length = index[number].tolist()
        if run and (
            min(length, index[run[-1], 1]) < 0
            or offset - index[run[-1]].sum() > _LARGEST_GAP
            or offset + length - index[run[0], 0] > _LARGEST_READ
        ):
            yield run
            run = []
        run.append(number)
    if run:
        yield run


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
            logged = artifact.json_lines(path, ("shard", "record"))
            self._known = {(entry["shard"], entry["record"]) for _, entry in logged}
            artifact.write_text(path, "".join(line for line, _ in logged))

    def __contains__(self, record: tuple[str, int]) -> bool:
        return record in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, shard: str, record: int, reason: str) -> None:
        """Log an example, once."""
        if (shard, record) not in self._known:
            self._known.add((shard, record))
            with artifact.disk_full(self._path), open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"shard": shard, "record": record, "reason": reason}) + "\n")
