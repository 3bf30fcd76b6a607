"""Every example of an epoch once, the same order each time, and a resume that picks up anywhere."""

import itertools
import shutil

import numpy as np
import pytest

from vise_jax import config as vise_config
from vise_jax.data import pretraining, shards
from vise_jax.errors import UserError


@pytest.fixture
def read(shards_folder):
    """Yield batches of 7 of the 41 examples, with keys of `data` changed."""
    manifest = shards.read_manifest(shards_folder)

    def batches(first_step: int = 0, seed: int = 3, **keys):
        config = vise_config.base().data
        config.update({"image_size": 16, "shuffle_shards": 2, **keys})
        return pretraining.batches(shards_folder, manifest, config, batch_size=7, seed=seed, first_step=first_step)

    return batches


def ids(batches, count: int) -> list[int]:
    return [int(post_id) for batch in itertools.islice(batches, count) for post_id in batch["post_id"]]


def test_every_example_of_an_epoch_comes_once(read):
    order = ids(read(), 18)  # 126 examples: three epochs of 41 and the start of a fourth
    epochs = [order[start : start + 41] for start in range(0, 123, 41)]
    assert all(sorted(epoch) == list(range(41)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_seed_decides_the_order(read):
    assert ids(read(), 6) == ids(read(threads=1), 6)
    assert ids(read(), 6) != ids(read(seed=4), 6)


@pytest.mark.parametrize("first_step", [1, 5, 6, 13])
def test_a_resume_gives_the_same_batches(read, first_step):
    undisturbed = list(itertools.islice(read(), 15))[first_step:]
    for expected, found in zip(undisturbed, read(first_step=first_step), strict=False):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_labels_are_those_of_the_example(read):
    batch = next(read())
    assert {name: value.dtype.str[1:] for name, value in batch.items() if name != "post_id"} == {
        "images": "u1",
        "comment_labels": "i4",
        "comment_weights": "f4",
        "reaction_label": "i4",
    }
    assert batch["images"].shape == (7, 16, 16, 3)
    for row, number in enumerate(map(int, batch["post_id"])):
        labels = [*range(number % 4)]
        padding = 3 - len(labels)
        assert batch["comment_labels"][row].tolist() == labels + [-1] * padding
        assert batch["comment_weights"][row].tolist() == [1.0] * len(labels) + [0.0] * padding
        assert batch["reaction_label"][row] == number % 3 - 1


def test_the_crops_of_an_example_differ_between_epochs(read):
    seen: dict[bytes, list[np.ndarray]] = {}
    for batch in itertools.islice(read(), 12):
        for post_id, image in zip(batch["post_id"], batch["images"], strict=True):
            seen.setdefault(post_id, []).append(image)
    twice = [images for images in seen.values() if len(images) > 1]
    assert len(twice) > 30
    assert not any(np.array_equal(images[0], images[1]) for images in twice)


def test_a_damaged_record_is_said_in_a_sentence(shards_folder, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(shards_folder, folder)
    shard = next(folder.glob("*.tfrecord"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    manifest, config = shards.read_manifest(folder), vise_config.base().data
    batches = pretraining.batches(folder, manifest, config, batch_size=7, seed=3)
    with pytest.raises(UserError, match=r"can't be read \(corrupted record"):
        list(itertools.islice(batches, 6))


def test_groups_hold_every_record_once_whatever_their_size():
    counts = [3, 1, 4, 1, 5]
    for size in (1, 2, 5, 9):
        groups = pretraining.epoch_groups(counts, size, seed=0, epoch=0)
        assert sorted(np.concatenate([group for group, _ in groups])) == list(range(5))
        for group, order in groups:
            assert len(group) <= size
            assert sorted(order) == list(range(sum(counts[shard] for shard in group)))


def test_the_order_is_pinned():
    # Written down once: another NumPy or another platform must not change what a seed means.
    groups = pretraining.epoch_groups([3, 1, 4, 1, 5], 2, seed=7, epoch=2)
    assert [(group.tolist(), order.tolist()) for group, order in groups] == [
        ([0, 3], [0, 3, 1, 2]),
        ([1, 4], [4, 5, 2, 3, 1, 0]),
        ([2], [1, 3, 2, 0]),
    ]
