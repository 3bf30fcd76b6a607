"""Read NumPy's archives of arrays (.npz) without pickles, from files that may be damaged or hostile."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vise_jax import artifact
from vise_jax.errors import UserError

# Kinds of dtypes that are read: booleans, integers, floats and text.
_KINDS = frozenset("biufU")
_LARGEST_CHARACTER = 0x10FFFF


def read(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read arrays of a file that `numpy.savez` wrote.

    Args:
        path: the file.
        names: of the arrays; None = all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is compressed, lacks an array, or holds something else.
        UserError: see `artifact.explained`.
    """
    try:
        with artifact.open_file(path) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            wanted = [name.removesuffix(".npy") for name in members] if names is None else names
            return {name: _array(archive, members[f"{name}.npy"]) for name in wanted}
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # damaged files raise all kinds of exceptions
        raise ValueError(f"no whole .npz file: {error}") from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("a compressed array")
    with archive.open(member) as file:
        stream: Any = file
        array = _from_npy(stream, member.file_size)
        if file.read(1):
            raise ValueError("more numbers than its header states")
    return array


def _from_npy(file: BinaryIO, size: int) -> np.ndarray:
    """Read an array whose header is bounded by the `size` of its file, in bytes, before memory is allocated."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, is_fortran, dtype = readers[version](file)
    count = 1
    for length in shape:
        count *= length
    if dtype.kind not in _KINDS or min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError("an array that its file can't hold")
    array = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    if dtype.kind == "U" and array.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder)).max(initial=0) > (
        _LARGEST_CHARACTER
    ):
        raise ValueError("text that is no Unicode")
    return array.reshape(shape, order="F" if is_fortran else "C").copy()
