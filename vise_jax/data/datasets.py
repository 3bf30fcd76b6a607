"""Datasets of downstream tasks: images with labels, splits, texts and groups."""

import contextlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vise_jax import artifact
from vise_jax.data import dataset_layouts, dataset_tables
from vise_jax.data.listing import (
    LIMITS,
    MISSING,
    UNREADABLE_ZIP,
    ImageFile,
    Limits,
    file_inside,
    is_image,
    list_images,
)
from vise_jax.errors import UserError


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
        limits: bounds of what is read.
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
    limits: Limits = field(default=LIMITS, repr=False)
    _archives: dict[Path, zipfile.ZipFile] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file. Several threads may read at a time.

        Raises:
            UserError: the file is gone, damaged in its archive, or longer than the limit.
        """
        file = self._files[index]
        if file.stamp == MISSING:
            raise UserError(f"The image {self.names[index]} in {self.title} is missing: restore it or drop it.")
        if file.stamp[0] > self.limits.image_bytes:
            raise UserError(
                f"The image {self.names[index]} has {file.stamp[0]:,} bytes, more than {self.limits.image_bytes:,}: "
                "make it smaller, or raise the config key max_image_bytes."
            )
        try:
            if file.offset is not None:
                with open(file.path, "rb") as records:
                    return os.pread(records.fileno(), file.stamp[0], file.offset)
            if file.member is None:
                return file.path.read_bytes()
            archive = self._archives.get(file.path) or self._archives.setdefault(file.path, zipfile.ZipFile(file.path))
            return archive.read(file.member)
        except UNREADABLE_ZIP as error:
            raise UserError(
                f"The image {self.names[index]} in {file.path} can't be read ({error}): restore it or drop it."
            ) from error

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
            limits=self.limits,
            _archives=self._archives,
        )


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Yield the path of a dataset on disk: `path`, or that of a copy of a dataset in an object store.

    With a CSV file its directory is copied, which holds the images.

    Raises:
        UserError: see `artifact.local_copy`.
    """
    if artifact.is_remote(path) and path.suffix.lower() == ".csv":
        with artifact.local_copy(path.parent) as directory:
            yield directory / path.name
        return
    with artifact.local_copy(path) as copy:
        yield copy


def open_labeled(path: str | Path, link_roots: Sequence[str | Path] = (), limits: Limits = LIMITS) -> Dataset:
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
        limits: bounds of what is read.

    Raises:
        UserError: nothing there, too many entries of an archive, a single class, an image without a class, a class
            without images, a repeated image, an unknown split, classes that differ between splits, a path that leaves
            its directory. An image of a CSV file that is missing is an error when it is read.
    """
    path, roots = Path(path), [Path(root) for root in link_roots]
    texts = groups = None
    if path.suffix.lower() == ".csv":
        rows = dataset_tables.read_csv(path, ("image", "label"))
        files = {row["image"]: file_inside(path.parent, row["image"], path, roots, must_exist=False) for row in rows}
        labels = {row["image"]: row["label"] for row in rows}
        splits = dataset_tables.read_splits(rows, path)
        texts, groups = dataset_tables.read_column(rows, "text"), dataset_tables.read_column(rows, "group")
        dataset_layouts.check_groups(path, groups or {}, splits or {})
    else:
        files, directories = list_images(path, roots, limits)
        labels, splits = dataset_layouts.read_layout(path, files, directories)
    return build(path, files, labels, splits, texts, groups, limits=limits)


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
        names = [row["image"] for row in dataset_tables.read_csv(path, ("image",))]
        return build(path, {name: file_inside(path.parent, name, path, ()) for name in names})
    if path.is_file() and is_image(path):
        return build(path, {path.name: file_inside(path.parent, path.name, path.parent, ())})
    return build(path, list_images(path, ())[0])


# Values by the name of an image.
_Column = dict[str, str] | None


def build(
    path: Path,
    files: dict[str, ImageFile],
    labels: _Column = None,
    splits: _Column = None,
    texts: _Column = None,
    groups: _Column = None,
    *,
    limits: Limits = LIMITS,
) -> Dataset:
    """Return the dataset of some files, sorted by name.

    Args:
        path: gives the title.
        files: by name.
        labels: class by name; None for a dataset without labels.
        splits: split by name; None without official splits.
        texts: text by name; None without texts.
        groups: group by name; None without groups.
        limits: bounds of what is read.

    Raises:
        UserError: one class only, a class that one of the splits lacks, or a name that is no UTF-8.
    """
    if labels is not None:
        if len(set(labels.values())) < 2:
            only = next(iter(labels.values()), "none")
            raise UserError(f"{path} has one class only ({only}): give at least two.")
        if splits:
            dataset_layouts.check_splits(path, labels, splits)
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
        limits=limits,
    )


def _title(path: Path) -> str:
    if path.is_dir():
        return path.name
    # CSV files are mostly called labels.csv.
    return f"{path.parent.name}/{path.stem}" if path.suffix.lower() == ".csv" else path.stem
