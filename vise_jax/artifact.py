"""Folders that are written whole or not at all, and the fingerprints that tie them together.

Every stage hands the next one a folder that describes itself in a JSON file. It is built under a temporary
name beside its place and renamed when it is complete, so that a reader never meets half of one.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vise_jax.errors import Interrupted, UserError


def canonical_json(value: Any) -> str:
    """Serialize a JSON value so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _disk_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Interrupted(
            f"The disk is full: {path} can't be written; free some space, and run the same command again."
        ) from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file that becomes `path` when the block ends without an error, and replaces what was there.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with _disk_full(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented, with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    Raises:
        UserError: `path` exists and holds something (nothing is ever replaced), or the disk is full.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists: name a new folder, or delete it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with _disk_full(path):
            yield temporary
            for entry in temporary.rglob("*"):
                _fsync(entry)
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_description(folder: Path, name: str, *, version: int, made_by: str) -> dict[str, Any]:
    """Read the JSON file in which an artifact describes itself.

    Args:
        folder: the artifact.
        name: the description's file name, e.g. `manifest.json`.
        version: the `format_version` that this code reads.
        made_by: the command that makes such a folder, for the error message.

    Raises:
        UserError: no such folder or description, not JSON, or another format version.
    """
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"{folder} has no {name}: give a folder that `{made_by}` has finished writing.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): make the folder again with `{made_by}`.") from error
    found = description.get("format_version") if isinstance(description, dict) else None
    if found != version:
        raise UserError(
            f"{path} has format version {found}, this vise_jax reads {version}: make the folder again with `{made_by}`."
        )
    return description
