"""Near-duplicates among many perceptual hashes, without comparing all pairs.

If at most d bits of two hashes differ and the 64 bits are cut into d + e blocks, at least e blocks are equal (Manku et
al., WWW 2007). Only hashes with e equal blocks are compared.
"""

import itertools

import numpy as np

# Hashes that share e blocks by chance: more blocks are compared at once from there on.
_BY_CHANCE = 64
_MOST_BLOCKS = 4
BITS = 64


def representatives(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Group hashes: each belongs to the first one in its order that is near and represents its own group.

    No two members of a group are further apart than twice the distance, and none is further from its representative
    than the distance.

    Args:
        hashes: uint64 [N], in the order of preference.
        distance: largest number of differing bits of near hashes.

    Returns:
        int64 [N], the index of the representative of each hash; its own index for a representative.
    """
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    # Distinct hashes, in the order in which they come first.
    order = np.argsort(first)
    chosen = np.arange(len(values))
    later, earlier = near_pairs(values[order], distance).T[::-1]
    for number, other in zip(later.tolist(), earlier.tolist(), strict=True):
        if chosen[number] == number and chosen[other] == other:
            chosen[number] = other
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order][chosen[rank[inverse]]]


def is_near(hashes: np.ndarray, others: np.ndarray, distance: int) -> np.ndarray:
    """Return which hashes are near each of a few others, bool [N, M].

    Args:
        hashes: uint64 [N].
        others: uint64 [M].
        distance: largest number of differing bits.
    """
    return np.bitwise_count(hashes[:, None] ^ others[None]) <= distance


def near_pairs(values: np.ndarray, distance: int) -> np.ndarray:
    """Return the pairs of near hashes.

    Args:
        values: uint64 [N], distinct.
        distance: largest number of differing bits.

    Returns:
        int64 [P, 2], the indices of each pair, the smaller first; sorted by the larger, then by the smaller.
    """
    equal = next(
        (e for e in range(1, _MOST_BLOCKS) if len(values) < _BY_CHANCE << (BITS * e // (distance + e))), _MOST_BLOCKS
    )
    blocks = [
        np.uint64(sum(1 << int(bit) for bit in bits)) for bits in np.array_split(np.arange(BITS), distance + equal)
    ]
    found = [np.empty((0, 2), np.int64)]
    for combination in itertools.combinations(blocks, equal) if distance else ():
        keys = values & np.bitwise_or.reduce(combination)
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], values[order]
        # Hashes with a neighbor of the same key at an offset that grows.
        left = np.arange(len(keys))
        for offset in range(1, len(keys)):
            left = left[: np.searchsorted(left, len(keys) - offset)]
            left = left[keys[left] == keys[left + offset]]
            if not len(left):
                break
            near = left[np.bitwise_count(ordered[left] ^ ordered[left + offset]) <= distance]
            found.append(np.stack([order[near], order[near + offset]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs[:, ::-1], axis=0)[:, ::-1]
