"""Files of features: .npz or .parquet, with the path of each image and a description."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vise_jax import arrays, artifact
from vise_jax.errors import UserError

FORMAT_VERSION = 1
# What reading a damaged file raises.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)
# Entries of a description.
_ABOUT = {"key": str, "encoder": str, "crop": int, "images": int, "dim": int, "rejected": dict}
# Paths, and features float32 [n, D].
Rows = tuple[list[str], np.ndarray]
Writer = Callable[[Path, Iterable[Rows], dict[str, Any]], None]


def read_about(path: Path) -> dict[str, Any]:
    """Read the description of a file of features.

    Returns:
        `key`, a fingerprint of everything that decides the features; `encoder`, that of the encoder; `crop`, the side
        of the crop in pixels; `images` and `dim`, the number of images and of features; `rejected`, the reason for each
        image that was left out, by path.

    Raises:
        UserError: no such file, or no features in it.
    """
    try:
        if path.suffix == ".parquet":
            with artifact.open_file(path) as file:
                text = pq.read_schema(file).metadata[b"about"].decode()
        else:
            text = str(arrays.read_npz(path, ["about"])["about"])
        about = artifact.from_json(text)
        if about["format_version"] == FORMAT_VERSION:
            if not all(isinstance(about[name], kind) for name, kind in _ABOUT.items()):
                raise ValueError("a wrong description")
            return about
    except UNREADABLE as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{path} does not exist: name a file that extract.py wrote.") from error
        raise UserError(f"{path} is no complete file of features: make it again with extract.py.") from error
    raise UserError(f"{path} was written by another version of extract.py: delete it and make it again.")


def read(path: Path) -> Iterator[Rows]:
    """Read features part by part.

    Yields:
        Paths, and features float32 [n, D].

    Raises:
        UserError: a damaged file.
    """
    try:
        if path.suffix == ".parquet":
            with artifact.open_file(path) as opened, pq.ParquetFile(opened) as file:
                for batch in (file.read_row_group(number) for number in range(file.num_row_groups)):
                    values = batch["features"].combine_chunks().flatten().to_numpy()
                    yield _checked(batch["path"].to_pylist(), values.reshape(batch.num_rows, -1))
        else:
            stored = arrays.read_npz(path, ["paths", "features"])
            yield _checked(stored["paths"].tolist(), stored["features"])
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged: make it again with extract.py.") from error


def _checked(paths: list[str], features: np.ndarray) -> Rows:
    named = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
    if not named or features.shape != (len(paths), *features.shape[1:2]) or features.dtype != np.float32:
        raise ValueError("no features of each image")
    return paths, features


def holds(path: Path, key: str) -> bool:
    """Return whether a complete file of features has this key."""
    if not artifact.is_file(path):
        return False
    try:
        if read_about(path)["key"] != key:
            return False
        for _ in read(path):
            pass
    except UserError:
        return False
    return True


def write(path: Path, rows: Iterable[Rows], about: dict[str, Any]) -> None:
    """Write features atomically, for `read`.

    Args:
        path: a .npz file, which is built in memory, with `features`, float32 [N, D], and `paths`, text [N]; or a
            .parquet file, written part by part, with a row of `path` and `features` for each image.
        rows: the features.
        about: the description, with `dim`, for `read_about`.
    """
    artifact.make_directory(path.parent)
    WRITERS[path.suffix](path, rows, about)


def _write_npz(path: Path, rows: Iterable[Rows], about: dict[str, Any]) -> None:
    names, features = zip(*rows, strict=True)
    paths = np.array([name for some in names for name in some])
    with artifact.atomic_file(path) as file:
        np.savez(file, features=np.concatenate(features), paths=paths, about=artifact.canonical_json(about))


def _write_parquet(path: Path, rows: Iterable[Rows], about: dict[str, Any]) -> None:
    columns = [("path", pa.string()), ("features", pa.list_(pa.float32(), about["dim"]))]
    schema = pa.schema(columns, metadata={"about": artifact.canonical_json(about)})
    with (
        artifact.atomic_file(path) as file,
        # Few floats occur twice.
        pq.ParquetWriter(file, schema, use_dictionary=False) as writer,
    ):
        for names, features in rows:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), about["dim"])
            writer.write_table(pa.table([pa.array(names), vectors], schema=schema))


WRITERS: dict[str, Writer] = {
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
