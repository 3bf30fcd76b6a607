"""CSV files that list the images of a dataset."""

import csv
from pathlib import Path, PurePosixPath

from vise_jax.data.listing import split_of
from vise_jax.errors import UserError


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
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
        raise UserError(f"{path} can't be read as a CSV file ({error}): get it again.") from error
    for column in columns:
        if column not in header:
            raise UserError(
                f"{path} has no column {column!r}: its first line must be image,label or image,label,split."
            )
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if not row[column]:
                raise UserError(f"{path} has no {column} in its row {number} (the header not counted): fill it in.")
        row["image"] = PurePosixPath(row["image"]).as_posix()
        if row["image"] in seen:
            raise UserError(f"{path} names the image {row['image']} twice: each image counts once, drop a row.")
        seen.add(row["image"])
    if not rows:
        raise UserError(f"{path} names no images: add rows below its header.")
    return rows


def read_splits(rows: list[dict[str, str]], path: Path) -> dict[str, str] | None:
    """Return the split of each image by name, None without a column `split`.

    Raises:
        UserError: a value that names no split.
    """
    if "split" not in rows[0]:
        return None
    for row in rows:
        if not split_of(row["split"]):
            raise UserError(f"{path} has the split {row['split']!r} for {row['image']}: use train, validation or test.")
    return {row["image"]: split_of(row["split"]) or "" for row in rows}


def read_column(rows: list[dict[str, str]], name: str) -> dict[str, str] | None:
    """Return a column by image name, None if the file doesn't have it."""
    return {row["image"]: row[name] for row in rows} if name in rows[0] else None
