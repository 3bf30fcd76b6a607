"""K-means in JAX: Lloyd's algorithm from a k-means++ start, a chunk of points at a time.

The distances of one chunk to all centroids are the largest thing ever held: never points x centroids. Products are
float32 on every device (an accelerator's faster default would move points between clusters), sums are added up chunk
by chunk, and the inertia in float64.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vise_jax.errors import UserError

# Points whose distances are held at a time: few enough for a core's cache, enough for an accelerator.
_CHUNK = 4096
# k-means++ sees this many points a cluster, and at least this many in all, drawn evenly.
_START_POINTS_PER_CLUSTER = 20
_START_POINTS = 20_000
# Below this share of the mean squared norm, a squared distance is rounding noise of |x|^2 - 2xc + |c|^2.
_NOISE = 1e-6


class KMeans(NamedTuple):
    """Centroids float32 [k, D], and the sum of squared distances to the nearest one (float64)."""

    centroids: np.ndarray
    inertia: float


def fit(
    x: np.ndarray,
    k: int,
    *,
    init: np.ndarray | None = None,
    iterations: int,
    seed: int,
    allow_fewer: bool = False,
    after_iteration: Callable[[], None] = lambda: None,
) -> KMeans:
    """Cluster points into `k` clusters.

    An empty cluster is started again from the point that is farthest from its centroid, so that each of them ends up
    used. Stops early when no point moves.

    Args:
        x: float32 [N, D].
        k: number of clusters.
        init: float32 [k, D] to start from, or None for greedy k-means++ on a random subsample.
        iterations: at most so many; 0 leaves the start as it is.
        seed: of the start.
        allow_fewer: make as many clusters as there are distinct points when these are fewer than `k`.
        after_iteration: called once an iteration, for a progress bar.

    Raises:
        UserError: fewer than `k` distinct points, and `allow_fewer` is off.
        ValueError: `x` or `init` is of the wrong shape or not finite.
    """
    x = np.asarray(x, np.float32)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"x has to be finite and [N, D], but is {x.shape} or not finite")
    distinct = _count_distinct(x, k)
    if distinct < k:
        if not allow_fewer or distinct == 0 or init is not None:
            raise UserError(
                f"{k:,} clusters were asked for, but there are only {distinct:,} distinct points: ask for fewer, give "
                "more posts, or set labels.allow_fewer_clusters=True to make as many clusters as there are points."
            )
        k = distinct
    chunks = list(_chunks(x))
    centroids = _start(x, k, seed) if init is None else jnp.asarray(init, jnp.float32)
    if centroids.shape != (k, x.shape[1]):
        raise ValueError(f"init has to be {(k, x.shape[1])}, but is {centroids.shape}")
    labels = [jnp.full(len(chunk), -1, jnp.int32) for chunk, _ in chunks]
    for _ in range(iterations):
        sums, counts, moved = jnp.zeros_like(centroids), jnp.zeros(k, jnp.float32), jnp.zeros((), jnp.int32)
        for index, (chunk, valid) in enumerate(chunks):
            sums, counts, moved, labels[index] = _accumulate(
                chunk, valid, centroids, labels[index], sums, counts, moved
            )
        after_iteration()
        if not int(moved):
            break
        if not np.asarray(counts).all():
            sums, counts = _reseed(x, _residuals(chunks, centroids, labels), labels, sums, counts)
        # A cluster that is empty still (fewer far points than empty clusters) stays where it was.
        centroids = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centroids)
    labels = [_nearest(chunk, centroids) for chunk, _ in chunks]
    return KMeans(np.asarray(centroids), float(_residuals(chunks, centroids, labels).sum(dtype=np.float64)))


def assign(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each point, the first of equals.

    Args:
        x: float32 [N, D].
        centroids: float32 [k, D].

    Returns:
        int32 [N].
    """
    x, on_device = np.asarray(x, np.float32), jnp.asarray(centroids, jnp.float32)
    labels = [np.asarray(_nearest(chunk, on_device))[:valid] for chunk, valid in _chunks(x)]
    return np.concatenate(labels) if labels else np.zeros(0, np.int32)


def _count_distinct(x: np.ndarray, enough: int) -> int:
    seen: set[bytes] = set()
    for row in x:
        seen.add((row + np.float32(0)).tobytes())  # -0.0 + 0.0 is 0.0
        if len(seen) >= enough:
            break
    return len(seen)


def _chunks(x: np.ndarray) -> Iterator[tuple[jax.Array, int]]:
    """Chunks on the device with the number of their rows that are points: the last is padded to a power of two."""
    for start in range(0, len(x), _CHUNK):
        rows = x[start : start + _CHUNK]
        size = max(64, 1 << (len(rows) - 1).bit_length())
        yield jnp.asarray(np.pad(rows, ((0, size - len(rows)), (0, 0)))), len(rows)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _nearest(x: jax.Array, centroids: jax.Array) -> jax.Array:
    """int32 [N]: argmin over k of |c|^2 - 2xc."""
    distance = jnp.sum(centroids * centroids, axis=1)[None, :] - 2 * _dot(x, centroids.T)
    # XLA's argmin is a scalar loop on CPU; two plain minima are twice as fast and give the same index.
    index = jnp.arange(len(centroids), dtype=jnp.int32)[None, :]
    smallest = jnp.min(distance, axis=1, keepdims=True)
    return jnp.min(jnp.where(distance <= smallest, index, len(centroids)), axis=1)


@partial(jax.jit, donate_argnums=(4, 5, 6))
def _accumulate(
    x: jax.Array,
    valid: int,
    centroids: jax.Array,
    old: jax.Array,
    sums: jax.Array,
    counts: jax.Array,
    moved: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Add one chunk's points to the sums [k, D] and counts [k] of their clusters; its padding adds zeros."""
    k = len(centroids)
    is_point = jnp.arange(len(x)) < valid
    labels = _nearest(x, centroids)
    sums += jax.ops.segment_sum(x, labels, num_segments=k)
    counts += jax.ops.segment_sum(is_point.astype(jnp.float32), labels, num_segments=k)
    return sums, counts, moved + jnp.sum(labels != old, dtype=jnp.int32, where=is_point), labels


@jax.jit
def _residual(x: jax.Array, centroids: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum((x - centroids[labels]) ** 2, axis=1)


def _residuals(chunks: list[tuple[jax.Array, int]], centroids: jax.Array, labels: list[jax.Array]) -> np.ndarray:
    """Squared distances [N] of the points to the centroids of their clusters."""
    parts = [
        np.asarray(_residual(chunk, centroids, label))[:valid]
        for (chunk, valid), label in zip(chunks, labels, strict=True)
    ]
    return np.concatenate(parts)


def _reseed(
    x: np.ndarray, residuals: np.ndarray, labels: list[jax.Array], sums: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Move the farthest points, each a different one, from their clusters into the empty clusters."""
    new_sums, new_counts = np.array(sums), np.array(counts)
    empty = list(np.flatnonzero(new_counts == 0))
    taken: set[bytes] = set()
    for point in np.argsort(-residuals, kind="stable"):
        if not empty or residuals[point] == 0:
            break
        old = int(labels[point // _CHUNK][point % _CHUNK])
        if x[point].tobytes() in taken or new_counts[old] <= 1:
            continue
        taken.add(x[point].tobytes())
        cluster = empty.pop(0)
        new_sums[old] -= x[point]
        new_counts[old] -= 1
        new_sums[cluster] = x[point]
        new_counts[cluster] = 1
    return jnp.asarray(new_sums), jnp.asarray(new_counts)


def _start(x: np.ndarray, k: int, seed: int) -> jax.Array:
    size = min(len(x), max(_START_POINTS, _START_POINTS_PER_CLUSTER * k))
    rows = np.random.default_rng(seed).choice(len(x), size, replace=False)
    return _plus_plus(jnp.asarray(x[np.sort(rows)]), k, jax.random.key(seed))


@partial(jax.jit, static_argnames="k")
def _plus_plus(x: jax.Array, k: int, key: jax.Array) -> jax.Array:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): each centroid is the best of a few points drawn by distance.

    Args:
        x: float32 [N, D].
        k: number of centroids.
        key: of the draws.

    Returns:
        float32 [k, D], points of `x`.
    """
    norms = jnp.sum(x * x, axis=1)
    noise = _NOISE * jnp.mean(norms)
    candidates_each = 2 + int(np.log(k))

    def distances(to: jax.Array) -> jax.Array:
        squared = norms[None, :] - 2 * _dot(to, x.T) + jnp.sum(to * to, axis=1)[:, None]
        return jnp.where(squared > noise, squared, 0.0)

    def choose(step: int | jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centroids, closest = state
        total = jnp.cumsum(closest)
        draws = jax.random.uniform(jax.random.fold_in(key, step), (candidates_each,)) * total[-1]
        # Where all points are taken, every draw is 0: the last point, and Lloyd re-seeds what stays empty.
        candidates = jnp.minimum(jnp.searchsorted(total, draws, side="right"), len(x) - 1)
        after = jnp.minimum(closest[None, :], distances(x[candidates]))
        best = jnp.argmin(jnp.sum(after, axis=1))
        return centroids.at[step].set(x[candidates[best]]), after[best]

    first = x[jax.random.randint(jax.random.fold_in(key, k), (), 0, len(x))]
    start = (jnp.zeros((k, x.shape[1]), x.dtype).at[0].set(first), distances(first[None, :])[0])
    return jax.lax.fori_loop(1, k, choose, start)[0]
