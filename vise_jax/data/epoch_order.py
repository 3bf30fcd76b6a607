"""The order of training examples: a function of the seed, the epoch, the batch size and the shards.

Labeling keeps the order of the posts, so neighbors in a shard come from one page or one day. The examples of a
batch-norm group must be a random draw of the epoch instead. A shuffle of single records would do, but reads one
record at a time. The order here shuffles record blocks, runs of a few consecutive records, over many shards, and then
the records of a window of blocks.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shuffle:
    """How the records of an epoch are shuffled; the keys `data.shuffle_*` have the defaults.

    Args:
        shards: number of shards whose record blocks are permuted together.
        block: consecutive records of a record block, which are read together.
        slots: number of interleave slots. A batch is cut into as many runs of rows, and each slot fills one of them.
        window: examples of a slot that are shuffled together, at most.
    """

    shards: int
    block: int
    slots: int
    window: int


def windows(
    examples_per_shard: Sequence[int], shuffle: Shuffle, seed: int, epoch: int, batch_size: int, skip: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the order of an epoch, one shuffle window at a time.

    The shards are permuted and divided into groups of at most `shuffle.shards`. The record blocks of a group are
    permuted and divided into windows. Each interleave slot gets consecutive blocks of the window, and shuffles their
    records. So the rows of a slot are drawn from `window / block` random places of the group, while a process, whose
    rows are consecutive, reads the blocks of its own slots only.

    Groups and windows before the first `skip` examples cost nothing: an epoch is entered anywhere in the same time.

    Args:
        examples_per_shard: number of records of each shard.
        shuffle: sizes of groups, blocks, slots and windows.
        seed: of the run.
        epoch: its number.
        batch_size: examples in a batch over all processes.
        skip: number of examples to leave out at the start.

    Yields:
        The shard and the record in it of each example of a window, int64 [W] each, in the order of training. The
        order is the same on every machine and with every NumPy: it depends on raw bits of Philox only.
    """
    counts = np.asarray(examples_per_shard, np.int64)
    permuted = _permutation(len(counts), seed, epoch)
    position = epoch * int(counts.sum())
    for group, shards in enumerate(np.array_split(permuted, -(-len(permuted) // shuffle.shards))):
        size = int(counts[shards].sum())
        if skip >= size:
            position, skip = position + size, skip - size
            continue
        shard, first, length = _blocks(counts, shards, shuffle.block)
        blocks = _permutation(len(shard), seed, epoch, group)
        ends = np.cumsum(length[blocks])
        cuts = _cuts(ends, shuffle.slots * shuffle.window)
        for window, (start, stop) in enumerate(itertools.pairwise(cuts)):
            chosen = blocks[start:stop]
            size = int(length[chosen].sum())
            if skip < size:
                records = _slot_shuffle(position, size, batch_size, shuffle.slots, (seed, epoch, group, window))
                within = np.arange(size) - np.repeat(np.cumsum(length[chosen]) - length[chosen], length[chosen])
                shard_of, record = np.repeat(shard[chosen], length[chosen]), np.repeat(first[chosen], length[chosen])
                yield shard_of[records][skip:], (record + within)[records][skip:]
            position, skip = position + size, max(skip - size, 0)


def _blocks(counts: np.ndarray, shards: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut shards into record blocks; return shard, first record and number of records of each, int64 [M]."""
    blocks = -(-counts[shards] // block)
    shard = np.repeat(shards, blocks)
    first = (np.arange(len(shard)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * block
    return shard, first, np.minimum(counts[shard] - first, block)


def _cuts(ends: np.ndarray, largest: int) -> np.ndarray:
    """Cut blocks that end at the records `ends` into windows of equal size, at most `largest` and a block."""
    total = int(ends[-1])
    number = -(-total // largest)
    inner = np.searchsorted(ends, total * np.arange(1, number) // number, side="left") + 1
    return np.unique(np.concatenate([[0], inner, [len(ends)]]))


def _slot_shuffle(position: int, size: int, batch_size: int, slots: int, key: tuple[int, ...]) -> np.ndarray:
    """Return the order of a window's records, int64 [size]: consecutive records per slot, shuffled within the slot."""
    slot = (position + np.arange(size)) % batch_size * slots // batch_size
    # Both are sorted by slot: the positions in their own order, the records in random order within the slot.
    positions = np.argsort(slot, kind="stable")
    order = np.empty(size, np.int64)
    order[positions] = np.lexsort((_raw(size, *key), slot[positions]))
    return order


def _permutation(size: int, *key: int) -> np.ndarray:
    return np.argsort(_raw(size, *key), kind="stable")


def _raw(size: int, *key: int) -> np.ndarray:
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
