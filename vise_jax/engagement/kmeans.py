"""K-means in JAX: Lloyd's algorithm or mini-batches from a k-means++ start, on any number of devices.

Points are sharded over the local devices and go through in tiles, so that the distances of one tile to all centroids
are the largest thing ever held: never points x centroids. An array in memory is kept on the devices; an `np.memmap`
is streamed from the disk in each pass, and may be larger than any memory. Products are float32 on every device (an
accelerator's faster default would move points between clusters); sums are added up in float32 within a block of
points, and in float64 over blocks.
"""

import mmap
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError, safe_open

from vise_jax import artifact
from vise_jax.errors import UserError

# Distances held at a time on each device, and points at most: few enough for a core's cache, enough for an accelerator.
_CPU_TILE, _ACCELERATOR_TILE = (2**20, 1024), (2**26, 65536)
_SMALLEST_TILE = 64
# Bytes of points that go to each device at a time.
_BLOCK_BYTES = 2**26
# XLA's argmin is a scalar loop on CPU; minima over groups of this many centroids, and then within one group, are not.
_GROUP = 32
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
    batch_size: int = 0,
    tolerance: float = 0.0,
    allow_fewer: bool = False,
    state: Path | None = None,
    save_every: int = 5,
    after_iteration: Callable[[float], None] = lambda inertia: None,
) -> KMeans:
    """Cluster points into `k` clusters.

    An empty cluster is started again from the point that is farthest from its centroid, so that each of them ends up
    used. Lloyd's algorithm stops early when no point moves.

    Args:
        x: float32 [N, D]; an `np.memmap` is streamed.
        k: number of clusters.
        init: float32 [k, D] to start from, or None for greedy k-means++ on a random subsample.
        iterations: maximum number of passes over the points, or of mini-batches; 0 returns the start.
        seed: of the start, and of the mini-batches.
        batch_size: 0 for Lloyd's algorithm; else the points of a mini-batch. Each centroid is then the mean of all
            points that were ever assigned to it (Sculley 2010).
        tolerance: Lloyd's algorithm stops when the inertia falls by a smaller share in an iteration.
        allow_fewer: make as many clusters as there are distinct points when these are fewer than `k`.
        state: file in which the centroids are kept every `save_every` iterations. The same call goes on from there
            and ends with the same bits.
        save_every: iterations between two saves.
        after_iteration: called with the inertia once an iteration, for a progress bar; with mini-batches, the batch's.

    Raises:
        UserError: fewer than `k` distinct points, and `allow_fewer` is off; or `state` is of other points or arguments.
        ValueError: `x` or `init` is of the wrong shape or not finite.
    """
    x = _checked(x)
    distinct = _count_distinct(x, k)
    if distinct < k:
        if not allow_fewer or distinct == 0 or init is not None:
            raise UserError(
                f"{k:,} clusters need as many points, but there are only {distinct:,} distinct points: ask for fewer, "
                "give more posts, or set labels.allow_fewer_clusters=True to fit as many clusters as there are points."
            )
        k = distinct
    if init is not None and np.shape(init) != (k, x.shape[1]):
        raise ValueError(f"init has to be {(k, x.shape[1])}, but is {np.shape(init)}")
    points = _points(x, k, jax.local_devices())
    job = "" if state is None else _fingerprint(x, k, init, seed, batch_size)
    run = _read_state(state, job) if state is not None and state.exists() else None
    if run is None:
        start = _start(x, k, seed) if init is None else np.array(init, np.float32)
        run = _Run(start, np.zeros(k, np.int64), 0, np.inf, False)
    advance = _mini_batches(x, batch_size, seed) if batch_size else _lloyd(x, points, tolerance)
    while run.iteration < iterations and not run.finished:
        run = advance(run)
        after_iteration(run.inertia)
        if state is not None and (run.finished or run.iteration % save_every == 0):
            _write_state(state, job, run)
    return KMeans(run.centroids, _inertia(_pass(points, run.centroids)))


def assign(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each point, the first of ties.

    Args:
        x: float32 [N, D].
        centroids: float32 [k, D].

    Returns:
        int32 [N].
    """
    x, centroids = _checked(x), np.asarray(centroids, np.float32)
    if not len(x):
        return np.zeros(0, np.int32)
    # One device: a worker's batch is too small to share.
    return _pass(_points(x, len(centroids), jax.local_devices()[:1]), centroids).labels


class _Run(NamedTuple):
    """How far a fit has come.

    Attributes:
        centroids: float32 [k, D].
        seen: int64 [k], points that each centroid is the mean of; of mini-batches only.
        iteration: iterations done.
        inertia: of the last iteration, before its centroids moved.
        finished: whether another iteration would change little or nothing.
    """

    centroids: np.ndarray
    seen: np.ndarray
    iteration: int
    inertia: float
    finished: bool


class _Pass(NamedTuple):
    """Results of a pass over the points.

    Attributes:
        sums: float64 [k, D], of the points of each cluster.
        counts: int64 [k], of the points of each cluster.
        labels: int32 [N], the cluster of each point.
        distances: float32 [N], squared, to its centroid.
    """

    sums: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    distances: np.ndarray


class _Points(NamedTuple):
    """Points on their way to the devices.

    Attributes:
        blocks: starts a pass: blocks [B, D] of whole tiles, sharded over the mesh, with the number of their rows that
            are points; the other rows are zeros.
        mesh: the devices, along the axis `points`.
        tile: rows whose distances a device holds at a time.
    """

    blocks: Callable[[], Iterator[tuple[jax.Array, int]]]
    mesh: Mesh
    tile: int


def _checked(x: np.ndarray) -> np.ndarray:
    x = x if isinstance(x, np.memmap) and x.dtype == np.float32 else np.asarray(x, np.float32)
    if x.ndim != 2:
        raise ValueError(f"x has to be finite and [N, D], but its shape is {x.shape}")
    return x


def _lloyd(x: np.ndarray, points: _Points, tolerance: float) -> Callable[[_Run], _Run]:
    labels = np.full(len(x), -1, np.int32)

    def advance(run: _Run) -> _Run:
        nonlocal labels
        found = _pass(points, run.centroids)
        inertia = _inertia(found)
        finished = np.array_equal(labels, found.labels) or run.inertia - inertia < tolerance * inertia
        labels = found.labels
        means = _means(_reseed(x, found, run.centroids), run.centroids)
        return _Run(means, run.seen, run.iteration + 1, inertia, finished)

    return advance


def _mini_batches(x: np.ndarray, size: int, seed: int) -> Callable[[_Run], _Run]:
    def advance(run: _Run) -> _Run:
        rows = np.random.default_rng([seed, run.iteration]).choice(len(x), min(size, len(x)), replace=False)
        batch = np.array(x[np.sort(rows)])
        _forget(x)
        found = _pass(_points(batch, len(run.centroids), jax.local_devices()), run.centroids)
        inertia = _inertia(found)
        sums = found.sums + run.centroids.astype(np.float64) * run.seen[:, None]
        ever = _reseed(batch, found._replace(sums=sums, counts=found.counts + run.seen), run.centroids)
        return _Run(_means(ever, run.centroids), ever.counts, run.iteration + 1, inertia, False)

    return advance


def _means(found: _Pass, centroids: np.ndarray) -> np.ndarray:
    # A cluster that is empty still (fewer far points than empty clusters) stays where it was.
    used = found.counts[:, None] > 0
    return np.where(used, found.sums / np.maximum(found.counts, 1)[:, None], centroids).astype(np.float32)


def _reseed(x: np.ndarray, found: _Pass, centroids: np.ndarray) -> _Pass:
    """Move the farthest points, each a different one, from their clusters into the empty clusters."""
    empty = list(np.flatnonzero(found.counts == 0))
    if not empty:
        return found
    sums, counts = found.sums.copy(), found.counts.copy()
    taken: set[bytes] = set()
    for point in np.argsort(-found.distances, kind="stable"):
        row, old = np.asarray(x[point]), found.labels[point]
        if not empty or np.array_equal(row, centroids[old]):
            break
        if row.tobytes() in taken or counts[old] <= 1:
            continue
        taken.add(row.tobytes())
        cluster = empty.pop(0)
        sums[old] -= row
        counts[old] -= 1
        sums[cluster], counts[cluster] = row, 1
    return found._replace(sums=sums, counts=counts)


def _count_distinct(x: np.ndarray, enough: int) -> int:
    seen: set[bytes] = set()
    for row in x:
        seen.add((row + np.float32(0)).tobytes())  # -0.0 + 0.0 is 0.0
        if len(seen) >= enough:
            break
    return len(seen)


def _points(x: np.ndarray, k: int, devices: list[jax.Device]) -> _Points:
    """Put an array on the devices once; put an `np.memmap` there in each pass again, block by block."""
    mesh = _mesh(tuple(devices))
    blocks = max(1, -(-x.nbytes // (_BLOCK_BYTES * len(devices))))
    rows = max(1, -(-len(x) // (blocks * len(devices))))
    tile = _tile(rows, k)
    size = -(-rows // tile) * tile * len(devices)

    def put() -> Iterator[tuple[jax.Array, int]]:
        for first in range(0, len(x), size):
            part = np.asarray(x[first : first + size])
            padded = np.pad(part, ((0, size - len(part)), (0, 0)))
            yield jax.device_put(padded, NamedSharding(mesh, P("points"))), len(part)
            _forget(x)

    if isinstance(x, np.memmap):
        return _Points(put, mesh, tile)
    resident = list(put())
    return _Points(lambda: iter(resident), mesh, tile)


def _forget(x: np.ndarray) -> None:
    """Release the pages of an `np.memmap` that were read: they would count as this process's memory."""
    if isinstance(x, np.memmap) and (mapping := getattr(x, "_mmap", None)) is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def _tile(points: int, k: int) -> int:
    """Return the number of points in a tile: a power of two, so that few sizes are compiled."""
    distances, largest = _CPU_TILE if jax.default_backend() == "cpu" else _ACCELERATOR_TILE
    fitting = 1 << max(0, (distances // k).bit_length() - 1)
    needed = 1 << max(0, points - 1).bit_length()
    return max(_SMALLEST_TILE, min(largest, fitting, needed))


@cache
def _mesh(devices: tuple[jax.Device, ...]) -> Mesh:
    return Mesh(np.array(devices), ("points",), axis_types=(AxisType.Auto,))


def _pass(points: _Points, centroids: np.ndarray) -> _Pass:
    sums, counts = np.zeros(centroids.shape, np.float64), np.zeros(len(centroids), np.int64)
    labels, distances = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    on_device = jnp.asarray(centroids)

    def collect(found: tuple[jax.Array, ...], rows: int) -> None:
        nonlocal sums, counts
        block_sums, block_counts, block_labels, block_distances = map(np.asarray, found)
        if not np.isfinite(block_distances).all():
            raise ValueError("x and init have to be finite")
        sums += block_sums
        counts += block_counts
        labels.append(block_labels[:rows])
        distances.append(block_distances[:rows])

    # The next block is read while one is worked on.
    waiting: list[tuple[tuple[jax.Array, ...], int]] = []
    for block, rows in points.blocks():
        waiting.append((_work(block, jnp.int32(rows), on_device, points.mesh, points.tile), rows))
        if len(waiting) > 1:
            collect(*waiting.pop(0))
    for found in waiting:
        collect(*found)
    return _Pass(sums, counts, np.concatenate(labels), np.concatenate(distances))


# Sums and counts so far, and the number of the next row.
_Carry = tuple[jax.Array, jax.Array, jax.Array]


@partial(jax.jit, static_argnames=("mesh", "tile"))
def _work(x: jax.Array, points: jax.Array, centroids: jax.Array, mesh: Mesh, tile: int) -> tuple[jax.Array, ...]:
    """Compute sums [k, D] and counts [k] of the clusters, labels [B] and squared distances [B] of a block [B, D]."""
    k = len(centroids)

    def on_each(x: jax.Array, points: jax.Array, centroids: jax.Array) -> tuple[jax.Array, ...]:
        norms, table = _padded(centroids)

        def add(carry: _Carry, rows: jax.Array) -> tuple[_Carry, tuple[jax.Array, jax.Array]]:
            sums, counts, first = carry
            labels = _nearest(rows, norms, table)
            distances = jnp.sum((rows - centroids[labels]) ** 2, axis=1)
            is_point = (first + jnp.arange(tile, dtype=jnp.int32) < points).astype(jnp.int32)
            sums += jax.ops.segment_sum(rows, labels, num_segments=k)
            counts += jax.ops.segment_sum(is_point, labels, num_segments=k)
            return (sums, counts, first + tile), (labels, distances)

        first = jax.lax.axis_index("points").astype(jnp.int32) * len(x)
        start = (jnp.zeros_like(centroids), jnp.zeros(k, jnp.int32), first)
        (sums, counts, _), (labels, distances) = jax.lax.scan(add, start, x.reshape(-1, tile, x.shape[1]))
        return jax.lax.psum(sums, "points"), jax.lax.psum(counts, "points"), labels.ravel(), distances.ravel()

    each, whole = P("points"), P()
    return jax.shard_map(
        on_each, mesh=mesh, in_specs=(each, whole, whole), out_specs=(whole, whole, each, each), check_vma=False
    )(x, points, centroids)


def _padded(centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return |c|^2 [K] and -2c [D, K], padded to full groups with centroids that nothing is near."""
    rest = -len(centroids) % _GROUP
    norms = jnp.pad(jnp.sum(centroids * centroids, axis=1), (0, rest), constant_values=jnp.inf)
    return norms, jnp.pad(-2 * centroids.T, ((0, 0), (0, rest)))


def _nearest(x: jax.Array, norms: jax.Array, table: jax.Array) -> jax.Array:
    """Return labels int32 [N], the first of ties: argmin over k of |c|^2 - 2xc."""
    distances = (norms[None, :] + _dot(x, table)).reshape(len(x), -1, _GROUP)
    group = _first_minimum(jnp.min(distances, axis=2))
    return group * _GROUP + _first_minimum(jnp.take_along_axis(distances, group[:, None, None], axis=1)[:, 0])


def _first_minimum(values: jax.Array) -> jax.Array:
    """Compute argmin int32 [N] over the rows of [N, M]; two plain minima are faster than XLA's argmin on CPU."""
    index = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :]
    return jnp.min(jnp.where(values <= jnp.min(values, axis=1, keepdims=True), index, values.shape[1]), axis=1)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _inertia(found: _Pass) -> float:
    return float(found.distances.sum(dtype=np.float64))


def _fingerprint(x: np.ndarray, k: int, init: np.ndarray | None, seed: int, batch_size: int) -> str:
    """Fingerprint that a saved state must match to be resumed, from a subsample of the points."""
    some = np.asarray(x[:: max(1, len(x) // 64)], np.float64).tolist()
    start = None if init is None else np.asarray(init, np.float64).tolist()
    return artifact.fingerprint([list(x.shape), some, k, start, seed, batch_size])


def _write_state(path: Path, job: str, run: _Run) -> None:
    tensors = {name: np.asarray(value) for name, value in run._asdict().items()}
    with artifact.atomic_file(path) as file:
        file.write(safetensors.numpy.save(tensors, metadata={"job": job}))


def _read_state(path: Path, job: str) -> _Run:
    try:
        with safe_open(path, framework="numpy") as file:
            if file.metadata()["job"] != job:
                raise UserError(f"{path} holds the state of another K-means: delete it, or name another file.")
            found = {name: file.get_tensor(name) for name in _Run._fields}
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no state of a K-means: delete it, or name another file.") from error
    scalars = (found[name].item() for name in ("iteration", "inertia", "finished"))
    return _Run(found["centroids"], found["seen"], *scalars)


def _start(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    size = min(len(x), max(_START_POINTS, _START_POINTS_PER_CLUSTER * k))
    rows = np.random.default_rng(seed).choice(len(x), size, replace=False)
    points = np.array(x[np.sort(rows)])
    _forget(x)
    return np.asarray(_plus_plus(jnp.asarray(points), k, jax.random.key(seed)))


@partial(jax.jit, static_argnames="k")
def _plus_plus(x: jax.Array, k: int, key: jax.Array) -> jax.Array:
    """Draw centroids by greedy k-means++ (Arthur & Vassilvitskii 2007), each the best of a few candidates.

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
