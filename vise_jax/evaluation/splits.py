"""Which images train a classifier, choose its penalty, and test it."""

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from vise_jax.data.datasets import ImageSet
from vise_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One way to divide a set; the parts are sorted int64 indices and don't overlap."""

    seed: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def make(images: ImageSet, config: ConfigDict) -> list[Split]:
    """Divide a set as its official splits say, or several times at random.

    With official train and test (Sec. 4.3, Politics): one split; without an official validation, `held_out_fraction`
    of train takes its place. Without official splits (Sec. 4.3, UnbiasedEmotion): `splits` of them, in which
    `train_fraction` trains and `validation_fraction` chooses. Drawn class by class, so that all parts have the same mix
    of classes; a class is always in train and in test. Split number i has the seed `config.seed` + i.

    Raises:
        UserError: a class with too few images to be in train and in test; no image left for validation.
    """
    if images.splits is None:
        made = [_random(images, config.seed + number, config) for number in range(config.splits)]
    else:
        made = [_official(images, config.seed, config.held_out_fraction)]
    if not len(made[0].validation):
        raise UserError(f"The classes of {images.title} are too small to hold out images for validation: add images.")
    return made


def _random(images: ImageSet, seed: int, config: ConfigDict) -> Split:
    def ends(count: int) -> tuple[int, int]:
        train = min(max(_round(config.train_fraction * count), 1), count - 1)
        return train, min(max(_round((config.train_fraction + config.validation_fraction) * count), train), count - 1)

    everything = np.arange(len(images))
    train, validation, test = _divide(images, everything, seed, ends, at_least=2)
    return Split(seed, train, validation, test)


def _official(images: ImageSet, seed: int, held_out_fraction: float) -> Split:
    names = np.array(images.splits)
    train, validation, test = (np.flatnonzero(names == name) for name in ("train", "validation", "test"))
    if not len(validation):

        def ends(count: int) -> tuple[int, int]:
            return max(count - _round(held_out_fraction * count), 1), count

        train, validation, _ = _divide(images, train, seed, ends, at_least=1)
    return Split(seed, train, validation, test)


def _divide(
    images: ImageSet, indices: np.ndarray, seed: int, ends: Callable[[int], tuple[int, int]], at_least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three sorted parts of `indices`; of a class of n images they end at ends(n) and n, in a random order."""
    # Raw bits and a stable sort: NumPy promises this generator's bits for good, but not how it shuffles with them.
    order = np.argsort(np.random.Philox(key=seed).random_raw(len(indices)), kind="stable")
    shuffled = indices[order]
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for number, name in enumerate(images.classes):
        members = shuffled[images.labels[shuffled] == number]
        if len(members) < at_least:
            raise UserError(
                f"The class {name} of {images.title} has {len(members)} image, but needs one to train and one to test"
                " on: add images or drop the class."
            )
        for part, piece in zip(parts, np.split(members, ends(len(members))), strict=True):
            part.append(piece)
    first, second, third = (np.sort(np.concatenate(part)) for part in parts)
    return first, second, third


def _round(value: float) -> int:
    return int(np.floor(value + 0.5))
