"""Records of an export's files: CSV, Parquet and JSON lines."""

import csv
import io
import itertools
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vise_jax.errors import UserError
from vise_jax.posts import BadPost
from vise_jax.posts.readers import json_records, kind, opened, parquet_file
from vise_jax.posts.schema import LIMITS

# Records in which a column must be found once.
_SOME = 1_000
# What is surely the name of a column, and no one's words.
_NAME = re.compile(r"[^\W\d][\w./\[\]-]*")


def records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield line or row, and record, of a CSV file, a Parquet file or JSON lines, packed or not.

    Args:
        path: the file.
        columns: that the file must have: names, or places in columns, as of `kinds.of_table`.

    Raises:
        UserError: the file can't be read, or has no such column.
    """
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if kind(path) == "parquet":
        yield from _parquet(path, columns)
    elif name.endswith((".csv", ".tsv")):
        yield from _csv(path, columns, "\t" if name.endswith(".tsv") else ",")
    else:
        yield from _json(path, columns)


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    with parquet_file(path) as file:
        names = file.schema_arrow.names
        _check_columns(path, columns, names)
        number = itertools.count(1)
        wanted = [place if place in names else _column_of(place) for place in columns]
        for batch in file.iter_batches(256, columns=wanted or None):
            for record in batch.to_pylist():
                yield next(number), record


def _csv(path: Path, columns: Sequence[str], separator: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LIMITS.line_bytes)
    with opened(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", "replace", newline="") as text:
        reader = csv.DictReader(text, delimiter=separator)
        try:
            names = reader.fieldnames or []
            if not any(_is_in(place, names) for place in columns) and not all(map(_NAME.fullmatch, names)):
                raise UserError(
                    f"{path} has none of the columns {', '.join(map(_column_of, columns))} in its first line: give it "
                    "a first line with the names of its columns, or correct --from or --map."
                )
            _check_columns(path, columns, names)
            for record in reader:
                complete = None not in record and None not in record.values()
                yield reader.line_num, record if complete else BadPost("columns_missing_or_many")
        except csv.Error as error:
            raise UserError(
                f"{path} can't be read as CSV after line {reader.line_num:,} ({error}): correct that line, or export "
                "it again."
            ) from error


def _json(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    missing, number = set(columns), 0
    for decoded, after in json_records(path):
        # A line may hold a page of an API, a list of records.
        for record in decoded if isinstance(decoded, list) else [decoded]:
            number += 1
            if isinstance(record, Mapping):
                missing = {place for place in missing if not _is_in(place, record)}
            if missing and number == _SOME:
                _check_columns(path, columns, set(columns) - missing)
            yield after.line, record
    if number:
        _check_columns(path, columns, set(columns) - missing)


def _column_of(place: str) -> str:
    """Return the name of the column that a place is in, e.g. `replies` of `replies[].text`."""
    return re.split(r"[.\[]", place)[0]


def _is_in(place: str, there: Container[str]) -> bool:
    return place in there or _column_of(place) in there


def _check_columns(path: Path, columns: Iterable[str], there: Collection[str]) -> None:
    if missing := [place for place in columns if not _is_in(place, there)]:
        raise UserError(
            f"{path} has no column {_column_of(missing[0])!r}: name one that it has "
            f"({', '.join(sorted(there)[:30]) or 'none that is asked for'})."
        )
