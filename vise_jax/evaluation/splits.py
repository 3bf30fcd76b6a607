"""Split policies: which examples train a classifier, select its setting, and test it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One division of a dataset into disjoint parts.

    Attributes:
        seed: seed of the random draw.
        train: int64 [n], sorted indices of examples.
        validation: int64 [m], likewise.
        test: int64 [k], likewise.
    """

    seed: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def sizes(self) -> dict[str, int]:
        """Return the number of examples of each part."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    def without(self, indices: np.ndarray) -> "Split":
        """Return the split without some examples, int64 [n]."""
        train, validation, test = (np.setdiff1d(part, indices) for part in (self.train, self.validation, self.test))
        return Split(self.seed, train, validation, test)


class SplitSettings(NamedTuple):
    """How to draw splits; see the keys of the same names in `vise_jax.config.EVALUATION`."""

    splits: int
    train_fraction: float
    validation_fraction: float
    held_out_fraction: float
    seed: int

    @classmethod
    def of(cls, config: ConfigDict) -> "SplitSettings":
        """Return the settings of an evaluation config."""
        return cls(*(config[key] for key in cls._fields))


def official_or_random(dataset: Dataset, settings: SplitSettings) -> list[Split]:
    """Split a dataset by its official splits, or several times at random.

    With official train and test splits (Sec. 4.3, Politics) there is one split. Without an official validation split,
    `held_out_fraction` of train takes its place. Without official splits (Sec. 4.3, UnbiasedEmotion) there are
    `splits`, the i-th with the seed `seed` + i. Random draws are stratified by class. Examples of one group stay
    together.

    Args:
        dataset: the dataset, with labels.
        settings: how to draw.

    Raises:
        UserError: a class that is missing in train or test, or an empty validation split.
    """
    if dataset.splits is None:
        splits = [_random(dataset, settings.seed + number, settings) for number in range(settings.splits)]
    else:
        splits = [_official(dataset, settings)]
    for split in splits:
        check(dataset, split)
    return splits


def check(dataset: Dataset, split: Split) -> None:
    """Check that a split can be evaluated on.

    Raises:
        UserError: a class that is missing in train or test, or an empty validation split.
    """
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
        end = _round((settings.train_fraction + settings.validation_fraction) * count)
        return train, min(max(end, train), count - 1)

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
    """Divide sorted `indices` at random into three sorted parts, class by class.

    A group counts as one example of the class of its first example.

    Args:
        dataset: the dataset.
        indices: int64 [n], sorted.
        seed: seed of the draw.
        ends: from the size of a class to the ends of its first and second part.
        at_least: minimum size of a class.
    """
    # The first example of each example's group; without groups the example itself.
    first = indices
    if dataset.group is not None:
        _, positions, inverse = np.unique(np.array(dataset.group)[indices], return_index=True, return_inverse=True)
        first = indices[positions[inverse]]
    drawn = np.unique(first)
    # Raw bits and a stable sort: NumPy keeps this generator's bits stable across versions, but not its shuffle.
    shuffled = drawn[np.argsort(np.random.Philox(key=seed).random_raw(len(drawn)), kind="stable")]
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for number, name in enumerate(dataset.classes):
        members = shuffled[dataset.labels[shuffled] == number]
        if len(members) < at_least and dataset.group is None:
            raise UserError(
                f"The class {name} of {dataset.title} has {len(members)} image, but needs one to train and one to test"
                " on: add images or drop the class."
            )
        for part, piece in zip(parts, np.split(members, ends(len(members))), strict=True):
            part.append(piece)
    train, validation, test = (indices[np.isin(first, np.concatenate(part))] for part in parts)
    return train, validation, test


def _round(value: float) -> int:
    return int(np.floor(value + 0.5))
