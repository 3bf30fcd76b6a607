"""Files of word vectors: word2vec (text and binary), GloVe and fastText's `.vec`, plain or gzipped.

A file is read once as a stream, and only the vectors of wanted tokens are read. Its format follows from its
content: word2vec's and fastText's begin with a line of two whole numbers (how many words, of how many numbers each),
and what follows is text or not; GloVe's have no such line. Words may hold any character but a line feed, GloVe's even
spaces, so that lines are taken apart as bytes and from the right.
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from vise_jax.errors import UserError
from vise_jax.text.tokens import as_token

_HEADER = re.compile(rb"(\d{1,10}) (\d{1,6})[ \r]*\n?")
# The text after the first word where numbers are text: four bytes of a float look different, and sooner or later
# hold a control character.
_NUMBERS = re.compile(rb"[-+.\dNnIi][-+.\deENnAaIiFf ]*(?:\r?\n|\Z)")
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")
# Longer lines are no vector file's, and must not fill the memory.
_MAX_LINE_BYTES = 2**24
_MAX_DIMENSIONS = 2**14
_BUFFER_BYTES = 2**20
_KINDS = "word2vec, GloVe or fastText .vec, plain or gzipped"

# Position in the file (for messages), word, and numbers: float32, or text.
_Entry = tuple[str, bytes, np.ndarray | bytes]


def read(path: str, wanted: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read the vectors of some tokens.

    Words are case-folded to tokens. Of several words of a token, such as `Apple` and `apple`, the one that equals the
    token is used, or else the first.

    Args:
        path: the vector file.
        wanted: tokens by their row, 0 to V - 1.

    Returns:
        float32 [V, D] vectors, zeros for tokens that the file lacks; bool [V], which tokens it has.

    Raises:
        UserError: the file can't be read or is of another kind; a line has too few or too many numbers; there are
            more or fewer words than the first line states; or a requested word is repeated, or has numbers that
            are not finite.
    """
    try:
        with open(path, "rb") as raw:
            stream: Any = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(b"\x1f\x8b") else raw
            with io.BufferedReader(stream, _BUFFER_BYTES) as file:
                return _read(path, file, wanted)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is cut off or damaged ({error}): copy it again.") from error
    except OSError as error:
        raise UserError(f"labels.vectors={path} can't be read ({error.strerror}): name a vector file.") from error


def _read(path: str, file: io.BufferedReader, wanted: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    first = file.readline(_MAX_LINE_BYTES)
    if header := _HEADER.fullmatch(first):
        words, dimensions = int(header[1]), int(header[2])
        if not words or not dimensions:
            raise UserError(f"{path} says in its first line that it holds nothing: name another vector file.")
        if dimensions > _MAX_DIMENSIONS:
            raise UserError(
                f"{path} says in its first line that vectors have {dimensions:,} numbers, more than "
                f"{_MAX_DIMENSIONS:,}: name another vector file."
            )
        entries = (_binary_entries if _is_binary(file.peek()) else _text_entries)(path, file, words, dimensions)
    else:
        dimensions = _dimensions(path, first)
        file.seek(0)
        entries = _text_entries(path, file, None, dimensions)
    vectors, known = np.zeros((len(wanted), dimensions), np.float32), np.zeros(len(wanted), bool)
    places: dict[bytes, str] = {}
    for place, word, numbers in entries:
        token = as_token(word.decode("utf-8", "replace"))
        row = wanted.get(token) if token else None
        if token is None or row is None:
            continue
        if word in places:
            raise UserError(f"{path} holds {token!r} twice, in {places[word]} and in {place}: delete one of them.")
        places[word] = place
        if known[row] and word != token.encode():
            continue
        vectors[row], known[row] = _vector(path, place, numbers), True
    return vectors, known


def _is_binary(start: bytes) -> bool:
    """Return whether numbers are float32 and not text, judged by the bytes after the header."""
    _, _, numbers = start.partition(b" ")
    return not _NUMBERS.match(numbers) or bool(_CONTROL.search(start))


def _dimensions(path: str, first: bytes) -> int:
    """Return the number of numbers after the first word of a file without header."""
    fields = first.rstrip(b" \r\n").split(b" ")
    if len(fields) < 3 or not all(map(_is_number, fields[1:])):
        raise UserError(
            f"The first line of {path} is neither two whole numbers nor a word with its numbers: name a vector file "
            f"({_KINDS})."
        )
    return len(fields) - 1


def _text_entries(path: str, file: io.BufferedReader, words: int | None, dimensions: int) -> Iterator[_Entry]:
    """Yield words and their lines, checked for their dimension; with `words` the file has a header."""
    first = 1 if words is None else 2
    line_number = first - 1
    for line_number, line in enumerate(iter(partial(file.readline, _MAX_LINE_BYTES), b""), first):
        line = line.rstrip(b" \r\n")
        spaces = line.count(b" ")
        if spaces == dimensions:
            word, _, numbers = line.partition(b" ")
        else:
            word, *fields = line.rsplit(b" ", dimensions)
            # More fields are a word with spaces, unless they are numbers too many.
            if spaces < dimensions or any(map(_is_number, word.split(b" ")[1:])):
                raise UserError(
                    f"{path} has {spaces} numbers in line {line_number} and {dimensions} in its others: mend or delete "
                    "that line."
                    if words is None
                    else f"{path} has {spaces} numbers in line {line_number}, where its first line says {dimensions}: "
                    "mend that line, or the first."
                )
            numbers = b" ".join(fields)
        yield f"line {line_number}", word, numbers
    if words is not None and line_number - 1 != words:
        raise UserError(
            f"{path} says in its first line that it holds {words:,} words, but holds {line_number - 1:,}: copy it "
            "again, or mend that line."
        )


def _binary_entries(path: str, file: io.BufferedReader, words: int, dimensions: int) -> Iterator[_Entry]:
    """Yield words and their float32 numbers, little-endian, checked for their number."""
    size = 4 * dimensions
    buffer, start = b"", 0
    for number in range(1, words + 1):
        while (end := buffer.find(b" ", start)) < 0 or len(buffer) <= end + size:
            more = file.read(_BUFFER_BYTES)
            if not more or len(buffer) - start > _MAX_LINE_BYTES:
                raise UserError(
                    f"{path} ends or is damaged at word {number:,} of the {words:,} of {dimensions} numbers that its "
                    "first line says: copy it again, or mend that line."
                )
            buffer, start = buffer[start:] + more, 0
        numbers = np.frombuffer(buffer, "<f4", dimensions, end + 1)
        # Some writers end each vector with a line feed.
        yield f"word {number:,}", buffer[start:end].lstrip(b"\n"), numbers
        start = end + 1 + size
    if (buffer[start:] + file.read(_BUFFER_BYTES)).strip(b"\n"):
        raise UserError(
            f"{path} continues after the {words:,} words of {dimensions} numbers of its first line: copy it "
            "again, or mend that line."
        )


def _vector(path: str, place: str, numbers: np.ndarray | bytes) -> np.ndarray:
    """Return a vector, float32 [D]."""
    try:
        with np.errstate(over="ignore"):
            vector = (
                np.array([float(number) for number in numbers.split(b" ")], np.float32)
                if isinstance(numbers, bytes)
                else numbers
            )
    except ValueError as error:
        raise UserError(f"{path} has something else than numbers in {place}: mend or delete it.") from error
    if not np.isfinite(vector).all():
        raise UserError(f"{path} has numbers in {place} that are not finite: mend or delete it.")
    return vector


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
