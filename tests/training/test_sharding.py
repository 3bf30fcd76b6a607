"""How a batch is divided, and what can't be."""

import jax
import numpy as np
import pytest

from vise_jax.errors import UserError
from vise_jax.training import sharding


def layout(devices: int, batch_size: int, group: int | None, parts: int = 1):
    return sharding.layout(batch_size, devices, microbatches=parts, bn_group=group)


@pytest.mark.parametrize(
    ("devices", "batch_size", "group", "parts", "expected", "local", "groups"),
    [
        (4, 32, None, 1, 8, True, 4),
        (4, 32, None, 2, 4, True, 4),
        (4, 32, 0, 1, 32, False, 1),
        (1, 32, 0, 1, 32, True, 1),
        (4, 32, 2, 1, 2, True, 16),
        (4, 32, 16, 1, 16, False, 2),
        # A device's part of a microbatch has two examples.
        (4, 32, 4, 4, 4, False, 2),
        (4, 32, 2, 4, 2, True, 4),
    ],
)
def test_groups(devices, batch_size, group, parts, expected, local, groups):
    found = layout(devices, batch_size, group, parts)
    assert (found.bn_group, found.local, found.bn_groups) == (expected, local, groups)


def test_a_run_keeps_the_groups_it_began_with():
    assert layout(2, 32, 4).bn_group == 4
    assert layout(2, 32, 4).local
    assert not layout(16, 32, 4).local


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ((3, 32, None), "training.batch_size is 32, which 3 devices can't share evenly: make it a multiple of 3"),
        ((2, 32, None, 3), "2 devices in 3 microbatches can't share evenly: make it a multiple of 6"),
        ((2, 32, 5), "groups of 5, which don't divide training.batch_size, 32"),
        ((2, 32, 0, 4), "groups of 32, which don't divide a microbatch's 8 examples"),
    ],
)
def test_what_can_not_be_divided_is_reported(keys, words):
    with pytest.raises(UserError, match=words):
        layout(*keys)


def test_one_process_has_all_rows():
    mesh = sharding.data_mesh()
    np.testing.assert_array_equal(sharding.local_rows(mesh, 12), np.arange(12))
    placed = sharding.put_batch(mesh, {"x": np.arange(12)})["x"]
    assert [shard.data.tolist() for shard in placed.addressable_shards] == np.arange(12).reshape(4, 3).tolist()
    assert len(placed.devices()) == jax.device_count()
