"""K-means in JAX: Lloyd's algorithm or mini-batches from a k-means++ start, on the devices of any number of processes.

Points are an array in memory, or an `np.memmap` that may be larger than any memory; see `kmeans_passes`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vise_jax import arrays, artifact, hosts
from vise_jax.engagement import kmeans_passes as passes
from vise_jax.errors import UserError

# k-means++ draws from this many points per cluster, and at least this many in all, a uniform sample.
_START_POINTS_PER_CLUSTER = 20
_START_POINTS = 20_000
# Below this fraction of the mean squared norm, a squared distance is rounding noise of |x|^2 - 2xc + |c|^2.
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

    All processes of `jax.distributed` call it alike, with the same points; each goes through its share of them. The
    number of devices and processes changes no more than float64 rounding does.

    An empty cluster is restarted from the point that is farthest from its centroid. Lloyd's algorithm stops early when
    no point moves.

    Args:
        x: float32 [N, D]; an `np.memmap` is streamed.
        k: number of clusters.
        init: float32 [k, D] to start from, or None for greedy k-means++ on a random subsample.
        iterations: maximum number of passes over the points, or of mini-batches; 0 returns the start.
        seed: of the start and of the mini-batches.
        batch_size: 0 for Lloyd's algorithm; otherwise the points of a mini-batch. Each centroid is then the mean of all
            points that were ever assigned to it (Sculley 2010).
        tolerance: Lloyd's algorithm stops when the relative decrease of the inertia in an iteration is smaller.
        allow_fewer: fit as many clusters as there are distinct points if these are fewer than `k`.
        state: file in which the first process saves the centroids every `save_every` iterations. The same call
            resumes from it, to the same bits.
        save_every: iterations between two saves.
        after_iteration: called with the inertia (of mini-batches, that of the batch) after each iteration.

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
    points = _put(x, k)
    job = "" if state is None else _fingerprint(x, k, init, seed, batch_size)

    def begin() -> _Run:
        if state is not None and state.exists():
            return _read_state(state, job)
        start = _start(x, k, seed) if init is None else np.array(init, np.float32)
        return unmoved._replace(centroids=start)

    unmoved = _Run(np.zeros((k, x.shape[1]), np.float32), np.zeros(k, np.int64), 0, np.inf, False)
    run = _from_first(hosts.on_first(begin) or unmoved)
    advance = _mini_batches(x, batch_size, seed) if batch_size else _lloyd(x, points, tolerance)
    while run.iteration < iterations and not run.finished:
        run = advance(run)
        after_iteration(run.inertia)
        if state is not None and jax.process_index() == 0 and (run.finished or run.iteration % save_every == 0):
            _write_state(state, job, run)
    return KMeans(run.centroids, passes.run_pass(points, run.centroids).inertia)


def assign(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each point, the first of ties.

    Args:
        x: float32 [N, D].
        centroids: float32 [k, D].

    Returns:
        int32 [N].
    """
    x, centroids = _checked(x), np.asarray(centroids, np.float32)
    return passes.nearest(x, centroids) if len(x) else np.zeros(0, np.int32)


class _Run(NamedTuple):
    """The state of a fit.

    Attributes:
        centroids: float32 [k, D].
        seen: int64 [k], number of points that each centroid is the mean of; for mini-batches only.
        iteration: number of iterations done.
        inertia: of the last iteration, before its centroids moved.
        finished: whether another iteration would change less than the tolerance.
    """

    centroids: np.ndarray
    seen: np.ndarray
    iteration: int
    inertia: float
    finished: bool


def _checked(x: np.ndarray) -> np.ndarray:
    x = x if isinstance(x, np.memmap) and x.dtype == np.float32 else np.asarray(x, np.float32)
    if x.ndim != 2:
        raise ValueError(f"x has to be finite and [N, D], but its shape is {x.shape}")
    return x


def _put(x: np.ndarray, k: int) -> passes.Points:
    return passes.put_points(x, k, jax.local_devices(), jax.process_index(), jax.process_count())


def _lloyd(x: np.ndarray, points: passes.Points, tolerance: float) -> Callable[[_Run], _Run]:
    labels: np.ndarray | None = None

    def advance(run: _Run) -> _Run:
        nonlocal labels
        result = passes.run_pass(points, run.centroids)
        moved = labels is None or not np.array_equal(labels, result.labels)
        labels = result.labels
        finished = not np.any(hosts.gather(np.array(moved)))
        finished |= run.inertia - result.inertia < tolerance * result.inertia
        means = _means(_reseed(x, points, result, run.centroids), run.centroids)
        return _Run(means, run.seen, run.iteration + 1, result.inertia, finished)

    return advance


def _mini_batches(x: np.ndarray, size: int, seed: int) -> Callable[[_Run], _Run]:
    def advance(run: _Run) -> _Run:
        rows = np.random.default_rng([seed, run.iteration]).choice(len(x), min(size, len(x)), replace=False)
        batch = np.array(x[np.sort(rows)])
        passes.release(x)
        points = _put(batch, len(run.centroids))
        result = passes.run_pass(points, run.centroids)
        sums = result.sums + run.centroids.astype(np.float64) * run.seen[:, None]
        ever = _reseed(batch, points, result._replace(sums=sums, counts=result.counts + run.seen), run.centroids)
        return _Run(_means(ever, run.centroids), ever.counts, run.iteration + 1, result.inertia, False)

    return advance


def _means(result: passes.Pass, centroids: np.ndarray) -> np.ndarray:
    # A cluster that is still empty (fewer far points than empty clusters) keeps its centroid.
    used = result.counts[:, None] > 0
    return np.where(used, result.sums / np.maximum(result.counts, 1)[:, None], centroids).astype(np.float32)


def _reseed(x: np.ndarray, points: passes.Points, result: passes.Pass, centroids: np.ndarray) -> passes.Pass:
    """Move the farthest points, all distinct, from their clusters into the empty clusters."""
    empty = list(np.flatnonzero(result.counts == 0))
    if not empty:
        return result
    sums, counts = result.sums.copy(), result.counts.copy()
    labels, distances = (passes.gather_rows(points, own) for own in (result.labels, result.distances))
    taken: set[bytes] = set()
    for point in np.argsort(-distances, kind="stable"):
        row, old = np.asarray(x[point]), labels[point]
        if not empty or np.array_equal(row, centroids[old]):
            break
        if row.tobytes() in taken or counts[old] <= 1:
            continue
        taken.add(row.tobytes())
        cluster = empty.pop(0)
        sums[old] -= row
        counts[old] -= 1
        sums[cluster], counts[cluster] = row, 1
    return result._replace(sums=sums, counts=counts)


def _count_distinct(x: np.ndarray, enough: int) -> int:
    seen: set[bytes] = set()
    for row in x:
        seen.add((row + np.float32(0)).tobytes())  # -0.0 + 0.0 is 0.0
        if len(seen) >= enough:
            break
    return len(seen)


def _fingerprint(x: np.ndarray, k: int, init: np.ndarray | None, seed: int, batch_size: int) -> str:
    """Fingerprint that a saved state must match to be resumed, from a subsample of the points."""
    some = np.asarray(x[:: max(1, len(x) // 64)], np.float64).tolist()
    start = None if init is None else np.asarray(init, np.float64).tolist()
    return artifact.fingerprint([list(x.shape), some, k, start, seed, batch_size])


def _from_first(run: _Run) -> _Run:
    return _from_arrays(hosts.send_from_first(_to_arrays(run)))


def _to_arrays(run: _Run) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in run._asdict().items()}


def _from_arrays(found: dict[str, np.ndarray]) -> _Run:
    scalars = (found[name].item() for name in ("iteration", "inertia", "finished"))
    return _Run(found["centroids"], found["seen"], *scalars)


def _write_state(path: Path, job: str, run: _Run) -> None:
    with artifact.atomic_file(path) as file:
        file.write(arrays.to_safetensors(_to_arrays(run), {"job": job}))


def _read_state(path: Path, job: str) -> _Run:
    try:
        found, about = arrays.from_safetensors(path.read_bytes())
        if about["job"] != job:
            raise UserError(f"{path} holds the state of another K-means: delete it, or name another file.")
        return _from_arrays(found)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no state of a K-means ({error}): delete it, or name another file.") from error


def _start(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    size = min(len(x), max(_START_POINTS, _START_POINTS_PER_CLUSTER * k))
    rows = np.random.default_rng(seed).choice(len(x), size, replace=False)
    points = np.array(x[np.sort(rows)])
    passes.release(x)
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
        squared = norms[None, :] - 2 * passes.dot(to, x.T) + jnp.sum(to * to, axis=1)[:, None]
        return jnp.where(squared > noise, squared, 0.0)

    def choose(step: int | jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centroids, closest = state
        total = jnp.cumsum(closest)
        draws = jax.random.uniform(jax.random.fold_in(key, step), (candidates_each,)) * total[-1]
        # If all points are taken, every draw is 0: the last point, and Lloyd's algorithm reseeds empty clusters.
        candidates = jnp.minimum(jnp.searchsorted(total, draws, side="right"), len(x) - 1)
        after = jnp.minimum(closest[None, :], distances(x[candidates]))
        best = jnp.argmin(jnp.sum(after, axis=1))
        return centroids.at[step].set(x[candidates[best]]), after[best]

    first = x[jax.random.randint(jax.random.fold_in(key, k), (), 0, len(x))]
    start = (jnp.zeros((k, x.shape[1]), x.dtype).at[0].set(first), distances(first[None, :])[0])
    return jax.lax.fori_loop(1, k, choose, start)[0]
