"""Groups of near-duplicates, against a comparison of all pairs."""

import numpy as np
import pytest

from vise_jax.data import near_duplicates


def planted(count: int, copies: int, distance: int, seed: int = 0) -> np.ndarray:
    """Random hashes, and copies of some with up to `distance` + 1 bits changed, in a random order."""
    draw = np.random.default_rng(seed)
    hashes = draw.integers(0, 2**63, count, np.uint64) << np.uint64(1) | draw.integers(0, 2, count, np.uint64)
    changed = hashes[draw.integers(0, count, copies)].copy()
    for number in range(copies):
        for bit in draw.choice(64, draw.integers(0, distance + 2), replace=False):
            changed[number] ^= np.uint64(1) << np.uint64(bit)
    return draw.permutation(np.concatenate([hashes, changed]))


# Few hashes share one block, many two.
@pytest.mark.parametrize("count", [300, 3_000])
@pytest.mark.parametrize("distance", [0, 1, 4, 9])
def test_every_near_pair_is_found(count: int, distance: int) -> None:
    values = np.unique(planted(count, count, distance))
    differing = np.bitwise_count(values[:, None] ^ values[None])
    later, earlier = np.nonzero(np.tril(differing <= distance, -1))
    expected = np.stack([earlier, later], axis=1)
    assert len(expected) > 10 or not distance
    np.testing.assert_array_equal(near_duplicates.near_pairs(values, distance), expected)


@pytest.mark.parametrize("distance", [0, 3, 6])
def test_each_hash_belongs_to_the_first_near_one_that_represents_itself(distance: int) -> None:
    hashes = planted(400, 800, distance)
    expected: list[int] = []
    for number, value in enumerate(hashes):
        candidates = (
            other
            for other in range(number)
            if expected[other] == other and int(hashes[other] ^ value).bit_count() <= distance
        )
        expected.append(next(candidates, number))
    assert near_duplicates.representatives(hashes, distance).tolist() == expected
    assert len(set(expected)) < len(hashes) - 100


def test_no_hashes() -> None:
    assert near_duplicates.representatives(np.empty(0, np.uint64), 4).tolist() == []


def test_a_chain_is_no_group() -> None:
    chain = np.array([0, 0b1111, 0b11111111], np.uint64)
    assert near_duplicates.representatives(chain, 4).tolist() == [0, 0, 2]
