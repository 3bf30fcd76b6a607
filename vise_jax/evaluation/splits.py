"""Divide a dataset into examples to train on, to select settings on, and to test on."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from ml_collections import ConfigDict

from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Split:
    """One division of a dataset: disjoint sorted indices, int64 each, and the seed that drew them."""

    seed: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class SplitSettings:
    """How a dataset is divided; the config keys of the same names have the defaults.

    Attributes:
        seed: of the first division; number i has the seed `seed` + i.
        splits: number of random divisions, where there are no official splits.
        train_fraction: fraction of the examples to train on, likewise.
        validation_fraction: fraction to select on, likewise.
        held_out_fraction: fraction of the official train split to select on, where there is no official validation.
    """

    seed: int
    splits: int
    train_fraction: float
    validation_fraction: float
    held_out_fraction: float

    @classmethod
    def of(cls, config: ConfigDict) -> "SplitSettings":
        """Return the settings of a config made by `vise_jax.config.evaluation()`."""
        return cls(*(config[field.name] for field in fields(cls)))


def official_or_random(dataset: Dataset, settings: SplitSettings) -> list[Split]:
    """Divide a dataset by its official splits, or several times at random.

    With official train and test (Sec. 4.3, Politics): one division; without an official validation,
    `held_out_fraction` of train takes its place. Otherwise (Sec. 4.3, UnbiasedEmotion): `splits` random divisions,
    stratified by class; a class is always in train and in test. Examples of one group stay in one part; divisions with
    groups are not stratified.

    Raises:
        UserError: a class with too few examples to be in train and in test; no example left for validation.
    """
    if dataset.splits is None:
        divided = [_random(dataset, settings.seed + number, settings) for number in range(settings.splits)]
    else:
        divided = [_official(dataset, settings)]
    for split in divided:
        _check(dataset, split)
    return divided


def _check(dataset: Dataset, split: Split) -> None:
    for part in ("train", "test"):
        missing = np.setdiff1d(np.arange(len(dataset.classes)), dataset.labels[getattr(split, part)])
        if len(missing):
            raise UserError(
                f"The class {dataset.classes[missing[0]]} of {dataset.title} has no image in {part} (seed "
                f"{split.seed}): add images or drop the class."
            )
    if not len(split.validation):
        raise UserError(f"The classes of {dataset.title} are too small to hold out images for validation: add images.")


def _random(dataset: Dataset, seed: int, settings: SplitSettings) -> Split:
    def ends(count: int) -> tuple[int, int]:
        train = min(max(_round(settings.train_fraction * count), 1), count - 1)
        both = settings.train_fraction + settings.validation_fraction
        return train, min(max(_round(both * count), train), count - 1)

    train, validation, test = _divide(dataset, np.arange(len(dataset)), seed, ends, at_least=2)
    return Split(seed, train, validation, test)


def _official(dataset: Dataset, settings: SplitSettings) -> Split:
    names = np.array(dataset.splits)
    train, validation, test = (np.flatnonzero(names == name) for name in ("train", "validation", "test"))
    if not len(validation):

        def ends(count: int) -> tuple[int, int]:
            return max(count - _round(settings.held_out_fraction * count), 1), count

        train, validation, _ = _divide(dataset, train, settings.seed, ends, at_least=1)
    return Split(settings.seed, train, validation, test)


def _divide(
    dataset: Dataset, indices: np.ndarray, seed: int, ends: Callable[[int], tuple[int, int]], at_least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide `indices` at random into three sorted parts, which end at ends(n) and n of the n examples of a class."""
    if dataset.groups is not None:
        return _divide_groups(dataset, indices, seed, ends)
    shuffled = indices[_permutation(len(indices), seed)]
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for number, name in enumerate(dataset.classes):
        members = shuffled[dataset.labels[shuffled] == number]
        if len(members) < at_least:
            raise UserError(
                f"The class {name} of {dataset.title} has {len(members)} image, but needs one to train and one to test"
                " on: add images or drop the class."
            )
        for part, piece in zip(parts, np.split(members, ends(len(members))), strict=True):
            part.append(piece)
    first, second, third = (np.sort(np.concatenate(part)) for part in parts)
    return first, second, third


def _divide_groups(
    dataset: Dataset, indices: np.ndarray, seed: int, ends: Callable[[int], tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide whole groups at random: a group goes into the part in which its middle example falls."""
    names, group = np.unique(np.array(dataset.groups)[indices], return_inverse=True)
    order = _permutation(len(names), seed)
    sizes = np.bincount(group)[order]
    middle = np.cumsum(sizes) - sizes / 2
    part = np.empty(len(names), np.int64)
    part[order] = np.searchsorted(ends(len(indices)), middle, side="right")
    first, second, third = (indices[part[group] == number] for number in range(3))
    return first, second, third


def _permutation(size: int, seed: int) -> np.ndarray:
    # Raw bits and a stable sort: NumPy keeps this generator's bits stable across versions, but not its shuffle.
    return np.argsort(np.random.Philox(key=seed).random_raw(size), kind="stable")


def _round(value: float) -> int:
    return int(np.floor(value + 0.5))
