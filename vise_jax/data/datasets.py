"""Labeled image sets for downstream tasks: directories, zip archives, CSV files."""

import csv
import dataclasses
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from vise_jax import artifact
from vise_jax.errors import UserError

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"),
    # Not readable here, but named so that it is not left out silently.
    *(".heic", ".heif"),
)
# First bytes of image files, and the offset where they stand.
_MAGIC = (
    *((0, magic) for magic in (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM")),
    *((8, b"WEBP"), (4, b"ftypavif"), (4, b"ftyphei")),
)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Directories in which file servers, archivers and desktops keep thumbnails and deleted files.
_SYSTEM = frozenset(
    {"@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx", "thumbs.db"}
)
# A longer file is no photo; an archive could otherwise unpack into all of the memory.
_MAX_FILE_BYTES = 1 << 28
_HEAD_BYTES = 16


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an image's bytes are: a file, or a member of a zip archive."""

    path: Path
    member: str | None
    # What changes when the image does: size and modification time of a file, size and CRC of a member.
    stamp: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels, sorted by name.

    Attributes:
        title: the name of the folder or archive that was opened; of a CSV file, with its folder's: `photos/labels`.
        names: path of each image inside it, with forward slashes.
        labels: int32 [N], an index into `classes`; -1 where the set was opened without labels.
        classes: sorted names; empty where the set was opened without labels.
        splits: "train", "validation" or "test" for each image, or None where the data have no official split.
        fingerprint: SHA-256 (hex) over names, labels, splits, and each file's size and time (or CRC in an archive).
    """

    title: str
    names: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: tuple[str, ...] | None
    fingerprint: str
    _places: tuple[_Place, ...] = dataclasses.field(repr=False)
    _archives: dict[Path, zipfile.ZipFile] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The bytes of one image file; several threads may read at a time.

        Raises:
            UserError: the file is gone, damaged in its archive, or longer than any photo.
        """
        place = self._places[index]
        if place.stamp[0] > _MAX_FILE_BYTES:
            raise UserError(
                f"The image {self.names[index]} has {place.stamp[0]:,} bytes: that is too long for a photo."
            )
        try:
            if place.member is None:
                return place.path.read_bytes()
            archive = self._archives.get(place.path) or self._archives.setdefault(
                place.path, zipfile.ZipFile(place.path)
            )
            return archive.read(place.member)
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
            raise UserError(f"The image {self.names[index]} in {place.path} can't be read: {error}.") from error


def open_folder(path: str | Path) -> ImageSet:
    """Open a labeled image set.

    Args:
        path: one of
            a folder of class folders, perhaps with `train/`, `test/` and `validation/` (`val/`, `valid/`) above them;
            a zip archive of such a folder, which is not extracted;
            a folder of zip archives that together make such a folder, e.g. `train.zip` and `test.zip`;
            a CSV file with the header `image,label` or `image,label,split`, whose paths are relative to its folder.

    Raises:
        UserError: nothing there, one class only, an image without a class, a class without images, a missing or
            repeated image, an unknown split, classes that differ between splits, a path that leaves its folder.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        rows = _read_csv(path, ("image", "label"))
        places = {row["image"]: _place_inside(path.parent, row["image"], path) for row in rows}
        labels = {row["image"]: row["label"] for row in rows}
        splits = _csv_splits(rows, path)
    else:
        places, folders = _list_images(path)
        labels, splits = _read_layout(path, places, folders)
    classes = sorted(set(labels.values()))
    if len(classes) < 2:
        raise UserError(f"{path} has one class only ({classes[0]}): a classifier needs at least two.")
    if splits:
        _check_splits(path, labels, splits)
    return _image_set(path, places, labels, splits)


def open_unlabeled(path: str | Path) -> ImageSet:
    """Open images without labels.

    Args:
        path: a folder (searched through all its folders), a zip archive, a CSV file (its column `image`), or one image.

    Raises:
        UserError: nothing there, a missing image, a path that leaves its folder.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        names = [row["image"] for row in _read_csv(path, ("image",))]
        return _image_set(path, {name: _place_inside(path.parent, name, path) for name in names}, None, None)
    if path.is_file() and _is_image(path.name, partial(_first_bytes, path)):
        return _image_set(path, {path.name: _place_inside(path.parent, path.name, path.parent)}, None, None)
    return _image_set(path, _list_images(path)[0], None, None)


def _image_set(
    path: Path, places: dict[str, _Place], labels: dict[str, str] | None, splits: dict[str, str] | None
) -> ImageSet:
    names = tuple(sorted(places))
    odd = [name for name in names if name != name.encode(errors="replace").decode()]
    if odd:
        raise UserError(f"The image {odd[0]!r} in {path} has a name that is no UTF-8: rename it.")
    classes = tuple(sorted(set(labels.values()))) if labels else ()
    index = {name: number for number, name in enumerate(classes)}
    numbers = [index[labels[name]] if labels else -1 for name in names]
    split = tuple(splits[name] for name in names) if splits else None
    return ImageSet(
        title=_title(Path(os.path.abspath(path))),
        names=names,
        labels=np.array(numbers, np.int32),
        classes=classes,
        splits=split,
        fingerprint=artifact.fingerprint([names, numbers, classes, split, [places[name].stamp for name in names]]),
        _places=tuple(places[name] for name in names),
    )


def _title(path: Path) -> str:
    if path.is_dir():
        return path.name
    # CSV files are mostly called labels.csv.
    return f"{path.parent.name}/{path.stem}" if path.suffix.lower() == ".csv" else path.stem


def _list_images(path: Path) -> tuple[dict[str, _Place], set[str]]:
    """All images by their names, and all folders, of a folder, a zip archive, or a folder of zip archives."""
    if path.is_dir():
        places, folders = _list_folder(path)
        archives = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".zip" and _shown(entry.name))
        if archives and places:
            raise UserError(f"{path} has both images and zip archives ({archives[0].name}): keep one kind in it.")
        for archive in archives:
            members, more = _list_archive(archive)
            repeated = sorted(places.keys() & members.keys())
            if repeated:
                raise UserError(f"{path} has the image {repeated[0]} in two zip archives: keep one of them.")
            places |= members
            folders |= more
    elif path.is_file() and path.suffix.lower() == ".zip":
        places, folders = _list_archive(path)
    elif path.exists():
        raise UserError(f"{path} is no image set: give a folder, a .zip or a .csv file.")
    else:
        raise UserError(f"{path} does not exist: give a folder of images, a .zip or a .csv file.")
    if not places:
        raise UserError(f"{path} holds no images: it needs JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF files.")
    return places, folders


def _list_folder(root: Path) -> tuple[dict[str, _Place], set[str]]:
    places: dict[str, _Place] = {}
    folders: set[str] = set()
    for parent, inner, files in os.walk(root):
        inner[:] = [name for name in inner if _shown(name)]
        relative = Path(parent).relative_to(root)
        for name in inner:
            if Path(parent, name).is_symlink():
                raise UserError(f"{Path(parent, name)} is a link to a folder: put the folder itself there.")
            folders.add((relative / name).as_posix())
        for name in files:
            if _is_image(name, partial(_first_bytes, Path(parent, name))):
                full = (relative / name).as_posix()
                places[full] = _place_inside(root, full, root)
    return places, folders


def _list_archive(path: Path) -> tuple[dict[str, _Place], set[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if all(map(_shown, PurePosixPath(info.filename).parts))]
            files = [
                info
                for info in infos
                if not info.is_dir() and _is_image(info.filename, partial(_first_bytes_of_member, archive, info))
            ]
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} can't be read as a zip archive: {error}.") from error
    paths = {info.filename: PurePosixPath(info.filename) for info in infos}
    # `zip -r set.zip set` puts one folder above everything.
    tops = {paths[info.filename].parts[0] for info in infos}
    depth = min((len(paths[info.filename].parts) for info in files), default=0)
    skip = 1 if len(tops) == 1 and depth > 2 and not any(map(_split_of, tops)) else 0
    # train.zip may hold the class folders themselves.
    above = path.stem if _split_of(path.stem) and not any(map(_split_of, tops)) else ""

    def name(info: zipfile.ZipInfo) -> str:
        return PurePosixPath(above, *paths[info.filename].parts[skip:]).as_posix()

    places = {name(info): _Place(path, info.filename, (info.file_size, info.CRC)) for info in files}
    if len(places) < len(files):
        raise UserError(f"{path} holds several images of the same name: make the archive again.")
    return places, {name(info) for info in infos if info.is_dir()}


def _shown(part: str) -> bool:
    """Return whether a file or directory belongs to the data: neither hidden nor a system's own."""
    return not part.startswith(".") and part.lower() not in _SYSTEM


def _split_of(name: str) -> str | None:
    """Return the split that a directory or CSV value names, in any case, or None."""
    return _SPLITS.get(name.lower())


def _is_image(name: str, first_bytes: Callable[[], bytes]) -> bool:
    """Return whether a file is an image, by its suffix or else by its first bytes."""
    if not _shown(PurePosixPath(name).name):
        return False
    if name.lower().endswith(_SUFFIXES):
        return True
    head = first_bytes()
    return any(head[offset : offset + len(magic)] == magic for offset, magic in _MAGIC)


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _first_bytes_of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as file:
            return file.read(_HEAD_BYTES)
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError):
        return b""


def _place_inside(root: Path, name: str, named_by: Path) -> _Place:
    """The file `name` in `root`, which it must not leave, by `..` or by a link."""
    relative = PurePosixPath(name)
    if not name or "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"{named_by} names the image {name!r}: paths must be relative and stay in its folder.")
    path = root / relative
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except OSError as error:
        raise UserError(f"The image {name} that {named_by} names is missing: restore it or drop it.") from error
    if not Path(real).is_relative_to(os.path.realpath(root)):
        raise UserError(f"The image {name} in {named_by} is a link that leads out of its folder: put a copy there.")
    if not os.path.isfile(real):
        raise UserError(f"The image {name} that {named_by} names is no file: name an image file.")
    return _Place(path, None, (status.st_size, status.st_mtime_ns))


def _read_layout(path: Path, names: Iterable[str], folders: set[str]) -> tuple[dict[str, str], dict[str, str] | None]:
    """Labels, and official splits if there are any, from names like `train/cat/1.jpg` or `cat/1.jpg`."""
    parts = {name: name.split("/") for name in names}
    tops = {words[0] for words in parts.values()}
    named = {top: _split_of(top) for top in sorted(tops)}
    split = all(named.values())
    if not split and {"train", "test"} <= set(named.values()):
        other = next(top for top, name in named.items() if name is None)
        raise UserError(f"{path} has {other} beside train and test: there may be train, validation and test only.")
    for name in set(filter(None, named.values())):
        same = [top for top in named if named[top] == name]
        if split and len(same) > 1:
            raise UserError(f"{path} has {' and '.join(same)}, which both name the split {name}: merge them.")
    level = 1 if split else 0
    labels = {}
    for name, words in parts.items():
        if len(words) < level + 2:
            raise UserError(f"The image {name} in {path} is in no class folder: move it into one or take it away.")
        labels[name] = words[level]
    classes = {"/".join(words[: level + 1]) for words in parts.values()}
    for folder in sorted(folders - classes):
        words = folder.split("/")
        if len(words) == level + 1 and (not split or _split_of(words[0])):
            raise UserError(f"The class folder {folder} in {path} holds no images: fill it or delete it.")
    # One split alone says nothing about what to test on.
    if not split or len(tops) == 1:
        return labels, None
    return labels, {name: _SPLITS[words[0].lower()] for name, words in parts.items()}


def _check_splits(path: Path, labels: dict[str, str], splits: dict[str, str]) -> None:
    classes: dict[str, set[str]] = {}
    for name, split in splits.items():
        classes.setdefault(split, set()).add(labels[name])
    for split in ("train", "test"):
        if split not in classes:
            raise UserError(f"{path} has images for {' and '.join(sorted(classes))} but none for {split}: add some.")
    for split, found in classes.items():
        differ = sorted(found ^ classes["train"])
        if differ:
            has, lacks = ("train", split) if differ[0] in classes["train"] else (split, "train")
            raise UserError(f"In {path} the class {differ[0]} has images for {has} but none for {lacks}: add some.")


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV file, none without a value in `columns`, none naming an image again."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a CSV file: {error}.") from error
    for column in columns:
        if column not in header:
            raise UserError(
                f"{path} has no column {column!r}: its first line must be image,label or image,label,split."
            )
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if not row[column]:
                raise UserError(f"{path} has no {column} in its row {number} (the header not counted): fill it in.")
        row["image"] = PurePosixPath(row["image"]).as_posix()
        if row["image"] in seen:
            raise UserError(f"{path} names the image {row['image']} twice: each image counts once, drop a row.")
        seen.add(row["image"])
    if not rows:
        raise UserError(f"{path} names no images: add rows below its header.")
    return rows


def _csv_splits(rows: list[dict[str, str]], path: Path) -> dict[str, str] | None:
    if "split" not in rows[0]:
        return None
    for row in rows:
        if not _split_of(row["split"]):
            raise UserError(f"{path} has the split {row['split']!r} for {row['image']}: use train, validation or test.")
    return {row["image"]: _SPLITS[row["split"].lower()] for row in rows}
