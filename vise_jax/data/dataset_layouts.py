"""Labels and official splits from the names of directories, like `train/cat/1.jpg` or `cat/1.jpg`."""

from collections.abc import Collection, Iterable
from pathlib import Path

from vise_jax.data.listing import split_of
from vise_jax.errors import UserError


def read_layout(
    path: Path, names: Iterable[str], directories: set[str]
) -> tuple[dict[str, str], dict[str, str] | None]:
    """Read labels and official splits from the names of images.

    Args:
        path: the dataset, for error messages.
        names: path of each image inside the dataset, with forward slashes.
        directories: paths of all directories inside the dataset.

    Returns:
        The class of each image by name; and the split of each image by name, None without official splits.

    Raises:
        UserError: an image outside of the class directories, a class directory without images, or directories of which
            some are splits and others are not.
    """
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


def check_splits(path: Path, labels: dict[str, str], splits: dict[str, str]) -> None:
    """Check official splits; arguments map image names.

    Raises:
        UserError: no train or test split, or a class that is in one split but not in another.
    """
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


def check_groups(path: Path, groups: dict[str, str], splits: dict[str, str]) -> None:
    """Check groups; arguments map image names, and `splits` is empty without official splits.

    Raises:
        UserError: an image without a group, or a group in two splits.
    """
    split_of_group: dict[str, str] = {}
    for name, group in groups.items():
        if not group:
            raise UserError(f"{path} has no group for {name}: fill it in, an image on its own with a group of its own.")
        if splits and split_of_group.setdefault(group, splits[name]) != splits[name]:
            raise UserError(
                f"In {path} the group {group} has examples in {split_of_group[group]} and {splits[name]}: keep a group "
                "in one split."
            )
