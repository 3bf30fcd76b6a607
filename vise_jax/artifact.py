"""Atomic files and directories, locks, and fingerprints.

Each stage passes the next one a directory that describes itself in a JSON file. It is written under a temporary name in
the same parent and renamed when complete, so that readers never see a partial one.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vise_jax.errors import Interrupted, UserError


def canonical_json(value: Any) -> str:
    """Serialize a JSON value so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
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


def _temporary(path: Path) -> Path:
    """Return a name beside `path` that no other process uses, on this host or another."""
    host = re.sub(r"[^\w-]", "_", socket.gethostname())
    return path.with_name(f".{path.name}.tmp-{host}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on a regular file, created if it doesn't exist, until the block ends.

    The lock is advisory (`flock`) and ends with the process. Unlike a lock on a directory it holds across the hosts of
    a network file system.

    Args:
        path: the lock file. It stays, so that all processes lock the same file.
        busy: message of the error when another process holds the lock.

    Raises:
        UserError: another process holds the lock.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield an open temporary file that replaces `path` when the block ends without an error.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path)
    temporary = _temporary(path)
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
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, with sorted keys.

    Raises:
        ValueError: a number is NaN or infinite, which JSON can't express.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` when the block ends without an error.

    Raises:
        UserError: `path` exists and is not empty, or the disk is full.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists: name a new directory, or delete it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
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


def read_description(
    directory: Path, name: str, *, version: int, made_by: str, older: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Read the JSON description of an artifact.

    Args:
        directory: directory of the artifact.
        name: the description's file name, e.g. `manifest.json`.
        version: the `format_version` that this code writes.
        older: earlier versions that the caller reads, too.
        made_by: the command that writes such a directory, for the error message.

    Raises:
        UserError: no such directory or description, invalid JSON, or another format version.
    """
    path = Path(directory) / name
    if not path.is_file():
        raise UserError(f"{directory} has no {name}: give a directory that `{made_by}` has finished writing.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): write the directory again with `{made_by}`.") from error
    format_version = description.get("format_version") if isinstance(description, dict) else None
    if format_version not in (version, *older):
        raise UserError(
            f"{path} has format version {format_version}, this vise_jax reads {version}: write it again with "
            f"`{made_by}`."
        )
    return description
