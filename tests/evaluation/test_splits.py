import hashlib

import numpy as np
import pytest

from vise_jax import config as vise_config
from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation.splits import SplitSettings, official_or_random


def image_set(labels: list[int], official: list[str] | None = None, groups: list[str] | None = None) -> Dataset:
    names = tuple(f"{number:04d}.jpg" for number in range(len(labels)))
    classes = tuple("abcdefgh"[: max(labels) + 1])
    return Dataset(
        title="set",
        names=names,
        labels=np.array(labels, np.int32),
        classes=classes,
        splits=tuple(official) if official else None,
        texts=None,
        groups=tuple(groups) if groups else None,
        fingerprint="",
        _files=(),
    )


def configured(**changes) -> SplitSettings:
    names = ("seed", "splits", "train_fraction", "validation_fraction", "held_out_fraction")
    defaults = vise_config.evaluation()
    return SplitSettings(**{name: defaults[name] for name in names} | changes)


LABELS = [0] * 100 + [1] * 50 + [2] * 10


def test_random_splits_are_stratified_and_disjoint():
    divided = official_or_random(image_set(LABELS), configured(splits=3, seed=7))
    assert [split.seed for split in divided] == [7, 8, 9]
    for split in divided:
        everything = np.concatenate([split.train, split.validation, split.test])
        np.testing.assert_array_equal(np.sort(everything), np.arange(160))
        labels = np.array(LABELS)
        assert np.bincount(labels[split.train]).tolist() == [70, 35, 7]
        assert np.bincount(labels[split.validation]).tolist() == [10, 5, 1]
        assert np.bincount(labels[split.test]).tolist() == [20, 10, 2]
    assert not np.array_equal(divided[0].train, divided[1].train)


def test_a_seed_gives_the_same_split_on_every_machine():
    split = official_or_random(image_set(LABELS), configured(splits=1, seed=0))[0]
    digest = hashlib.sha256(split.train.astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("75c80e0ea865")


def test_every_image_is_tested_on_sooner_or_later():
    divided = official_or_random(image_set(LABELS), configured(splits=60))
    assert set(np.concatenate([split.test for split in divided])) == set(range(160))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_tiny_class_is_in_train_and_in_test(count):
    labels = [0] * 40 + [1] * count
    for split in official_or_random(image_set(labels), configured(splits=5)):
        assert (split.train >= 40).any()
        assert (split.test >= 40).any()


def test_a_class_of_one_image_is_named():
    with pytest.raises(UserError, match="The class b of set has 1 image,"):
        official_or_random(image_set([0] * 40 + [1]), configured())


def test_nothing_left_for_validation():
    with pytest.raises(UserError, match="too small to hold out"):
        official_or_random(image_set([0, 0, 1, 1]), configured())


def test_official_splits_are_kept():
    official = (["train"] * 80 + ["validation"] * 10 + ["test"] * 10) + (["test"] * 25 + ["train"] * 25)
    only = official_or_random(image_set(LABELS[:150], official), configured(splits=5))
    assert len(only) == 1
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(only[0], part), np.flatnonzero(np.array(official) == part))


def test_validation_is_held_out_of_train():
    official = ["train"] * 90 + ["test"] * 10 + ["train"] * 40 + ["test"] * 10
    images = image_set(LABELS[:150], official)
    only = official_or_random(images, configured(held_out_fraction=0.2))[0]
    np.testing.assert_array_equal(only.test, [*range(90, 100), *range(140, 150)])
    np.testing.assert_array_equal(np.sort([*only.train, *only.validation]), [*range(90), *range(100, 140)])
    assert np.bincount(images.labels[only.validation]).tolist() == [18, 8]
    other = official_or_random(images, configured(held_out_fraction=0.2, seed=1))[0]
    assert not np.array_equal(only.validation, other.validation)


def test_a_group_stays_in_one_part():
    draw = np.random.default_rng(0)
    groups = [f"page {number}" for number in draw.integers(0, 40, 400)]
    images = image_set(draw.integers(0, 2, 400).tolist(), groups=groups)
    for split in official_or_random(images, configured(splits=5)):
        parts = [{groups[index] for index in part} for part in (split.train, split.validation, split.test)]
        assert sum(map(len, parts)) == len(set(groups)) == 40
        assert 240 < len(split.train) < 320
        assert len(split.validation) > 10
        assert sorted(np.concatenate([split.train, split.validation, split.test])) == list(range(400))
    with pytest.raises(UserError, match="The class b of set has no image in train"):
        official_or_random(image_set([0] * 20 + [1] * 2, groups=["a"] * 20 + ["b"] * 2), configured(splits=9))


def test_validation_is_held_out_of_train_by_group():
    official = ["train"] * 90 + ["test"] * 10
    groups = [str(number // 6) for number in range(90)] + ["test page"] * 10
    only = official_or_random(image_set([0, 1] * 50, official, groups), configured(held_out_fraction=0.2))[0]
    assert not {groups[index] for index in only.validation} & {groups[index] for index in only.train}
    assert 12 <= len(only.validation) <= 24
