"""CSV files that list the images of a dataset."""

import csv
from pathlib import Path, PurePosixPath

from vise_jax.data.dataset_layouts import split_of
from vise_jax.errors import UserError

Row = dict[str, str]


def read_csv(path: Path, columns: tuple[str, ...]) -> list[Row]:
    """Read the rows of a CSV file.

    Args:
        path: the file, with a header.
        columns: columns that must have a value in each row; `image` is one of them.

    Returns:
        Each row by column. Paths in `image` are normalized. A value that a short row lacks is "".

    Raises:
        UserError: an unreadable file, no rows, a missing column or value, or an image that is listed twice.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, restval="")
            header, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a CSV file: {error}.") from error
    for column in columns:
        if column not in header:
            raise UserError(
                f"{path} has no column {column!r}: its first line must be image,label or image,label,split."
            )
    names: set[str] = set()
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if not row[column]:
                raise UserError(f"{path} has no {column} in its row {number} (the header not counted): fill it in.")
        row["image"] = PurePosixPath(row["image"]).as_posix()
        if row["image"] in names:
            raise UserError(f"{path} names the image {row['image']} twice: each image counts once, drop a row.")
        names.add(row["image"])
    if not rows:
        raise UserError(f"{path} names no images: add rows below its header.")
    return rows


def column(rows: list[Row], name: str) -> dict[str, str]:
    """Return an optional column by image name, empty if the file doesn't have it."""
    return {row["image"]: row[name] for row in rows} if name in rows[0] else {}


def read_splits(rows: list[Row], path: Path) -> dict[str, str]:
    """Return the split of each image by name, empty if the file has no column `split`.

    Raises:
        UserError: a value that names no split.
    """
    splits = {}
    for name, value in column(rows, "split").items():
        split = split_of(value)
        if not split:
            raise UserError(f"{path} has the split {value!r} for {name}: use train, validation or test.")
        splits[name] = split
    return splits
