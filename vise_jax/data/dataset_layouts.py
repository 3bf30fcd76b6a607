"""Labels and official splits from the names of directories, like `train/cat/1.jpg` or `cat/1.jpg`."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from vise_jax.errors import UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# Names of directories, zip archives and CSV values, in any case: Train, train_set, test-images, images_val, train2017.
_SPLIT_NAME = re.compile(
    r"(?:(?:images?|imgs?|data)[ _-]*)?"
    r"(?:(?P<train>train(?:ing)?)|(?P<validation>val|valid|validation|dev)|(?P<test>test|testing|eval|evaluation))"
    r"(?:[ _-]*(?:set|split|data|images?|imgs?))?"
    r"(?:[ _-]*(?:19|20)\d\d)?"
)


def split_of(name: str) -> str | None:
    """Return the split that a name stands for: "train", "validation", "test" or None."""
    match = _SPLIT_NAME.fullmatch(name.lower())
    return match.lastgroup if match else None


def read_layout(path: Path, names: Iterable[str], directories: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read the labels and the official splits from the names of images.

    Args:
        path: the dataset, for error messages.
        names: path of each image inside the dataset, with forward slashes.
        directories: paths of all directories inside the dataset.

    Returns:
        The class of each image by name. The split of each image by name, empty without official splits.

    Raises:
        UserError: an image outside of the class directories, a class directory without images, or directories of which
            some are splits and others are not.
    """
    parts = {name: name.split("/") for name in names}
    splits = {top: split_of(top) for top in sorted({words[0] for words in parts.values()})}
    has_splits = all(splits.values())
    if has_splits:
        _check_repeated(path, splits)
    else:
        _check_no_split(path, parts.values(), splits)
    level = 1 if has_splits else 0
    labels = {}
    for name, words in parts.items():
        if len(words) < level + 2:
            raise UserError(f"The image {name} in {path} is in no class directory: move it into one or take it away.")
        labels[name] = words[level]
    classes = {"/".join(words[: level + 1]) for words in parts.values()}
    for directory in sorted(directories - classes):
        words = directory.split("/")
        if len(words) == level + 1 and (not has_splits or split_of(words[0])):
            raise UserError(f"The class directory {directory} in {path} holds no images: fill it or delete it.")
    # One split alone says nothing about what to test on.
    if not has_splits or len(splits) == 1:
        return labels, {}
    return labels, {name: splits[words[0]] or "" for name, words in parts.items()}


def check_splits(path: Path, labels: Mapping[str, str], splits: Mapping[str, str]) -> None:
    """Check official splits.

    Args:
        path: the dataset, for error messages.
        labels: the class of each image by name.
        splits: the split of each image by name.

    Raises:
        UserError: no train or test split, or a class that is in one split but not in another.
    """
    classes: dict[str, set[str]] = {}
    for name, split in splits.items():
        classes.setdefault(split, set()).add(labels[name])
    for split in (TRAIN, TEST):
        if split not in classes:
            raise UserError(f"{path} has images for {' and '.join(sorted(classes))} but none for {split}: add some.")
    for split, names in classes.items():
        different = sorted(names ^ classes[TRAIN])
        if different:
            has, lacks = (TRAIN, split) if different[0] in classes[TRAIN] else (split, TRAIN)
            raise UserError(f"In {path} the class {different[0]} has images for {has} but none for {lacks}: add some.")


def _check_repeated(path: Path, splits: Mapping[str, str | None]) -> None:
    for split in set(splits.values()):
        same = [top for top in splits if splits[top] == split]
        if len(same) > 1:
            raise UserError(f"{path} has {' and '.join(same)}, which both name the split {split}: merge them.")


def _check_no_split(path: Path, parts: Collection[list[str]], splits: Mapping[str, str | None]) -> None:
    """Refuse splits that would become classes: beside other directories, or below the class directories."""
    named = [top for top, split in splits.items() if split]
    nested = all(len(words) > 2 for words in parts if words[0] in named)
    # A class may be called train, as in Pascal VOC. Its images lie in its directory then.
    if named and (nested or {TRAIN, TEST} <= set(splits.values())):
        other = next(top for top, split in splits.items() if not split)
        raise UserError(
            f"{path} has {other} beside {' and '.join(named)}: there may be train, validation and test only. If all of "
            "them are classes, list the images in a CSV file."
        )
    below = {words[1] if len(words) > 2 else "" for words in parts}
    if all(map(split_of, below)) and len(set(map(split_of, below))) > 1:
        raise UserError(
            f"{path} has {' and '.join(sorted(below))} below its class directories: put them above, as in train/CLASS."
        )
