"""Arrays by name: their SHA-256, and safetensors and NumPy's archives (.npz) that may be damaged or hostile."""

import hashlib
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from vise_jax import artifact
from vise_jax.errors import UserError

# Kinds of dtypes that are read: booleans, integers, floats and text.
_KINDS = frozenset("biufU")
_LARGEST_CHARACTER = 0x10FFFF
# Entry of the metadata of safetensors.
_SHA256 = "sha256"


def to_safetensors(arrays: Mapping[str, np.ndarray], about: Mapping[str, str] | None = None) -> bytes:
    """Return arrays as safetensors, with `about` and the SHA-256 of both in the metadata."""
    columns = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(columns, {**(about or {}), _SHA256: _sha256_with(columns, about)})


def from_safetensors(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of safetensors, and the metadata.

    Raises:
        ValueError: they are damaged. Arrays without a stated SHA-256 are taken as they are.
    """
    try:
        found: dict[str, np.ndarray] = safetensors.numpy.load(content)
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"no safetensors: {error}") from error
    about = artifact.from_json(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}
    if about.pop(_SHA256, None) not in (None, _sha256_with(found, about)):
        raise ValueError("its arrays have another SHA-256")
    return found, about


def _sha256_with(arrays: Mapping[str, np.ndarray], about: Mapping[str, str] | None) -> str:
    return artifact.fingerprint([sha256(arrays), about]) if about else sha256(arrays)


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
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
        _check_header(stream, member.file_size)
        file.seek(0)
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if file.read(1):
            raise ValueError("more numbers than its header states")
    if array.dtype.kind == "U" and _characters(array).max(initial=0) > _LARGEST_CHARACTER:
        raise ValueError("text that is no Unicode")
    return array


def _check_header(file: BinaryIO, size: int) -> None:
    """Check that an array fits its file of `size` bytes, before memory is allocated."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[version](file)
    if dtype.kind not in _KINDS or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError("an array that its file can't hold")


def _characters(text: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(text).view(np.dtype(np.uint32).newbyteorder(text.dtype.byteorder))


def sha256(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of name, type, shape and little-endian bytes of every array, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
