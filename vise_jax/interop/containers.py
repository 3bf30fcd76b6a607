"""Read weights from untrusted files without executing code in them.

A `.pth` file is a pickle, and unpickling can execute code. Only PyTorch's `weights_only` reader is used, which allows
no calls but those that rebuild tensors. It refuses TorchScript archives, such as CLIP's file; `torch.jit.load` would
compile and run their code. From an archive, only the pickled module tree and the tensor data are copied to a file in
memory, which the same reader loads with a placeholder for every class.

The unpacked size of a zip file is read from its directory and bounded before anything is unpacked.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from vise_jax import artifact
from vise_jax.errors import UserError

# Keys of checkpoints that hold the weights, and the exponential moving average of the weights.
_WRAPPERS = ("state_dict", "model")
_AVERAGES = ("ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model")
# Files that servers send instead of weights: first bytes, in lower case, and a description.
_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"<!doctype html", "an HTML page: the download needs a direct link, or a login"),
    (b"<html", "an HTML page: the download needs a direct link, or a login"),
    (b"<?xml", "an XML document, perhaps an error message of the server: download the file again"),
    (b"{", "a JSON document, perhaps an error message of the server: download the file again"),
)
# Zipped weights are stored or barely compressed. A larger ratio indicates a zip bomb.
_MAX_RATIO = 20
# weights_only can be bypassed in releases before 2.6. This is the oldest release that the tests ran with.
_OLDEST_TORCH = (2, 10)
# TorchScript's type annotations of lists, which return their argument.
_TAGS = {
    f"torch.jit._pickle.{name}"
    for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
}


def check(path: Path, *, sha256: str | None, begins_with: str = "", max_bytes: int) -> str:
    """Check size and SHA-256 of a file before its content is read.

    Args:
        path: the file.
        sha256: expected SHA-256 (hex); None = unknown.
        begins_with: expected beginning of it, where `sha256` is unknown.
        max_bytes: largest size of the file, and of the unpacked content of a zip file.

    Returns:
        SHA-256 (hex) of the file.

    Raises:
        UserError: no such file, too large, or another SHA-256.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UserError(f"--sha256={sha256} is no SHA-256: give its 64 hexadecimal digits.")
    if not path.is_file():
        raise UserError(f"There is no file {path}: name the file with the weights.")
    if path.stat().st_size > max_bytes:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes, more than the {max_bytes:,} allowed: raise --max_gigabytes if "
            "you trust it."
        )
    actual, expected = artifact.file_sha256(path), (sha256 or begins_with).lower()
    if not actual.startswith(expected):
        raise UserError(
            f"{path} has the SHA-256 {actual}, not {expected}: it was not opened; get it again from its source."
        )
    return actual


def read(path: Path, *, max_bytes: int, ema: bool | None = None) -> dict[str, np.ndarray]:
    """Read the weights in a `.safetensors`, `.npz`, TorchScript or PyTorch file (zip or the older format).

    Weights under a key "state_dict" or "model" are read; the rest of such a file is ignored.

    Args:
        path: the file. Any suffix but `.safetensors` and `.npz` means a PyTorch file.
        max_bytes: largest size of the unpacked content.
        ema: read the moving average (True) or the weights (False) of a file that has both; None = raise an error.

    Returns:
        Arrays by key. Those of a PyTorch file are memory-mapped.

    Raises:
        UserError: the file is damaged, unpacks to more than `max_bytes`, calls a function, holds objects other than
            tensors, or needs PyTorch, which is missing.
    """
    _check_kind(path)
    no_average = UserError(f"{path} holds no moving average of the weights: leave --ema and --noema out.")
    try:
        if ema is not None and path.suffix in (".safetensors", ".npz"):
            raise no_average
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "numpy") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        with open(path, "rb") as opened:
            zipped = opened.read(4) == b"PK\x03\x04"
        members = _members(path, max_bytes) if zipped else []
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
        if any(member.filename.endswith("/constants.pkl") for member in members):
            if ema is not None:
                raise no_average
            return _read_torchscript(path, members)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UserError(
                f"{path} is compressed, which PyTorch's files never are: get the file again from its source."
            )
        torch = _torch(path)
        # Training loops store losses and accuracies as NumPy scalars beside the weights.
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        loaded = _choose(path, loaded, ema)
        for key in _WRAPPERS:
            if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
                loaded = loaded[key]
        return _arrays(path, loaded)
    except UserError:
        raise
    except Exception as error:  # damaged files raise all kinds of exceptions
        raise UserError(_why(path, error)) from error


# Globals that rebuild a NumPy scalar. None of them executes code of the file.
_NUMPY_SCALARS = [
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


def _check_kind(path: Path) -> None:
    """Check that a file is none that servers send instead of weights.

    Raises:
        UserError: it is one; the message names its kind.
    """
    with open(path, "rb") as file:
        first = file.read(64).lstrip().lower()
    for beginning, what in _IMPOSTORS:
        if first.startswith(beginning):
            raise UserError(f"{path} holds no weights, it is {what}: give a checkpoint.")


def _choose(path: Path, loaded: Any, ema: bool | None) -> Any:
    """Return the weights or their moving average from a checkpoint that may hold both."""
    if not isinstance(loaded, dict):
        return loaded
    averages = [key for key in _AVERAGES if isinstance(loaded.get(key), dict)]
    weights = [key for key in _WRAPPERS if isinstance(loaded.get(key), dict)]
    # Weights without a wrapper.
    weights += [key for key, value in loaded.items() if averages and hasattr(value, "shape")][:1]
    if averages and ema is False and not weights:
        raise UserError(f"{path} holds a moving average of the weights only: leave --noema out.")
    if ema and not averages:
        raise UserError(f"{path} holds no moving average of the weights: leave --ema out.")
    if averages and weights and ema is None:
        raise UserError(
            f"{path} holds weights ({weights[0]}) and their moving average ({averages[0]}): choose with --ema or "
            "--noema."
        )
    return loaded[averages[0]] if averages and (ema or not weights) else loaded


def read_metadata(path: Path, key: str) -> Any:
    """Return a JSON value of a `.safetensors` file's metadata, or None without one."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return artifact.from_json((file.metadata() or {})[key])
    except (safetensors.SafetensorError, KeyError, ValueError):
        return None


def _members(path: Path, max_bytes: int) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > min(max_bytes, _MAX_RATIO * size):
        raise UserError(
            f"{path} has {size:,} bytes and would unpack to {unpacked:,}, more than {max_bytes:,} (--max_gigabytes) or "
            f"{_MAX_RATIO} times the file: raise that if you trust it, or save it without compression."
        )
    return members


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"Reading {path} needs PyTorch: pip install -e '.[convert]'") from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < _OLDEST_TORCH:
        raise UserError(
            f"Reading {path} needs PyTorch {'.'.join(map(str, _OLDEST_TORCH))} or newer, whose reader runs no code, "
            f"not {torch.__version__}: pip install -e '.[convert]'"
        )
    return torch


class _Module:
    """Placeholder for an object of any class of a TorchScript archive."""


def _first(value: Any, *_: Any) -> Any:
    return value


def _read_torchscript(path: Path, members: list[zipfile.ZipInfo]) -> dict[str, np.ndarray]:
    torch = _torch(path)
    plain = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(plain, "w") as copy:
        for member in members:
            if re.fullmatch(r"[^/]+/(data\.pkl|data/[^/]+|version|byteorder)", member.filename):
                copy.writestr(member.filename, archive.read(member))
    plain.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(plain)
    # The reader refuses any other global.
    known: list[tuple[Any, str]] = [(_Module, name) for name in names if name.startswith("__torch__.")]
    known += [(_first, name) for name in names if name in _TAGS]
    plain.seek(0)
    with torch.serialization.safe_globals(known):
        root = torch.load(plain, map_location="cpu", weights_only=True)
    attributes = dict(_attributes(root, "", set()))
    return _arrays(path, {name: value for name, value in attributes.items() if isinstance(value, torch.Tensor)})


def _attributes(module: _Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield all attributes below a module by dotted name; a shared submodule once."""
    seen.add(id(module))
    for name, value in vars(module).items():
        if not isinstance(value, _Module):
            yield f"{prefix}{name}", value
        elif id(value) not in seen:
            yield from _attributes(value, f"{prefix}{name}.", seen)


def _arrays(path: Path, tensors: Any) -> dict[str, np.ndarray]:
    torch = _torch(path)
    if not isinstance(tensors, dict):
        raise UserError(f"{path} holds a {type(tensors).__name__}, not weights by name: save a state_dict() instead.")
    other = [f"{key} ({type(value).__name__})" for key, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise UserError(f"{path} holds other things beside tensors: {shortened(other)}; save a state_dict() alone.")
    # NumPy has no bfloat16: view the bits as JAX's.
    return {
        str(key): value.detach().view(torch.int16).numpy().view(jnp.bfloat16)
        if value.dtype == torch.bfloat16
        else value.detach().numpy()
        for key, value in tensors.items()
    }


def shortened(words: list[str], at_most: int = 10) -> str:
    """Join the first words of a list, and the number of the others."""
    shown = ", ".join(words[:at_most])
    return shown if len(words) <= at_most else f"{shown} and {len(words) - at_most} more"


def _why(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    called = re.search(r"GLOBAL (\S+) was not an allowed global", text) or re.search(r"(?:function|class) (\S+)", text)
    if "weights_only" in text.lower().replace(" ", "_") and called:
        return (
            f"{path} asks for {called[1]} to be called, which weights never need: nothing of it was run; get the file "
            "again from its source, or save its state_dict() alone."
        )
    # Keep torch's first sentence only: the next one suggests loading without safeguards.
    first = re.split(r"(?<=[.!])\s|weights_only|Weights only", text)[0].strip(" .") or type(error).__name__
    reason = first if len(first) <= 200 else type(error).__name__
    return f"{path} can't be read ({reason}): get the file again from its source."
