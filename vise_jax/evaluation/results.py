"""The results artifact: one JSON file a measurement, written whole."""

import platform
import re
from pathlib import Path
from typing import Any

import jax

import vise_jax
from vise_jax import artifact
from vise_jax.errors import UserError

FORMAT_VERSION = 1
_MADE_BY = "evaluate.py"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "protocol": str,
    "encoder": dict,
    "data": dict,
    "metric": str,
    "value": (int, float),
    "splits": list,
}


def path_of(folder: Path, task: str, protocol: str, encoder: str, data: str, fingerprint: str) -> Path:
    """Where a measurement is written: it can be read off the file's name, and the same one has the same name."""
    words = [re.sub(r"[^\w.+-]+", "_", word).strip("._") for word in (task, protocol, encoder, data)]
    return folder / f"{'-'.join(word[:60] for word in words)}-{fingerprint[:8]}.json"


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a measurement, with the versions of what measured it."""
    versions = {"vise_jax": vise_jax.__version__, "jax": jax.__version__, "python": platform.python_version()}
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_json(
        path,
        {
            "format_version": FORMAT_VERSION,
            **result,
            "versions": versions,
            "device": jax.devices()[0].device_kind,
        },
    )


def read(path: Path) -> dict[str, Any]:
    """Read a measurement.

    Raises:
        UserError: not JSON, another format version, or no measurement.
    """
    result = artifact.read_description(path.parent, path.name, version=FORMAT_VERSION, made_by=_MADE_BY)
    for key, kind in _KINDS.items():
        if not isinstance(result.get(key), kind):
            raise UserError(
                f"{path} has no valid {key!r}: make it again with {_MADE_BY}, or take it out of the folder."
            )
    for part in ("encoder", "data"):
        for key in ("name", "fingerprint"):
            if not isinstance(result[part].get(key), str):
                raise UserError(f"{path} says no {part} {key}: make it again with {_MADE_BY}, or take it away.")
    return result


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Read all measurements of a folder, sorted by file name, each with its file's name under "file".

    Raises:
        UserError: no such folder, no measurement in it, or a JSON file that is none.
    """
    paths = sorted(path for path in Path(folder).glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder} holds no results: give the folder that {_MADE_BY} wrote to with --output.")
    return [{**read(path), "file": path.name} for path in paths]
