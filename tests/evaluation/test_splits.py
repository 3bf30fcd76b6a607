import hashlib

import numpy as np
import pytest

from vise_jax import config as vise_config
from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation import splits


def make_dataset(labels: list[int], official: list[str] | None = None, group: list[str] | None = None) -> Dataset:
    return Dataset(
        title="set",
        names=tuple(f"{number:04d}.jpg" for number in range(len(labels))),
        labels=np.array(labels, np.int32),
        classes=tuple("abcdefgh"[: max(labels) + 1]),
        fingerprint="",
        files=(),
        splits=tuple(official) if official else None,
        group=tuple(group) if group else None,
    )


def split(dataset: Dataset, **changes) -> list[splits.Split]:
    config = vise_config.evaluation()
    config.update(changes)
    return splits.official_or_random(dataset, splits.SplitSettings.of(config))


LABELS = [0] * 100 + [1] * 50 + [2] * 10


def test_random_splits_are_stratified_and_disjoint():
    random = split(make_dataset(LABELS), splits=3, seed=7)
    assert [division.seed for division in random] == [7, 8, 9]
    for division in random:
        everything = np.concatenate([division.train, division.validation, division.test])
        np.testing.assert_array_equal(np.sort(everything), np.arange(160))
        labels = np.array(LABELS)
        assert np.bincount(labels[division.train]).tolist() == [70, 35, 7]
        assert np.bincount(labels[division.validation]).tolist() == [10, 5, 1]
        assert np.bincount(labels[division.test]).tolist() == [20, 10, 2]
    assert not np.array_equal(random[0].train, random[1].train)


def test_a_seed_gives_the_same_split_on_every_machine():
    only = split(make_dataset(LABELS), splits=1, seed=0)[0]
    digest = hashlib.sha256(only.train.astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("75c80e0ea865")


def test_each_example_is_in_the_test_part_of_some_split():
    random = split(make_dataset(LABELS), splits=60)
    assert set(np.concatenate([division.test for division in random])) == set(range(160))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_tiny_class_is_in_train_and_in_test(count):
    labels = [0] * 40 + [1] * count
    for division in split(make_dataset(labels), splits=5):
        assert (division.train >= 40).any()
        assert (division.test >= 40).any()


def test_a_class_of_one_image_is_named():
    with pytest.raises(UserError, match="The class b of set has 1 image,"):
        split(make_dataset([0] * 40 + [1]))


def test_nothing_left_for_validation():
    with pytest.raises(UserError, match="too small to hold out"):
        split(make_dataset([0, 0, 1, 1]))


def test_official_splits_are_kept():
    official = (["train"] * 80 + ["validation"] * 10 + ["test"] * 10) + (["test"] * 25 + ["train"] * 25)
    only = split(make_dataset(LABELS[:150], official), splits=5)
    assert len(only) == 1
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(only[0], part), np.flatnonzero(np.array(official) == part))


def test_validation_is_held_out_of_train():
    official = ["train"] * 90 + ["test"] * 10 + ["train"] * 40 + ["test"] * 10
    images = make_dataset(LABELS[:150], official)
    only = split(images, held_out_fraction=0.2)[0]
    np.testing.assert_array_equal(only.test, [*range(90, 100), *range(140, 150)])
    np.testing.assert_array_equal(np.sort([*only.train, *only.validation]), [*range(90), *range(100, 140)])
    assert np.bincount(images.labels[only.validation]).tolist() == [18, 8]
    other = split(images, held_out_fraction=0.2, seed=1)[0]
    assert not np.array_equal(only.validation, other.validation)


GROUPS = [f"g{number // 4}" for number in range(160)]


def test_examples_of_a_group_stay_together():
    names = np.array(GROUPS)
    for division in split(make_dataset(LABELS, group=GROUPS), splits=5):
        parts = [set(names[part]) for part in (division.train, division.validation, division.test)]
        assert set().union(*parts) == set(GROUPS)
        assert sum(map(len, parts)) == len(set(GROUPS))
        assert sum(division.sizes().values()) == 160
        assert abs(len(division.train) - 112) <= 8


def test_a_validation_part_held_out_of_train_keeps_groups_together():
    official = ["train"] * 140 + ["test"] * 20
    division = split(make_dataset(list(range(2)) * 80, official, GROUPS), held_out_fraction=0.2)[0]
    names = np.array(GROUPS)
    assert not set(names[division.train]) & set(names[division.validation])
    assert division.sizes() == {"train": 112, "validation": 28, "test": 20}


def test_groups_of_one_example_change_nothing():
    alone = split(make_dataset(LABELS, group=[f"{number:04d}" for number in range(160)]))
    for division, other in zip(alone, split(make_dataset(LABELS)), strict=True):
        np.testing.assert_array_equal(division.train, other.train)
        np.testing.assert_array_equal(division.test, other.test)


def test_a_class_of_one_group_is_refused():
    with pytest.raises(UserError, match="The class c of set has no image in train"):
        split(make_dataset(LABELS, group=[*GROUPS[:150], *["last"] * 10]))


def test_a_split_without_some_examples():
    division = split(make_dataset(LABELS), splits=1)[0]
    rest = division.without(np.array([division.train[0], division.test[-1]]))
    np.testing.assert_array_equal(rest.train, division.train[1:])
    np.testing.assert_array_equal(rest.validation, division.validation)
    np.testing.assert_array_equal(rest.test, division.test[:-1])
