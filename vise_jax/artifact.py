"""Atomic files and directories, locks, and fingerprints, on disk and in object stores.

Each stage passes the next one a directory that describes itself in a JSON file. On disk it is written under a temporary
name in the same parent and renamed when complete, so that readers never see a partial one. In an object store an object
is written as a whole, and the description last.
"""

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import io
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pydantic import TypeAdapter, ValidationError

from vise_jax.errors import Interrupted, UserError
from vise_jax.machine import keep_freed_memory

# Object stores, with the extra that each needs.
_STORES = {"gs": "gcs", "s3": "s3"}
# Requests in flight, and what the store's library needs to have as many.
IN_FLIGHT = 128
_OPTIONS: dict[str, dict[str, Any]] = {"gs": {}, "s3": {"config_kwargs": {"max_pool_connections": IN_FLIGHT}}}
# Packages whose errors are those of a store.
_LIBRARIES = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")
# What S3 answers to a request in another region than the bucket's.
_OTHER_REGION = re.compile(r"the region '.+' is wrong|location constraint is incompatible|using the specified endpoint")
# Seconds after which a lock in an object store is renewed, and after which one that was not is a killed process's.
_RENEWED, _ABANDONED = 5.0, 30.0
# Bytes of an object that are read at a time where it is read in order, and how many of these at most are read ahead.
_READ_BYTES, _AHEAD = 4 << 20, 16
# Bytes of a file on disk that are read at a time.
_BLOCK_BYTES = 256 << 10


def location(name: str | Path) -> Path:
    """Return a path, or for a URL of an object store (`gs://`, `s3://`) an object with the methods of a path.

    Raises:
        UserError: a URL of another scheme, or the library of the store is not installed.
    """
    if not isinstance(name, str):
        return name
    match = re.match(r"([A-Za-z][\w+.-]*)://", name)
    if match is None:
        return Path(name)
    scheme = match[1].lower()
    if scheme not in _STORES:
        raise UserError(f"{name} is a URL of the unknown scheme {scheme}: give a path, or a URL of gs:// or s3://.")
    if not name[match.end() :].strip("/"):
        raise UserError(f"{name} names no bucket: give {scheme}://BUCKET/PATH.")
    # It logs the traceback of an error before it is raised.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        from upath import UPath

        # A cached listing would miss what other processes write.
        path = UPath(name, use_listings_cache=False, **_OPTIONS[scheme])
        _ = path.fs
    except ImportError as error:
        raise UserError(f"{scheme}:// needs more libraries: pip install -e '.[{_STORES[scheme]}]'.") from error
    return cast(Path, path)


def is_remote(path: Path) -> bool:
    """Return whether a path is a URL of an object store."""
    return not isinstance(path, Path)


@contextlib.contextmanager
def explained(path: Path, what: str = "read") -> Iterator[None]:
    """Turn an object store's errors into one sentence; those of the disk are left as they are.

    Raises:
        UserError: no such bucket or object, no permission, no credentials, another region, or no answer.
    """
    if not is_remote(path):
        yield
        return
    try:
        yield
    except (UserError, FileExistsError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} can't be {what}, there is no such bucket or object: check the URL.") from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _LIBRARIES:
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if _OTHER_REGION.search(reason):
            raise UserError(
                f"{path} can't be {what}: the bucket is in another region ({reason}): name it in AWS_DEFAULT_REGION."
            ) from error
        if isinstance(error, PermissionError):
            raise UserError(
                f"{path} can't be {what} with these credentials ({reason}): give them the permission, or use others."
            ) from error
        if "redential" in f"{type(error).__name__} {error}":
            raise UserError(f"{path} can't be {what}: there are no credentials ({reason}): sign in first.") from error
        raise UserError(
            f"{path} can't be {what}: the object store has refused or failed ({reason}): check URL and connection."
        ) from error


@functools.cache
def _store(scheme: str, bucket: str) -> Any:
    """Return the bucket as TensorStore reads it: with a tenth of the CPU time of the libraries of the stores.

    It repeats requests that fail, or whose answer is cut short.
    """
    import tensorstore

    spec: dict[str, Any] = {"driver": "gcs" if scheme == "gs" else "s3", "bucket": bucket}
    if scheme == "s3" and (endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        spec |= {"endpoint": endpoint, "aws_region": region}
    # Otherwise the memory of each request goes back to the kernel: 0.4 s of CPU time a gigabyte.
    keep_freed_memory()
    limits = {f"{name}_request_concurrency": {"limit": IN_FLIGHT} for name in ("gcs", "s3")}
    return tensorstore.KvStore.open(spec, context=tensorstore.Context(limits)).result()


# Waits for an object, and returns its bytes and its generation.
Reading = Callable[[], tuple[bytes, object]]


def begin_read(path: Path, part: slice | None = None) -> Reading:
    """Begin to read an object in an object store, or a part that is in it.

    Returns:
        A function that waits, and returns the bytes and the generation of the object. It raises `FileNotFoundError` if
        there is no such object, `IndexError` if the part is not in it, and `UserError` as `explained`.

    Raises:
        UserError: as `explained`.
    """
    return reader(path)("", part)


def reader(directory: Path) -> Callable[..., Reading]:
    """Return `begin_read` for names of objects in a directory, which makes no path of each: that takes longer."""
    bucket, _, prefix = cast(Any, directory).path.rstrip("/").partition("/")
    scheme = cast(Any, directory).protocol

    def begin(name: str, part: slice | None = None) -> Reading:
        with explained(directory):
            key = f"{prefix}/{name}" if prefix and name else prefix or name
            reading = _store(scheme, bucket).read(key, byte_range=part)

        def wait() -> tuple[bytes, object]:
            with explained(directory):
                try:
                    found = reading.result()
                except ValueError as error:  # of any kind
                    if "OUT_OF_RANGE" in str(error):
                        raise IndexError from error
                    raise (PermissionError if "PERMISSION_DENIED" in str(error) else OSError)(str(error)) from error
            if found.state == "missing":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{scheme}://{bucket}/{key}")
            return found.value, found.stamp.generation

        return wait

    return begin


def read_object(path: Path) -> bytes:
    """Read an object in an object store.

    Raises:
        FileNotFoundError: there is no such object.
        UserError: as `explained`.
    """
    return begin_read(path)()[0]


def begin_range(path: Path, offset: int, length: int) -> Callable[[], bytes]:
    """Begin to read `length` bytes of an object in an object store from `offset` on.

    Returns:
        A function that waits, and returns the bytes, fewer at the object's end. It raises `FileNotFoundError` if there
        is no such object, and `UserError` as `explained`.

    Raises:
        UserError: as `explained`.
    """
    reading = begin_read(path, slice(offset, offset + length))

    def wait() -> bytes:
        try:
            return reading()[0]
        except IndexError:
            return read_object(path)[offset : offset + length]

    return wait


class _Object(io.RawIOBase):
    """An object in an object store, read by ranges. The longer it is read in order, the more ranges are read ahead."""

    def __init__(self, path: Path, size: int | None = None):
        self._path, self._size, self._offset = path, version(path)[0] if size is None else size, 0
        self._ahead: deque[tuple[slice, Reading]] = deque()
        # Reading from the beginning is in order.
        self._end = self._in_order = 0
        self._generation: object = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._offset = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._size}[whence]
        return self._offset

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: Any) -> int:
        content = self.next_bytes(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def next_bytes(self, count: int) -> bytes:
        """Return a number of bytes, fewer at the end only."""
        wanted = self._part(self._offset, count)
        if wanted.start == wanted.stop:
            return b""
        self._in_order = min(self._in_order + 1, _AHEAD) if self._offset == self._end else 0
        if self._ahead and self._ahead[0][0] != wanted:
            self._ahead.clear()
        wait = self._ahead.popleft()[1] if self._ahead else begin_read(self._path, wanted)
        while len(self._ahead) < min(4**self._in_order - 1, _AHEAD):
            following = self._part(self._ahead[-1][0].stop if self._ahead else wanted.stop, count)
            if following.start == following.stop:
                break
            self._ahead.append((following, begin_read(self._path, following)))
        try:
            content, generation = wait()
        except IndexError:  # it is shorter now
            content, generation = b"", None
        if generation != (self._generation or generation) or not content:
            raise UserError(f"{self._path} was changed while it was read: let it rest, and run the same command again.")
        self._offset = self._end = wanted.stop
        self._generation = generation
        return content

    def _part(self, offset: int, length: int) -> slice:
        return slice(offset, max(min(offset + length, self._size), offset))


def open_file(path: Path, size: int | None = None) -> io.BufferedReader:
    """Open a file to read bytes.

    Args:
        path: the file.
        size: of the file in bytes, where it is known: an object store is not asked for it.

    Raises:
        OSError: it can't be read.
        UserError: as `explained`.
    """
    if is_remote(path):
        return io.BufferedReader(_Object(path, size), _READ_BYTES)
    return open(path, "rb")


def blocks(path: Path, size: int | None = None) -> Iterator[bytes]:
    """Yield all bytes of a file, up to 4 MiB at a time.

    Args:
        path: the file.
        size: as of `open_file`.

    Raises:
        OSError: it can't be read.
        UserError: as `explained`.
    """
    if is_remote(path):
        # Not through `open_file`, whose buffer is one more copy.
        yield from iter(functools.partial(_Object(path, size).next_bytes, _READ_BYTES), b"")
        return
    with open(path, "rb") as file:
        yield from iter(functools.partial(file.read, _BLOCK_BYTES), b"")


def first_bytes(path: Path, count: int) -> bytes:
    """Read the beginning of a file.

    Raises:
        OSError: it can't be read.
        UserError: as `explained`.
    """
    if is_remote(path):
        return begin_range(path, 0, count)()
    with open(path, "rb") as file:
        return file.read(count)


def version(path: Path) -> tuple[int, int | str]:
    """Return what changes when a file is replaced: its size, and its modification time (ns) or the object's generation.

    Raises:
        OSError: it can't be read.
        UserError: as `explained`.
    """
    if not is_remote(path):
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    with explained(path):
        return _version_of(cast(Any, path).fs.info(cast(Any, path).path))


def _version_of(info: dict[str, Any]) -> tuple[int, str]:
    return int(info["size"]), str(info.get("generation") or info.get("ETag"))


def find(pattern: str) -> list[Path]:
    """Return the files that a glob pattern matches, a path or a URL.

    Raises:
        UserError: as `location` and `explained`.
    """
    root = location(pattern)
    if not is_remote(root):
        return [path for name in glob.glob(pattern, recursive=True) if (path := Path(name)).is_file()]
    with explained(root):
        names = cast(Any, root).fs.glob(cast(Any, root).path)
    return [location(f"{pattern.partition('://')[0]}://{name}") for name in names]


def make_directory(path: Path) -> None:
    """Create a directory and its parents; in an object store there are none.

    Temporary files in it that processes of this host have left when they were killed are removed.
    """
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)


def remove_tree(path: Path) -> None:
    """Remove a directory and what it holds, if it exists."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with explained(path, "removed"), contextlib.suppress(FileNotFoundError):
        cast(Any, path).fs.rm(cast(Any, path).path, recursive=True)


def sizes(directory: Path) -> dict[str, int]:
    """Return the size of each file directly in a directory, by name; none if it does not exist.

    Raises:
        UserError: as `explained`.
    """
    if not is_remote(directory):
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        return {}
    with explained(directory):
        try:
            listed = cast(Any, directory).fs.ls(cast(Any, directory).path, detail=True)
        except FileNotFoundError:
            return {}
    return {entry["name"].rpartition("/")[2]: entry["size"] for entry in listed if entry["type"] == "file"}


def read_files(directory: Path, suffix: str) -> dict[str, bytes]:
    """Return the content of the files with a suffix in a directory, by name, sorted.

    Raises:
        UserError: as `explained`.
    """
    names = sorted(name for name in sizes(directory) if name.endswith(suffix))
    if not is_remote(directory):
        return {name: (directory / name).read_bytes() for name in names}
    root = cast(Any, directory).path
    with explained(directory):
        contents = cast(Any, directory).fs.cat([f"{root}/{name}" for name in names]) if names else {}
    return {name: contents[f"{root}/{name}"] for name in names}


def is_file(path: Path) -> bool:
    """Return whether there is such a file.

    Raises:
        UserError: as `explained`.
    """
    with explained(path):
        return path.is_file()


def exists(path: Path) -> bool:
    """Return whether there is such a file or directory.

    Raises:
        UserError: as `explained`.
    """
    with explained(path):
        return path.exists()


def entries(directory: Path) -> set[str]:
    """Return the names of the files and directories directly in a directory; none if it does not exist.

    Raises:
        UserError: as `explained`.
    """
    if not is_remote(directory):
        return set(os.listdir(directory)) if directory.exists() else set()
    with explained(directory):
        try:
            listed = cast(Any, directory).fs.ls(cast(Any, directory).path, detail=False)
        except FileNotFoundError:
            return set()
    return {name.rstrip("/").rpartition("/")[2] for name in listed} - {""}


def tree(directory: Path) -> dict[str, tuple[int, str]]:
    """Return size and generation of each file in a directory of an object store and in those below it, by path.

    Raises:
        UserError: a path that leaves the directory, or as `explained`.
    """
    root = cast(Any, directory).path.rstrip("/")
    with explained(directory):
        listed = cast(Any, directory).fs.find(root, detail=True)
    # A name that ends in a slash is what a console shows as an empty directory.
    files = {name[len(root) + 1 :]: _version_of(entry) for name, entry in listed.items() if not name.endswith("/")}
    for name in files:
        if not name or ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise UserError(f"{directory} has an object called {name!r}, which is no path in it: delete or rename it.")
    return files


def download(directory: Path, names: Iterable[str], target: Path) -> None:
    """Copy files out of a directory of an object store, as `tree` names them.

    Raises:
        UserError: the disk is full, or as `explained`.
    """
    names = list(names)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
    root = cast(Any, directory).path.rstrip("/")
    with explained(directory), disk_full(target):
        if names:
            cast(Any, directory).fs.get([f"{root}/{name}" for name in names], [str(target / name) for name in names])


def upload(source: Path, names: Iterable[str], directory: Path) -> None:
    """Copy files of a directory on disk into one of an object store, in any order.

    Raises:
        UserError: as `explained`.
    """
    names = list(names)
    root = cast(Any, directory).path.rstrip("/")
    with explained(directory, "written"):
        if names:
            cast(Any, directory).fs.put([str(source / name) for name in names], [f"{root}/{name}" for name in names])


def scratch(path: Path, kind: str) -> Path:
    """Return a directory on this machine for work on one in an object store, which only its owner can read.

    Args:
        path: the directory in the object store; the same one has the same directory here.
        kind: of the work, the suffix of its name.

    Raises:
        UserError: it can't be made.
    """
    directory = Path(tempfile.gettempdir()) / f"vise_jax-{os.getuid()}-{fingerprint(str(path))[:16]}.{kind}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        if directory.is_symlink() or directory.stat().st_uid != os.getuid():
            raise PermissionError("it is another user's")
    except OSError as error:
        raise UserError(f"{directory} can't be made ({error}): set TMPDIR to a directory of yours.") from error
    return directory


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yield the path of a file or directory on disk: itself, or a copy of that in an object store.

    The modification times of a copy follow from the generations of the objects: other content has another time.

    Raises:
        UserError: there is nothing, the disk is full, or as `explained`.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vise_jax-") as directory:
        copy = Path(directory) / path.name
        if is_file(path):
            source, target = path.parent, copy.parent
            files: dict[str, tuple[int, int | str]] = {path.name: version(path)}
        else:
            source, target, files = path, copy, {**tree(path)}
        if not files:
            raise UserError(f"{path} can't be read, there is no such bucket or object: check the URL.")
        download(source, files, target)
        for name, state in files.items():
            time_ns = int(fingerprint(state)[:14], 16)
            os.utime(target / name, ns=(time_ns, time_ns))
        yield copy


def canonical_json(value: Any) -> str:
    """Serialize a JSON value so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def from_json(content: bytes | str) -> Any:
    """Parse JSON in UTF-8.

    Raises:
        ValueError: it is not valid JSON, or nested too deeply.
    """
    try:
        return json.loads(content.decode() if isinstance(content, bytes) else content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_json(content: bytes, path: Path, advice: str) -> Any:
    """Parse a JSON file that was written atomically, so that only damage can make it invalid.

    Args:
        content: of the file.
        path: of the file, for the message.
        advice: what to do about it, for the message.

    Raises:
        UserError: it is not valid JSON.
    """
    try:
        return from_json(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {advice}.") from error


def json_lines(path: Path, needed: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Read a log of JSON objects, one a line. A kill can cut its last line short, which is left out.

    Args:
        path: the log; one that is missing has no lines.
        needed: keys that each object has to have.

    Returns:
        Each line with its end, and its object.

    Raises:
        UserError: a line is damaged.
    """
    lines: list[tuple[str, dict[str, Any]]] = []
    if not path.exists():
        return lines
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            value = parse_json(line, path, f"delete its line {len(lines) + 1}")
            if not isinstance(value, dict) or not value.keys() >= set(needed):
                raise UserError(f"{path} has no {' or '.join(needed)} in its line {len(lines) + 1}: delete the line.")
            lines.append((line.decode(), value))
    return lines


def check_schema(path: Path, value: Any, schema: TypeAdapter[Any], advice: str) -> None:
    """Check the types of a JSON value.

    Args:
        path: of the file, for the message.
        value: what it holds.
        schema: the types.
        advice: what to do about it, for the message.

    Raises:
        UserError: names the first value that is missing or of another type.
    """
    try:
        schema.validate_json(canonical_json(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} has no valid {place!r} ({first['msg']}): {advice}.") from error


def fingerprint(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    return sha256_of(blocks(path))


def sha256_of(blocks: Iterable[bytes]) -> str:
    """Return the SHA-256 (hex) of bytes that come block by block."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_full(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into one sentence.

    Args:
        path: what is written.

    Raises:
        Interrupted: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        # Orbax and TensorStore raise errors of their own, with the operating system's words.
        number = error.errno if isinstance(error, OSError) else None
        if number not in (errno.ENOSPC, errno.EDQUOT) and os.strerror(errno.ENOSPC) not in str(error):
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
    return path.with_name(f".{path.name}.tmp-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())


def _remove_leftovers(directory: Path, name: str = "") -> None:
    """Remove temporary files and directories that processes of this host have left when they were killed.

    Args:
        directory: that holds them.
        name: of what they were to become; all if empty.
    """
    pattern = re.compile(rf"\.{re.escape(name) or '.+'}\.tmp-{re.escape(_host())}-(\d+)-[0-9a-f]{{8}}")
    for entry in entries(directory):
        of_process = pattern.fullmatch(entry)
        if of_process and _process_has_ended(int(of_process[1])):
            path = directory / entry
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def refuse_links(directory: Path) -> None:
    """Check that a directory to write into holds no symbolic link, through which other files would be written.

    Raises:
        UserError: names the first link.
    """
    if is_remote(directory):
        return
    for parent, inner, names in os.walk(directory):
        for name in sorted((*inner, *names)):
            if os.path.islink(path := os.path.join(parent, name)):
                raise UserError(
                    f"{path} is a link, through which other files would be written: put a copy in its place."
                )


@contextlib.contextmanager
def lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on a regular file, created if it doesn't exist, until the block ends.

    The lock is advisory (`flock`) and ends with the process. Unlike a lock on a directory it holds across the hosts of
    a network file system. In an object store it is an object that only one process can create, which is renewed until
    the block ends; that of a process that was killed on another host counts for half a minute. A process that stood
    still for longer, and finds that another one has taken its lock, ends at once, with status 1.

    Args:
        path: the lock file. It stays, so that all processes lock the same file.
        busy: message of the error when another process holds the lock.

    Raises:
        UserError: another process holds the lock.
    """
    if is_remote(path):
        with _leased(path, busy):
            yield
        return
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


@contextlib.contextmanager
def _leased(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock in an object store: an object with the name of its holder, who writes it again each few seconds."""
    store, key = cast(Any, path).fs, cast(Any, path).path
    holder = {"host": socket.gethostname(), "process": os.getpid(), "id": secrets.token_hex(8)}

    def write(renewals: int, **how: str) -> None:
        store.pipe_file(key, canonical_json({**holder, "renewals": renewals}).encode(), **how)

    def read() -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return store.cat_file(key)
        return b""

    with explained(path, "written"):
        while True:
            try:
                write(0, mode="create")
                break
            except FileExistsError as error:
                theirs, waited = read(), 0.0
                while theirs and not _has_ended(theirs) and waited < _ABANDONED:
                    time.sleep(_RENEWED / 5)
                    waited += _RENEWED / 5
                    if (now := read()) not in (theirs, b""):
                        raise UserError(busy) from error
                    theirs = now
                if theirs:
                    store.rm_file(key)
    ended = threading.Event()

    def renew() -> None:
        for renewals in itertools.count(1):
            if ended.wait(_RENEWED):
                return
            with contextlib.suppress(Exception):  # the next one may succeed
                if (now := read()) and json.loads(now)["id"] != holder["id"]:
                    # What it writes from here on would be among what the other one writes.
                    print(f"{path} was taken by another process while this one stood still.", file=sys.stderr)
                    os._exit(1)
                write(renewals)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # it counts as abandoned soon
            store.rm_file(key)


def _has_ended(lock: bytes) -> bool:
    """Return whether the holder of a lock was a process of this host that has ended."""
    holder = json.loads(lock)
    return holder["host"] == socket.gethostname() and _process_has_ended(holder["process"])


def _process_has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield an open temporary file that replaces `path` when the block ends without an error.

    Raises:
        UserError: the disk is full, or as `explained`.
    """
    if is_remote(path):
        with disk_full(Path(tempfile.gettempdir())), tempfile.NamedTemporaryFile(prefix="vise_jax-") as file:
            yield cast(BinaryIO, file)
            file.flush()
            with explained(path, "written"):
                # An object is replaced as a whole, when its last byte is there.
                cast(Any, path).fs.put_file(file.name, cast(Any, path).path)
        return
    path = Path(path)
    temporary = _temporary(path)
    try:
        with disk_full(path):
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
def atomic_directory(path: Path, description: str = "") -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` when the block ends without an error.

    Args:
        path: the directory.
        description: name of the file that is written last in an object store.

    Raises:
        UserError: `path` exists and is not empty, the disk is full, or as `explained`.
    """
    occupied = UserError(f"{path} already exists: name a new directory, or delete it first.")
    if is_remote(path):
        there = entries(path)
        if description in there or (there and not description):
            raise occupied
        with disk_full(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="vise_jax-") as name:
            yield Path(name)
            files = [entry.relative_to(name).as_posix() for entry in Path(name).rglob("*") if entry.is_file()]
            # A killed process may have left some of them.
            if there and not set(tree(path)) <= set(files):
                raise occupied
            upload(Path(name), (file for file in files if file != description), path)
            upload(Path(name), (file for file in files if file == description), path)
        return
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise occupied
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent, path.name)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        with disk_full(path):
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
    path = directory / name
    with explained(path):
        missing = not path.is_file()
    if missing:
        raise UserError(f"{directory} has no {name}: give a directory that `{made_by}` has finished writing.")
    try:
        description = from_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): write the directory again with `{made_by}`.") from error
    format_version = description.get("format_version") if isinstance(description, dict) else None
    if format_version not in (version, *older):
        raise UserError(
            f"{path} has format version {format_version}, this vise_jax reads {version}: write it again with "
            f"`{made_by}`."
        )
    return description
