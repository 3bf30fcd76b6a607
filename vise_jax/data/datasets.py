"""Datasets of downstream tasks: images with labels, official splits, text and groups."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vise_jax import artifact
from vise_jax.data import dataset_layouts, dataset_tables, image_files
from vise_jax.data.image_files import ImageFile
from vise_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """N examples, sorted by name. Datasets are equal only if they are the same object.

    Attributes:
        title: name of the directory or archive; of a CSV file, with its directory: `photos/labels`.
        names: path of each image inside the dataset, with forward slashes.
        labels: int32 [N], indices into `classes`; -1 in a dataset without labels.
        classes: sorted class names; empty in a dataset without labels.
        fingerprint: SHA-256 (hex) of names, labels, splits, text, groups, and of each file's size and modification time
            (CRC in an archive).
        files: where the encoded image of each example is; `read` returns it.
        splits: "train", "validation" or "test" for each example; None without official splits.
        text: one string for each example; None without text.
        group: name of each example's group; None without groups. Examples of one group stay in one split.
    """

    title: str
    names: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str
    files: tuple[ImageFile, ...] = dataclasses.field(repr=False)
    splits: tuple[str, ...] | None = None
    text: tuple[str, ...] | None = None
    group: tuple[str, ...] | None = None
    _archives: dict[Path, zipfile.ZipFile] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """Return the encoded image of an example. Several threads may read at a time.

        Raises:
            UserError: the file is gone, damaged in its archive, or longer than any photo.
        """
        try:
            return self.files[index].read(self._archives)
        except UserError as error:
            raise UserError(f"The image {self.names[index]} of {self.title} can't be used: {error}") from error


def open_labeled(path: str | Path, link_roots: Sequence[str] = ()) -> Dataset:
    """Open a dataset with labels.

    Args:
        path: one of
            a directory of class directories, perhaps below `train/`, `test/` and `validation/` (see
            `dataset_layouts.split_of` for other names);
            a zip archive of such a directory, which is not extracted;
            a directory of zip archives that together make such a directory, e.g. `train.zip` and `test.zip`;
            a CSV file with the columns `image` and `label`, and perhaps `split`, `text` and `group`. Paths are relative
            to its directory.
        link_roots: directories that symbolic links in the dataset may point into.

    Raises:
        UserError: nothing there, a single class, an image without a class, a class without images, a missing or
            repeated image, an unknown split, classes that differ between splits, a missing group or one in two splits,
            a path that leaves its directory.
    """
    path = Path(path)
    text: Mapping[str, str] = {}
    group: Mapping[str, str] = {}
    if path.suffix.lower() == ".csv":
        rows = dataset_tables.read_csv(path, ("image", "label"))
        files = _files_of(path, rows, link_roots)
        labels, splits = dataset_tables.column(rows, "label"), dataset_tables.read_splits(rows, path)
        text, group = dataset_tables.column(rows, "text"), dataset_tables.column(rows, "group")
    else:
        files, directories = image_files.list_images(path, link_roots)
        labels, splits = dataset_layouts.read_layout(path, files, directories)
    if len(set(labels.values())) < 2:
        raise UserError(f"{path} has one class only ({next(iter(labels.values()))}): a classifier needs at least two.")
    if splits:
        dataset_layouts.check_splits(path, labels, splits)
    _check_groups(path, group, splits)
    return _dataset(path, files, labels, splits, text, group)


def open_unlabeled(path: str | Path, link_roots: Sequence[str] = ()) -> Dataset:
    """Open a dataset without labels.

    Args:
        path: a directory (searched through all its directories), a zip archive, a CSV file (its column `image`), or one
            image.
        link_roots: directories that symbolic links in the dataset may point into.

    Raises:
        UserError: nothing there, a missing image, a path that leaves its directory.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        return _dataset(path, _files_of(path, dataset_tables.read_csv(path, ("image",)), link_roots))
    if image_files.is_image_file(path):
        return _dataset(path, {path.name: image_files.file_inside(path.parent, path.name, path.parent, link_roots)})
    return _dataset(path, image_files.list_images(path, link_roots)[0])


def _files_of(path: Path, rows: list[dataset_tables.Row], link_roots: Sequence[str]) -> dict[str, ImageFile]:
    return {row["image"]: image_files.file_inside(path.parent, row["image"], path, link_roots) for row in rows}


def _check_groups(path: Path, group: Mapping[str, str], splits: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for name, value in group.items():
        if not value:
            raise UserError(f"{path} has no group for {name}: fill it in, an image on its own with a name of its own.")
        split = first.setdefault(value, splits.get(name, ""))
        if split != splits.get(name, ""):
            raise UserError(f"{path} has the group {value!r} in both {split} and {splits[name]}: keep it in one split.")


def _dataset(
    path: Path,
    files: Mapping[str, ImageFile],
    labels: Mapping[str, str] | None = None,
    splits: Mapping[str, str] | None = None,
    text: Mapping[str, str] | None = None,
    group: Mapping[str, str] | None = None,
) -> Dataset:
    names = tuple(sorted(files))
    for name in names:
        if name != name.encode(errors="replace").decode():
            raise UserError(f"The image {name!r} in {path} has a name that is no UTF-8: rename it.")

    def ordered(values: Mapping[str, str] | None) -> tuple[str, ...] | None:
        return tuple(values[name] for name in names) if values else None

    classes = tuple(sorted(set(labels.values()))) if labels else ()
    index = {name: number for number, name in enumerate(classes)}
    numbers = [index[labels[name]] if labels else -1 for name in names]
    stamps = [files[name].stamp for name in names]
    content: list[object] = [names, numbers, classes, ordered(splits), stamps]
    if text or group:
        content.append([ordered(text), ordered(group)])
    return Dataset(
        title=_title(Path(os.path.abspath(path))),
        names=names,
        labels=np.array(numbers, np.int32),
        classes=classes,
        fingerprint=artifact.fingerprint(content),
        files=tuple(files[name] for name in names),
        splits=ordered(splits),
        text=ordered(text),
        group=ordered(group),
    )


def _title(path: Path) -> str:
    if path.is_dir():
        return path.name
    # CSV files are mostly called labels.csv.
    return f"{path.parent.name}/{path.stem}" if path.suffix.lower() == ".csv" else path.stem
