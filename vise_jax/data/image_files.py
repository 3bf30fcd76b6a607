"""Image files in directories and zip archives.

Paths that come from data never leave their directory: neither by `..` nor by a symbolic link, except for links into
directories that the caller names as link roots.
"""

import contextlib
import dataclasses
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from vise_jax.data.dataset_layouts import split_of
from vise_jax.errors import UserError

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"),
    # Not decodable here, but listed so that they are not left out silently.
    *(".heic", ".heif"),
)
# First bytes of image files, with their offset.
_MAGIC = (
    *((0, magic) for magic in (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM")),
    *((8, b"WEBP"), (4, b"ftypavif"), (4, b"ftyphei")),
)
_HEAD_BYTES = 16
# Directories in which file servers, archivers and desktops keep thumbnails and deleted files.
_SYSTEM = frozenset(
    {"@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx", "thumbs.db"}
)
# A longer file is no photo. The bound keeps an archive from unpacking into all of the memory.
_MAX_FILE_BYTES = 1 << 28
_READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A file, or a member of a zip archive.

    Attributes:
        path: the file or the archive.
        member: name of the member; None for a file.
        stamp: size and modification time (ns) of a file, size and CRC of a member. It changes when the image does.
    """

    path: Path
    member: str | None
    stamp: tuple[int, int]

    def read(self, archives: dict[Path, zipfile.ZipFile]) -> bytes:
        """Return the encoded image.

        Args:
            archives: open archives by path; a missing one is opened and added.

        Raises:
            UserError: the file is gone, damaged in its archive, or longer than any photo.
        """
        if self.stamp[0] > _MAX_FILE_BYTES:
            raise UserError(f"{self.path} has an image of {self.stamp[0]:,} bytes, too long for a photo: remove it.")
        try:
            if self.member is None:
                return self.path.read_bytes()
            archive = archives.get(self.path) or archives.setdefault(self.path, zipfile.ZipFile(self.path))
            return archive.read(self.member)
        except _READ_ERRORS as error:
            raise UserError(f"{self.path} can't be read: {error}.") from error


# Image files by name (path inside the dataset, with forward slashes), and the names of all directories.
Listing = tuple[dict[str, ImageFile], set[str]]


def list_images(path: Path, link_roots: Sequence[str]) -> Listing:
    """List the images of a directory, a zip archive, or a directory of zip archives.

    Args:
        path: the directory or archive.
        link_roots: directories that symbolic links may point into.

    Raises:
        UserError: nothing there, no images, a corrupt archive, or a link to anywhere else.
    """
    if path.is_dir():
        files, directories = _list_directory(path, link_roots)
        archives = sorted(entry.name for entry in path.iterdir() if _shown(entry.name) and _is_archive(entry))
        if archives and files:
            raise UserError(f"{path} has both images and zip archives ({archives[0]}): keep one kind in it.")
        for name in archives:
            members, directories_inside = _list_archive(file_inside(path, name, path, link_roots).path)
            repeated = sorted(files.keys() & members.keys())
            if repeated:
                raise UserError(f"{path} has the image {repeated[0]} in two zip archives: keep one of them.")
            files |= members
            directories |= directories_inside
    elif path.is_file() and _is_archive(path):
        files, directories = _list_archive(path)
    elif path.exists():
        raise UserError(f"{path} is no dataset: give a directory, a .zip or a .csv file.")
    else:
        raise UserError(f"{path} does not exist: give a directory of images, a .zip or a .csv file.")
    if not files:
        raise UserError(f"{path} holds no images: it needs JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF files.")
    return files, directories


def is_image_file(path: Path) -> bool:
    """Return whether a path is an image file, by its suffix or else by its first bytes."""
    return path.is_file() and _is_image(path.name, partial(_first_bytes, path))


def file_inside(root: Path, name: str, named_by: Path, link_roots: Sequence[str]) -> ImageFile:
    """Return the file `name` of a directory that it must not leave.

    Args:
        root: the directory.
        name: path relative to `root`, with forward slashes.
        named_by: the file or directory that names it, for error messages.
        link_roots: directories that symbolic links may point into.

    Raises:
        UserError: no such file, an absolute path or one with `..`, or a link to outside of `root` and `link_roots`.
    """
    relative = PurePosixPath(name)
    if not name or "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"{named_by} names the file {name!r}: paths must be relative and stay in its directory.")
    path = root / relative
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except OSError as error:
        raise UserError(f"The file {name} that {named_by} names is missing: restore it or drop it.") from error
    if not _is_within(real, (root, *link_roots)):
        raise UserError(
            f"The file {name} in {named_by} is a link that leads out of its directory: put a copy there, or name a "
            "directory that holds its target in link_roots."
        )
    if not os.path.isfile(real):
        raise UserError(f"The file {name} that {named_by} names is no regular file: name an image file.")
    return ImageFile(path, None, (status.st_size, status.st_mtime_ns))


def _is_within(real: str, directories: Sequence[str | Path]) -> bool:
    return any(Path(real).is_relative_to(os.path.realpath(directory)) for directory in directories)


def _list_directory(root: Path, link_roots: Sequence[str]) -> Listing:
    files: dict[str, ImageFile] = {}
    directories: set[str] = set()
    # Real paths of each directory and of those above it: a link to one of them would be followed without end.
    real_paths = {str(root): frozenset({os.path.realpath(root)})}
    for parent, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if _shown(name)]
        relative = Path(parent).relative_to(root)
        for name in inner:
            path = os.path.join(parent, name)
            real = os.path.realpath(path)
            if os.path.islink(path) and not _is_within(real, link_roots):
                raise UserError(
                    f"{path} is a link to a directory: put the directory itself there, or name one that holds its "
                    "target in link_roots."
                )
            if real in real_paths[parent]:
                raise UserError(f"{path} is a link to a directory above it: remove the link.")
            real_paths[path] = real_paths[parent] | {real}
            directories.add((relative / name).as_posix())
        for name in names:
            if _is_image(name, partial(_first_bytes, Path(parent, name))):
                full = (relative / name).as_posix()
                files[full] = file_inside(root, full, root, link_roots)
    return files, directories


def _list_archive(path: Path) -> Listing:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if all(map(_shown, PurePosixPath(info.filename).parts))]
            images = [
                info
                for info in members
                if not info.is_dir() and _is_image(info.filename, partial(_first_bytes_of_member, archive, info))
            ]
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} can't be read as a zip archive: {error}.") from error
    paths = {info.filename: PurePosixPath(info.filename) for info in members}
    # `zip -r set.zip set` puts one directory above everything.
    tops = {paths[info.filename].parts[0] for info in members}
    depth = min((len(paths[info.filename].parts) for info in images), default=0)
    skip = 1 if len(tops) == 1 and depth > 2 and not any(map(split_of, tops)) else 0
    # train.zip may hold the class directories themselves.
    above = path.stem if split_of(path.stem) and not any(map(split_of, tops)) else ""

    def name(info: zipfile.ZipInfo) -> str:
        return PurePosixPath(above, *paths[info.filename].parts[skip:]).as_posix()

    files = {name(info): ImageFile(path, info.filename, (info.file_size, info.CRC)) for info in images}
    if len(files) < len(images):
        raise UserError(f"{path} holds several images of the same name: write the archive again.")
    return files, {name(info) for info in members if info.is_dir()}


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


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
    with contextlib.suppress(OSError):
        # Reading a pipe or a device might never end.
        if path.is_file():
            with open(path, "rb") as file:
                return file.read(_HEAD_BYTES)
    return b""


def _first_bytes_of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with contextlib.suppress(*_READ_ERRORS), archive.open(info) as file:
        return file.read(_HEAD_BYTES)
    return b""
