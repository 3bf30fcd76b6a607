"""Readers of posts files: JSONL (plain, gzip or Zstandard), Parquet and WebDataset tars, streamed post by post."""

import contextlib
import gzip
import hashlib
import io
import itertools
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.posts.reject_log import RejectLog
from vise_jax.posts.schema import BEGINNING, LIMITS, THE_PAPERS, BadPost, Buttons, Cursor, Limits, Post, parse

_PARQUET_ROWS = 256
_BLOCK_BYTES = 2**20
# Zstandard: packed bytes that are unpacked at a time, to 128 MiB at most, and the largest window, that of Pushshift's
# dumps of Reddit.
_PACKED_BYTES = 2**12
MAX_WINDOW = 2**31
_PARQUET_NEEDS = ("post_id", "comments", "reactions")
_MAGIC_BYTES = 4
_GZIP, _ZSTANDARD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
# bzip2, xz and zip, which are not read.
_OTHER_PACKED = re.compile(rb"BZh[1-9]|\xfd7zX|PK\x03\x04")
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".tar")
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
# Decoded JSON or a Parquet row, or why there is none; and the cursor after it.
_Record = tuple[object, Cursor]


def expand(patterns: str) -> list[Path]:
    """Return the files that comma-separated glob patterns match, sorted, each once.

    A path that exists is taken literally, whatever brackets or commas it has.

    Raises:
        UserError: a pattern matches no file.
    """
    # Not by `Path`, for which a name that is too long is an error.
    if os.path.isfile(patterns):
        return [Path(patterns)]
    files: set[Path] = set()
    pieces = [piece.strip() for piece in patterns.split(",")]
    while pieces:
        # The longest run of pieces that is a file: its name has commas.
        for end in range(len(pieces), 0, -1):
            name = ",".join(pieces[:end])
            if name and os.path.isfile(name):
                files.add(Path(name))
                break
        else:
            end, pattern = 1, pieces[0]
            matches = set(artifact.find(pattern)) if pattern else set()
            if pattern and not matches:
                raise UserError(
                    f"No posts file matches {pattern!r}: give a .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .tar "
                    "file, or a glob."
                )
            files |= matches
        pieces = pieces[end:]
    if not files:
        raise UserError("The pattern of posts files is empty: give a .jsonl or .parquet file, or a glob.")
    return sorted(files, key=str)


def read(
    path: Path,
    reject_log: RejectLog,
    start: Cursor = BEGINNING,
    end: int | None = None,
    buttons: Buttons = THE_PAPERS,
    limits: Limits = LIMITS,
    size: int | None = None,
) -> Iterator[Post]:
    """Stream the posts of one file. Malformed ones are counted in `reject_log`.

    Nothing is read ahead: the counts of `reject_log` are those up to the cursor after the last post.

    Args:
        path: a posts file: Parquet or tar by its name; otherwise its content decides between plain text, gzip and
            Zstandard.
        reject_log: of this file.
        start: where to start, at the beginning of a line or row.
        end: offset; posts that start at or after it are not read.
        buttons: reactions to count.
        limits: of lines and comments.
        size: of the file, as of `artifact.open_file`.

    Raises:
        UserError: the file is missing, of another kind, truncated or corrupt, or too many posts are malformed.
    """
    for record, after in _records(path, start, end, limits.line_bytes, size):
        reject_log.posts += 1
        try:
            if isinstance(record, BadPost):
                raise record
            post = parse(record, reject_log.notes, buttons, limits)
        except BadPost as bad:
            reject_log.reject(after.line, bad.reason)
        else:
            yield replace(post, source=path, line=after.line, after=after)
        reject_log.check_early()
    reject_log.check()


def kind(path: Path) -> str:
    """Return "parquet" or "tar" by the name of a file; else "plain", "gzip", "zstandard" or "parquet" by its content.

    Raises:
        UserError: the file can't be read.
    """
    if path.name.endswith(".tar"):
        return "tar"
    with explained(path):
        return _kind(path, artifact.first_bytes(path, _MAGIC_BYTES))


def _kind(path: Path, first: bytes) -> str:
    if _OTHER_PACKED.match(first) and not _by_name(path):
        raise UserError(
            f"{path} is compressed by bzip2, xz or zip, which are not read: give it unpacked, or compressed by gzip or "
            "Zstandard."
        )
    kinds = {_GZIP: "gzip", _ZSTANDARD: "zstandard", _PARQUET: "parquet"}
    return _by_name(path) or next((kind for magic, kind in kinds.items() if first.startswith(magic)), "plain")


def _by_name(path: Path) -> str | None:
    return next((kind for kind in ("parquet", "tar") if path.name.endswith(f".{kind}")), None)


def _check_name(path: Path) -> None:
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path} is no posts file by its name: it has to end in {', '.join(SUFFIXES)}.")


def _records(path: Path, start: Cursor, end: int | None, line_bytes: int, size: int | None = None) -> Iterator[_Record]:
    _check_name(path)
    with explained(path), artifact.open_file(path, size) as raw:
        # Who reads lines from the beginning needs its first bytes, too.
        found = _by_name(path) or (kind(path) if start.offset else _kind(path, raw.peek(_MAGIC_BYTES)))
        if found == "parquet":
            yield from _parquet_records(path, start, end, size)
        elif found == "tar":
            yield from _tar_records(raw, start, end, line_bytes)
        else:
            yield from _lines(_unpacked(raw, path, found, start.offset), start, end, line_bytes)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of reading into one sentence."""
    try:
        with artifact.explained(path), _whole(path):
            yield
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}): check the file.") from error


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, tarfile.TarError) as error:
        raise UserError(f"{path} is truncated or corrupt ({error}): copy it again.") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain, gzip or Zstandard file to read unpacked bytes.

    Raises:
        UserError: the file can't be read, or is truncated or corrupt.
    """
    with explained(path), artifact.open_file(path) as raw:
        yield _unpacked(raw, path, _kind(path, raw.peek(_MAGIC_BYTES)), 0)


def _unpacked(raw: io.BufferedReader, path: Path, packed: str, offset: int) -> IO[bytes]:
    """Return the unpacked bytes of an open file from `offset` on."""
    if packed != "zstandard":
        file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed == "gzip" else raw
        file.seek(offset)
        return file
    stream = io.BufferedReader(_Unpacked(raw, path), _BLOCK_BYTES)
    while offset:
        offset -= len(stream.read(min(offset, _BLOCK_BYTES))) or offset
    return stream


class _Unpacked(io.RawIOBase):
    """The content of a file of Zstandard frames. A frame that is cut short is an error, as in gzip."""

    def __init__(self, packed: IO[bytes], path: Path):
        self._packed, self._path = packed, path
        self._frame: Any = None
        self._rest, self._content = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            block = self._rest or self._packed.read(_PACKED_BYTES)
            self._rest = b""
            if not block:
                if self._frame:
                    raise EOFError("a frame has no end")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
            try:
                self._content = self._frame.decompress(block)
            except zstandard.ZstdError as error:
                if "too much memory" not in str(error):
                    raise
                raise UserError(
                    f"{self._path} needs a larger window than {MAX_WINDOW // 2**20:,} MiB to unpack: compress it again "
                    "without --long, or with --long=31 at most."
                ) from error
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._content))
        buffer[:count], self._content = self._content[:count], self._content[count:]
        return count


def json_records(path: Path) -> Iterator[_Record]:
    """Yield the decoded lines of a file, or why one can't be decoded, with the cursor after it.

    Raises:
        UserError: the file can't be read, or is truncated or corrupt.
    """
    with opened(path) as file:
        yield from _lines(file, BEGINNING, None, LIMITS.line_bytes)


def _lines(file: IO[bytes], start: Cursor, end: int | None, line_bytes: int) -> Iterator[_Record]:
    """Yield the decoded lines of a file that is open at `start`; those of more than `line_bytes` are skipped unread."""
    offset, number = start
    while (end is None or offset < end) and (raw := file.readline(line_bytes)):
        number += 1
        offset += len(raw)
        if len(raw) == line_bytes and not raw.endswith(b"\n"):
            while rest := file.readline(line_bytes):
                offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield BadPost("line_too_long"), Cursor(offset, number)
            continue
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if raw.strip():
            yield _decode(raw), Cursor(offset, number)


def _decode(raw: bytes) -> object:
    try:
        # NaN and Infinity are read: a field of the schema that holds one is rejected, any other is not looked at.
        return artifact.from_json(raw)
    except UnicodeDecodeError:
        return BadPost("invalid_utf8")
    # An integer of thousands of digits is a ValueError, as bad syntax is.
    except ValueError:
        return BadPost("malformed_json")


def _parquet_records(path: Path, start: Cursor, end: int | None, size: int | None) -> Iterator[_Record]:
    with _posts_of_parquet(path, size) as file:
        wanted = [name for name in (*_PARQUET_NEEDS, "image", "image_bytes") if name in file.schema_arrow.names]
        groups = _row_groups(file)
        selected = [group for group in range(file.num_row_groups) if groups[group + 1] > start.line]
        if end is not None:
            selected = [group for group in selected if groups[group] < end]
        number = groups[selected[0]] if selected else 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=selected, columns=wanted):
            for row in range(batch.num_rows):
                number += 1
                if number > start.line and (end is None or number <= end):
                    yield _parquet_row(batch.slice(row, 1)), Cursor(number, number)


def _tar_records(file: IO[bytes], start: Cursor, end: int | None, line_bytes: int) -> Iterator[_Record]:
    """Yield the samples of a WebDataset tar: members in a row with one key, the path up to the name's first dot.

    A sample is KEY.json, with the fields of a post but the image, and KEY.jpg or another image. The key is the post's
    id if the JSON has none. Names that begin with a dot are no samples. The offset of a cursor is that of the next
    sample's header.
    """
    file.seek(start.offset)
    number, key, offset = start.line, "", start.offset
    sample: dict[str, bytes | None] = {}
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder, name = posixpath.split(posixpath.normpath(member.name))
            stem, _, suffix = name.partition(".")
            if not stem:
                continue
            # Offsets of the archive are those in the stream.
            begins = start.offset + member.offset
            if posixpath.join(folder, stem) != key:
                if sample:
                    number += 1
                    yield _of_sample(key, sample), Cursor(begins, number)
                    sample = {}
                if end is not None and begins >= end:
                    return
                key = posixpath.join(folder, stem)
            content = archive.extractfile(member) if member.size <= line_bytes else None
            sample[suffix.lower()] = content.read() if content else None
            offset = start.offset + archive.offset
        ends = start.offset + archive.offset
    # The library takes a file that was cut between two members for a whole one.
    file.seek(ends)
    if any(marker := file.read(tarfile.BLOCKSIZE)) or len(marker) < tarfile.BLOCKSIZE:
        raise EOFError("the archive has no end")
    if sample:
        yield _of_sample(key, sample), Cursor(offset, number + 1)


def _of_sample(key: str, sample: dict[str, bytes | None]) -> object:
    if None in sample.values():
        return BadPost("member_too_large")
    images = [suffix for suffix in _IMAGE_SUFFIXES if suffix in sample]
    if "json" not in sample or not images:
        return BadPost("json_missing" if images else "image_missing")
    record = _decode(sample["json"] or b"")
    if not isinstance(record, dict):
        return record
    return {"post_id": key, **record, "image": None, "image_bytes": sample[images[0]]}


def _row_groups(file: Any) -> list[int]:
    """Return the number of rows before each row group, and of all rows."""
    sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
    return [0, *itertools.accumulate(sizes)]


@contextlib.contextmanager
def parquet_file(path: Path, size: int | None = None) -> Iterator[Any]:
    """Open a Parquet file.

    Args:
        path: the file.
        size: of the file, as of `artifact.open_file`.

    Raises:
        UserError: it can't be read as one.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with artifact.open_file(path, size) as raw, pyarrow.parquet.ParquetFile(raw) as file:
            yield file
    # Damaged pages are an OSError, a damaged column name a UnicodeDecodeError.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{path} can't be read as Parquet ({reason}): write it again.") from error


@contextlib.contextmanager
def _posts_of_parquet(path: Path, size: int | None) -> Iterator[Any]:
    with parquet_file(path, size) as file:
        missing = [name for name in _PARQUET_NEEDS if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path} has no column {missing[0]}: add it, a posts file has {', '.join(_PARQUET_NEEDS)}.")
        yield file


def _parquet_row(row: Any) -> Any:
    try:
        record = row.to_pylist()[0]
        # A map column comes as pairs.
        if isinstance(record["reactions"], list):
            record["reactions"] = dict(record["reactions"])
    except UnicodeDecodeError:
        return BadPost("invalid_utf8")
    except (TypeError, ValueError):
        return BadPost("reactions_array")
    return record


def is_empty(path: Path) -> bool:
    """Return whether a posts file holds no post and no malformed one, as an empty part file of Spark does.

    Raises:
        UserError: the file can't be read.
    """
    return next(_records(path, BEGINNING, None, LIMITS.line_bytes), None) is None


def split_file(path: Path, split_bytes: float, size: int | None = None) -> tuple[str, list[tuple[Cursor, int | None]]]:
    """Cut a posts file into input splits that can be read independently.

    JSONL is cut at line ends, Parquet between row groups (by their unpacked size). Compressed JSONL is one split.

    Args:
        path: the file.
        split_bytes: minimum size of a split; the last one may be smaller.
        size: of the file, as of `artifact.open_file`.

    Returns:
        SHA-256 (hex) of the file, and `start` and `end` of each split, as `read` takes them.

    Raises:
        UserError: the file can't be read.
    """
    _check_name(path)
    with explained(path):
        blocks = artifact.blocks(path, size)
        first = next(blocks, b"")
        blocks, found = itertools.chain([first], blocks), _kind(path, first)
        if found == "plain":
            return _split_lines(blocks, split_bytes)
        sha256 = artifact.sha256_of(blocks)
    if found != "parquet":
        return sha256, [(BEGINNING, None)]
    with _posts_of_parquet(path, size) as file:
        rows, starts, unpacked = _row_groups(file), [0], 0
        for group in range(file.num_row_groups):
            if unpacked >= split_bytes:
                starts.append(rows[group])
                unpacked = 0
            unpacked += file.metadata.row_group(group).total_byte_size
    return sha256, [(Cursor(first, first), end) for first, end in itertools.pairwise([*starts, rows[-1]])]


def _split_lines(blocks: Iterable[bytes], split_bytes: float) -> tuple[str, list[tuple[Cursor, int | None]]]:
    digest, starts = hashlib.sha256(), [BEGINNING]
    offset = lines = 0
    for block in blocks:
        digest.update(block)
        while True:
            newline = block.find(b"\n", max(0, int(starts[-1].offset + split_bytes) - 1 - offset))
            if newline < 0:
                break
            starts.append(Cursor(offset + newline + 1, lines + block.count(b"\n", 0, newline + 1)))
        lines += block.count(b"\n")
        offset += len(block)
    inner = [start for start in starts if start.offset < offset] or [BEGINNING]
    ends = [start.offset for start in inner[1:]]
    return digest.hexdigest(), list(zip(inner, [*ends, offset], strict=True))
