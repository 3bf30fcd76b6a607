"""The order of an epoch: every example once, random groups, entered anywhere, and the same on every machine."""

import itertools
import math

import numpy as np
import pytest

from vise_jax.data.epoch_order import Shuffle, windows

SMALL = Shuffle(shards=2, block=2, slots=2, window=3)


def order(counts, shuffle=SMALL, seed=7, epoch=2, batch_size=4, skip=0) -> list[tuple[int, int]]:
    return [
        (int(shard), int(record))
        for of_window in windows(counts, shuffle, seed, epoch, batch_size, skip)
        for shard, record in zip(*of_window, strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("shuffle", [SMALL, Shuffle(1, 1, 1, 1), Shuffle(9, 4, 3, 100), Shuffle(3, 3, 5, 2)])
def test_every_example_comes_once(batch_size, shuffle):
    counts = [3, 1, 4, 1, 5]
    expected = [(shard, record) for shard, count in enumerate(counts) for record in range(count)]
    epochs = [order(counts, shuffle, epoch=epoch, batch_size=batch_size) for epoch in range(3)]
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("skip", [0, 1, 4, 5, 9, 13, 14])
def test_an_epoch_is_entered_anywhere_in_the_same_order(skip):
    assert order([3, 1, 4, 1, 5], skip=skip) == order([3, 1, 4, 1, 5])[skip:]


def test_windows_that_are_skipped_are_not_ordered(monkeypatch):
    drawn = []
    philox = np.random.Philox
    monkeypatch.setattr(np.random, "Philox", lambda key: drawn.append(key.entropy) or philox(key))
    next(windows([8] * 16, Shuffle(shards=4, block=2, slots=2, window=8), 0, 0, 8, skip=16 * 8 - 1))
    # The shards, the record blocks of the last group, and its last window.
    assert drawn == [(0, 0), (0, 0, 3), (0, 0, 3, 1)]


def test_a_batch_norm_group_is_a_random_draw():
    """Posts of 50 pages in page order, 16 shards, 8 devices x 32: distinct pages of a group."""
    pages, group, shards, examples = 50, 32, 16, 1024
    shuffle = Shuffle(shards=256, block=8, slots=8, window=1024)
    total = shards * examples
    positions = np.concatenate(
        [shard * examples + record for shard, record in windows([examples] * shards, shuffle, 0, 0, 8 * group)]
    )
    distinct = [len(np.unique(drawn * pages // total)) for drawn in positions.reshape(-1, group)]
    # Without replacement, a page is left out of a draw with the hypergeometric probability.
    per_page = total // pages
    uniform = pages * (1 - math.comb(total - per_page, group) / math.comb(total, group))
    assert np.mean(distinct) > 0.9 * uniform


def test_a_process_reads_the_record_blocks_of_its_rows_only():
    shuffle = Shuffle(shards=16, block=8, slots=4, window=64)
    processes, batch_size = 4, 32
    for shard, record in itertools.islice(windows([64] * 16, shuffle, 0, 0, batch_size), 4):
        process = np.arange(len(shard)) % batch_size * processes // batch_size
        blocks = [set(zip(shard[process == p], record[process == p] // 8, strict=True)) for p in range(processes)]
        # A block that is cut by the border of two slots is read twice.
        assert sum(map(len, blocks)) <= len(set.union(*blocks)) + processes - 1


def test_the_order_is_pinned():
    # Recorded once: another NumPy or another platform must not change the order of a seed.
    assert order([3, 1, 4, 1, 5]) == [
        (0, 0),
        (0, 1),
        (3, 0),
        (0, 2),
        (1, 0),
        (4, 0),
        (4, 2),
        (4, 3),
        (4, 4),
        (4, 1),
        (2, 0),
        (2, 1),
        (2, 3),
        (2, 2),
    ]
