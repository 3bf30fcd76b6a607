"""Datasets of downstream tasks: images with labels, splits, texts and groups."""

import csv
import os
import zipfile
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from vise_jax import artifact
from vise_jax.data.listing import ImageFile, file_inside, is_image, list_images, split_of
from vise_jax.errors import UserError

# A longer file is no photo; an archive could otherwise unpack into all of the memory.
_MAX_FILE_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels, sorted by name.

    Attributes:
        title: name of the directory or archive; of a CSV file, with its directory's: `photos/labels`.
        names: path of each image below it, with forward slashes.
        labels: int32 [N], an index into `classes`; -1 in a dataset without labels.
        classes: sorted names; empty in a dataset without labels.
        splits: "train", "validation" or "test" for each image; None without official splits.
        texts: the text of each example; None without texts.
        groups: the group of each example, whose examples stay in one split; None without groups.
        fingerprint: SHA-256 (hex) of names, labels, splits, texts and groups, and of each file's size and time (CRC in
            an archive).
    """

    title: str
    names: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: tuple[str, ...] | None
    texts: tuple[str, ...] | None
    groups: tuple[str, ...] | None
    fingerprint: str
    _files: tuple[ImageFile, ...] = field(repr=False)
    _archives: dict[Path, zipfile.ZipFile] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file. Several threads may read at a time.

        Raises:
            UserError: the file is gone, damaged in its archive, or longer than any photo.
        """
        file = self._files[index]
        if file.stamp[0] > _MAX_FILE_BYTES:
            raise UserError(f"The image {self.names[index]} has {file.stamp[0]:,} bytes: that is too long for a photo.")
        try:
            if file.member is None:
                return file.path.read_bytes()
            archive = self._archives.get(file.path) or self._archives.setdefault(file.path, zipfile.ZipFile(file.path))
            return archive.read(file.member)
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
            raise UserError(f"The image {self.names[index]} in {file.path} can't be read: {error}.") from error

    def subset(self, indices: np.ndarray) -> "Dataset":
        """Return the dataset of the examples `indices`, int [M], with the same classes."""

        def of(values: Sequence[str] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[index] for index in indices)

        return Dataset(
            title=self.title,
            names=of(self.names) or (),
            labels=self.labels[indices],
            classes=self.classes,
            splits=of(self.splits),
            texts=of(self.texts),
            groups=of(self.groups),
            fingerprint=artifact.fingerprint([self.fingerprint, indices.tolist()]),
            _files=tuple(self._files[index] for index in indices),
            _archives=self._archives,
        )


def open_labeled(path: str | Path, link_roots: Sequence[str | Path] = ()) -> Dataset:
    """Open a dataset with labels.

    Args:
        path: one of
            a directory of class directories, perhaps below `train/`, `validation/` and `test/`, in any case and their
            usual variants (`Training`, `val`, `test_images`);
            a zip archive of such a directory, which is not extracted;
            a directory of zip archives that together make such a directory, e.g. `train.zip` and `test.zip`;
            a CSV file with the columns `image` and `label`, and perhaps `split`, `text` and `group`. Its paths are
            relative to its directory.
        link_roots: directories that links may point into.

    Raises:
        UserError: nothing there, a single class, an image without a class, a class without images, a missing or
            repeated image, an unknown split, classes that differ between splits, a path that leaves its directory.
    """
    path, roots = Path(path), [Path(root) for root in link_roots]
    texts = groups = None
    if path.suffix.lower() == ".csv":
        rows = _read_csv(path, ("image", "label"))
        files = {row["image"]: file_inside(path.parent, row["image"], path, roots) for row in rows}
        labels = {row["image"]: row["label"] for row in rows}
        splits = _csv_splits(rows, path)
        texts, groups = _csv_column(rows, "text"), _csv_column(rows, "group")
        _check_groups(path, groups or {}, splits or {})
    else:
        files, directories = list_images(path, roots)
        labels, splits = _read_layout(path, files, directories)
    classes = sorted(set(labels.values()))
    if len(classes) < 2:
        raise UserError(f"{path} has one class only ({classes[0]}): a classifier needs at least two.")
    if splits:
        _check_splits(path, labels, splits)
    return _dataset(path, files, labels, splits, texts, groups)


def open_unlabeled(path: str | Path) -> Dataset:
    """Open a dataset without labels.

    Args:
        path: a directory (searched through all its directories), a zip archive, a CSV file (its column `image`), or one
            image.

    Raises:
        UserError: nothing there, a missing image, a path that leaves its directory.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        names = [row["image"] for row in _read_csv(path, ("image",))]
        return _dataset(path, {name: file_inside(path.parent, name, path, ()) for name in names})
    if path.is_file() and is_image(path):
        return _dataset(path, {path.name: file_inside(path.parent, path.name, path.parent, ())})
    return _dataset(path, list_images(path, ())[0])


# Values by the name of an image.
_Column = dict[str, str] | None


def _dataset(
    path: Path,
    files: dict[str, ImageFile],
    labels: _Column = None,
    splits: _Column = None,
    texts: _Column = None,
    groups: _Column = None,
) -> Dataset:
    names = tuple(sorted(files))
    odd = [name for name in names if name != name.encode(errors="replace").decode()]
    if odd:
        raise UserError(f"The image {odd[0]!r} in {path} has a name that is no UTF-8: rename it.")
    classes = tuple(sorted(set(labels.values()))) if labels else ()
    index = {name: number for number, name in enumerate(classes)}
    numbers = [index[labels[name]] if labels else -1 for name in names]
    split, text, group = (
        None if column is None else tuple(column[name] for name in names) for column in (splits, texts, groups)
    )
    # Texts and groups follow only where there are any: fingerprints without them are as they were.
    described: list[object] = [names, numbers, classes, split, [files[name].stamp for name in names]]
    described += [[text, group]] if text or group else []
    return Dataset(
        title=_title(Path(os.path.abspath(path))),
        names=names,
        labels=np.array(numbers, np.int32),
        classes=classes,
        splits=split,
        texts=text,
        groups=group,
        fingerprint=artifact.fingerprint(described),
        _files=tuple(files[name] for name in names),
    )


def _title(path: Path) -> str:
    if path.is_dir():
        return path.name
    # CSV files are mostly called labels.csv.
    return f"{path.parent.name}/{path.stem}" if path.suffix.lower() == ".csv" else path.stem


def _read_layout(path: Path, names: Iterable[str], directories: set[str]) -> tuple[dict[str, str], _Column]:
    """Return labels, and official splits if there are any, from names like `train/cat/1.jpg` or `cat/1.jpg`."""
    parts = {name: name.split("/") for name in names}
    tops = {words[0] for words in parts.values()}
    named = {top: split_of(top) for top in sorted(tops)}
    is_split = all(named.values())
    if not is_split:
        _check_no_split(path, named, parts.values())
    for name in set(filter(None, named.values())):
        same = [top for top in named if named[top] == name]
        if is_split and len(same) > 1:
            raise UserError(f"{path} has {' and '.join(same)}, which both name the split {name}: merge them.")
    level = 1 if is_split else 0
    labels = {}
    for name, words in parts.items():
        if len(words) < level + 2:
            raise UserError(f"The image {name} in {path} is in no class directory: move it into one or take it away.")
        labels[name] = words[level]
    classes = {"/".join(words[: level + 1]) for words in parts.values()}
    for directory in sorted(directories - classes):
        words = directory.split("/")
        if len(words) == level + 1 and (not is_split or split_of(words[0])):
            raise UserError(f"The class directory {directory} in {path} holds no images: fill it or delete it.")
    # One split alone is no division into train and test.
    if not is_split or len(tops) == 1:
        return labels, None
    return labels, {name: split_of(words[0]) or "" for name, words in parts.items()}


def _check_no_split(path: Path, named: dict[str, str | None], parts: Collection[list[str]]) -> None:
    """Refuse splits that would become classes: beside other directories, or below the class directories.

    A class may be called train, and hold its images directly. A split holds directories.
    """
    splits = [top for top, split in named.items() if split]
    nested = all(len(words) > 2 for words in parts if words[0] in splits)
    if splits and (nested or {"train", "test"} <= set(named.values())):
        other = next(top for top, split in named.items() if not split)
        raise UserError(
            f"{path} has {other} beside {splits[0]}, which names a split: there may be train, validation and test "
            "only. Rename or move the other one; or, if both are classes, move their images directly into them."
        )
    below = {words[1] if len(words) > 2 else "" for words in parts}
    if all(map(split_of, below)) and len(set(map(split_of, below))) > 1:
        raise UserError(
            f"{path} has {' and '.join(sorted(below))} below its class directories: put them above, as in train/CLASS."
        )


def _check_splits(path: Path, labels: dict[str, str], splits: dict[str, str]) -> None:
    classes: dict[str, set[str]] = {}
    for name, split in splits.items():
        classes.setdefault(split, set()).add(labels[name])
    for split in ("train", "test"):
        if split not in classes:
            raise UserError(f"{path} has images for {' and '.join(sorted(classes))} but none for {split}: add some.")
    for split, of_split in classes.items():
        differ = sorted(of_split ^ classes["train"])
        if differ:
            has, lacks = ("train", split) if differ[0] in classes["train"] else (split, "train")
            raise UserError(f"In {path} the class {differ[0]} has images for {has} but none for {lacks}: add some.")


def _check_groups(path: Path, groups: dict[str, str], splits: dict[str, str]) -> None:
    split_of_group: dict[str, str] = {}
    for name, group in groups.items():
        if not group:
            raise UserError(f"{path} has no group for {name}: fill it in, an image on its own with a group of its own.")
        if splits and split_of_group.setdefault(group, splits[name]) != splits[name]:
            raise UserError(
                f"In {path} the group {group} has examples in {split_of_group[group]} and {splits[name]}: keep a group "
                "in one split."
            )


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a CSV file, with a value in each of `columns`, each image once."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, restval="")
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


def _csv_splits(rows: list[dict[str, str]], path: Path) -> _Column:
    if "split" not in rows[0]:
        return None
    for row in rows:
        if not split_of(row["split"]):
            raise UserError(f"{path} has the split {row['split']!r} for {row['image']}: use train, validation or test.")
    return {row["image"]: split_of(row["split"]) or "" for row in rows}


def _csv_column(rows: list[dict[str, str]], name: str) -> _Column:
    return {row["image"]: row[name] for row in rows} if name in rows[0] else None
