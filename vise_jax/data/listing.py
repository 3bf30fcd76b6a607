"""Find the images of a directory, a zip archive or a CSV file, and nothing outside of it."""

import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vise_jax.errors import UserError

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"),
    # Not readable here, but listed so that they are not left out silently.
    *(".heic", ".heif"),
)
# First bytes of image files, and their offset.
_MAGIC = (
    *((0, magic) for magic in (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM")),
    *((8, b"WEBP"), (4, b"ftypavif"), (4, b"ftyphei")),
)
_HEAD_BYTES = 16
# Names of splits, in any case: Train, train_set, test-images, images_val, train2017.
_SPLIT_NAME = re.compile(
    r"(?:(?:images?|imgs?|data)[ _-]*)?"
    r"(?:(?P<train>train(?:ing)?)|(?P<validation>val|valid|validation|dev)|(?P<test>test|testing|eval|evaluation))"
    r"(?:[ _-]*(?:set|split|data|images?|imgs?))?"
    r"(?:[ _-]*(?:19|20)\d\d)?"
)
# Directories in which file servers, archivers and desktops keep thumbnails and deleted files.
_SYSTEM = frozenset(
    {"@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx", "thumbs.db"}
)
# What a damaged zip archive or member raises, or one that is encrypted or packed in a way that Python doesn't know.
UNREADABLE_ZIP = (
    OSError,
    EOFError,
    RuntimeError,
    UnicodeDecodeError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# Stamp of a file that is missing.
MISSING = (-1, -1)


class Limits(NamedTuple):
    """Bounds of what is read of a dataset; see the config keys of evaluation.

    Attributes:
        image_bytes: longer files are no photos; an archive's could otherwise unpack into all of the memory.
        archive_entries: of a zip archive.
    """

    image_bytes: int = 256 * 2**20
    archive_entries: int = 2_000_000


LIMITS = Limits()


@dataclass(frozen=True)
class ImageFile:
    """The file of an image.

    Attributes:
        path: the file, or the zip archive that has it.
        member: its name in the archive, or None.
        stamp: size and modification time of a file, size and CRC of a member; `MISSING`.
        offset: of its first byte where `path` is a file of several records, or None.
    """

    path: Path
    member: str | None
    stamp: tuple[int, int]
    offset: int | None = None


# Images by name, and the names of all directories.
Listing = tuple[dict[str, ImageFile], set[str]]


def split_of(name: str) -> str | None:
    """Return the split that a directory or CSV value names, "train", "validation" or "test"; None if it names none."""
    match = _SPLIT_NAME.fullmatch(name.lower())
    return match.lastgroup if match else None


def list_images(path: Path, link_roots: Sequence[Path], limits: Limits = LIMITS) -> Listing:
    """List the images of a directory, a zip archive, or a directory of zip archives.

    Args:
        path: the directory or archive.
        link_roots: directories outside of `path` that links may point into.
        limits: of each archive.

    Raises:
        UserError: no such path, no images, an image twice, a link that leads elsewhere, an archive of too many entries.
    """
    if path.is_dir():
        files, directories = _list_directory(path, link_roots)
        archives = sorted(name for name in os.listdir(path) if name.lower().endswith(".zip") and _shown(name))
        if archives and files:
            raise UserError(f"{path} has both images and zip archives ({archives[0]}): keep one kind in it.")
        for archive in archives:
            members, more = _list_archive(file_inside(path, archive, path, link_roots).path, limits)
            if repeated := sorted(files.keys() & members.keys()):
                raise UserError(f"{path} has the image {repeated[0]} in two zip archives: keep one of them.")
            files |= members
            directories |= more
    elif path.is_file() and path.suffix.lower() == ".zip":
        files, directories = _list_archive(path, limits)
    elif path.exists():
        raise UserError(f"{path} is no set of images: give a directory, a .zip or a .csv file.")
    else:
        raise UserError(f"{path} does not exist: give a directory of images, a .zip or a .csv file.")
    if not files:
        raise UserError(f"{path} holds no images: it needs JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF files.")
    return files, directories


def is_image(path: Path) -> bool:
    """Return whether a file is an image, by its suffix or else by its first bytes."""
    return _is_image(path.name, partial(_first_bytes, path))


def file_inside(
    root: Path, name: str, named_by: Path, link_roots: Sequence[str | Path], *, must_exist: bool = True
) -> ImageFile:
    """Return the file `name` below `root`.

    Args:
        root: the directory that it must not leave, by `..` or by a link.
        name: its path below `root`, with forward slashes.
        named_by: the directory or CSV file that names it, for messages.
        link_roots: directories that links may point into.
        must_exist: raise an error for a missing file; otherwise reading it raises one.

    Raises:
        UserError: the path is absolute or leaves `root`, or the file is missing.
    """
    relative = PurePosixPath(name)
    if not name or "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"{named_by} names the file {name!r}: paths must be relative and stay in its directory.")
    path = root / relative
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except (OSError, UnicodeEncodeError) as error:
        if not must_exist:
            return ImageFile(path, None, MISSING)
        raise UserError(f"The file {name} that {named_by} names is missing: restore it or drop it.") from error
    if not _is_inside(real, (root, *link_roots)):
        raise UserError(
            f"The file {name} in {named_by} is a link that leads out of its directory: put a copy there, or allow the "
            "directory that it leads to with the config key link_roots."
        )
    if not os.path.isfile(real):
        raise UserError(f"The file {name} that {named_by} names is no file: name an image file.")
    return ImageFile(path, None, (status.st_size, status.st_mtime_ns))


def _is_inside(real: str, roots: Sequence[str | Path]) -> bool:
    return any(Path(real).is_relative_to(os.path.realpath(root)) for root in roots)


def _list_directory(root: Path, link_roots: Sequence[Path]) -> Listing:
    files: dict[str, ImageFile] = {}
    directories: set[str] = set()
    visited = {os.path.realpath(root)}
    for parent, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if _shown(name)]
        relative = Path(parent).relative_to(root)
        for name in inner:
            if Path(parent, name).is_symlink():
                real = os.path.realpath(Path(parent, name))
                if not _is_inside(real, link_roots):
                    raise UserError(
                        f"{Path(parent, name)} is a link to a directory: put the directory itself there, or allow the "
                        "one that it leads to with the config key link_roots."
                    )
                if real in visited:
                    raise UserError(f"{Path(parent, name)} is a link to a directory that is listed already: drop it.")
                visited.add(real)
            directories.add((relative / name).as_posix())
        for name in names:
            if is_image(Path(parent, name)):
                full = (relative / name).as_posix()
                files[full] = file_inside(root, full, root, link_roots)
    return files, directories


def _list_archive(path: Path, limits: Limits) -> Listing:
    try:
        with zipfile.ZipFile(path) as archive:
            if (count := len(archive.infolist())) > limits.archive_entries:
                raise UserError(
                    f"{path} has {count:,} entries, more than {limits.archive_entries:,}: raise the config key "
                    "max_archive_entries if you trust it, or extract it."
                )
            infos = [
                info
                for info in archive.infolist()
                if (parts := PurePosixPath(info.filename).parts) and all(map(_shown, parts))
            ]
            images = [
                info
                for info in infos
                if not info.is_dir() and _is_image(info.filename, partial(_first_bytes_of_member, archive, info))
            ]
    except UNREADABLE_ZIP as error:
        raise UserError(f"{path} can't be read as a zip archive ({error}): get it again.") from error
    paths = {info.filename: PurePosixPath(info.filename) for info in infos}
    # `zip -r set.zip set` puts one directory above everything.
    tops = {paths[info.filename].parts[0] for info in infos}
    depth = min((len(paths[info.filename].parts) for info in images), default=0)
    skip = 1 if len(tops) == 1 and depth > 2 and not any(map(split_of, tops)) else 0
    # train.zip may hold the class directories themselves.
    above = path.stem if split_of(path.stem) and not any(map(split_of, tops)) else ""

    def name(info: zipfile.ZipInfo) -> str:
        return PurePosixPath(above, *paths[info.filename].parts[skip:]).as_posix()

    files = {name(info): ImageFile(path, info.filename, (info.file_size, info.CRC)) for info in images}
    if len(files) < len(images):
        raise UserError(f"{path} holds several images of the same name: make the archive again.")
    return files, {name(info) for info in infos if info.is_dir()}


def _shown(part: str) -> bool:
    """Return whether a file or directory belongs to the data: neither hidden nor a system's own."""
    return not part.startswith(".") and part.lower() not in _SYSTEM


def _is_image(name: str, first_bytes: Callable[[], bytes]) -> bool:
    if not _shown(PurePosixPath(name).name):
        return False
    if name.lower().endswith(_SUFFIXES):
        return True
    head = first_bytes()
    return any(head[offset : offset + len(magic)] == magic for offset, magic in _MAGIC)


def _first_bytes(path: Path) -> bytes:
    # Reading a pipe or a device might never end.
    if not path.is_file():
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _first_bytes_of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as file:
            return file.read(_HEAD_BYTES)
    except UNREADABLE_ZIP:
        return b""
