"""Passes of K-means over the points, sharded over the local devices.

A pass goes through tiles, so that the distances of one tile to all centroids are the largest array: never points x
centroids. An array in memory stays on the devices; an `np.memmap` is streamed from the disk in each pass. Products are
float32 on every device. Sums are float32 within a block of points, and float64 over blocks.
"""

import mmap
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Distances held at a time on each device, and points at most: few enough for a core's cache, enough for an accelerator.
_CPU_TILE, _ACCELERATOR_TILE = (2**20, 1024), (2**26, 65536)
_SMALLEST_TILE = 64
# Bytes of points that go to each device at a time.
_BLOCK_BYTES = 2**26
# XLA's argmin is a scalar loop on CPU; minima over groups of this many centroids, and then within one group, are not.
_GROUP = 32


class Pass(NamedTuple):
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


class Points(NamedTuple):
    """Points, by block on the devices.

    Attributes:
        blocks: starts a pass: yields blocks [B, D] of full tiles, sharded over the mesh, and the number of rows that
            are points; the other rows are zeros.
        mesh: the devices, along the axis `points`.
        tile: rows whose distances a device holds at a time.
    """

    blocks: Callable[[], Iterator[tuple[jax.Array, int]]]
    mesh: Mesh
    tile: int


def put_points(x: np.ndarray, k: int, devices: list[jax.Device]) -> Points:
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
            release(x)

    if isinstance(x, np.memmap):
        return Points(put, mesh, tile)
    resident = list(put())
    return Points(lambda: iter(resident), mesh, tile)


def release(x: np.ndarray) -> None:
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


def run_pass(points: Points, centroids: np.ndarray) -> Pass:
    """Assign all points to their nearest centroids, and sum them up by cluster.

    Raises:
        ValueError: a point or centroid is not finite.
    """
    sums, counts = np.zeros(centroids.shape, np.float64), np.zeros(len(centroids), np.int64)
    labels, distances = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    on_device = jnp.asarray(centroids)

    def collect(block: tuple[jax.Array, ...], rows: int) -> None:
        nonlocal sums, counts
        block_sums, block_counts, block_labels, block_distances = map(np.asarray, block)
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
    for arrays, rows in waiting:
        collect(arrays, rows)
    return Pass(sums, counts, np.concatenate(labels), np.concatenate(distances))


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

    split, replicated = P("points"), P()
    return jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=(split, replicated, replicated),
        out_specs=(replicated, replicated, split, split),
        check_vma=False,
    )(x, points, centroids)


def _padded(centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return |c|^2 [K] and -2c [D, K], padded to full groups with centroids that nothing is near."""
    rest = -len(centroids) % _GROUP
    norms = jnp.pad(jnp.sum(centroids * centroids, axis=1), (0, rest), constant_values=jnp.inf)
    return norms, jnp.pad(-2 * centroids.T, ((0, 0), (0, rest)))


def _nearest(x: jax.Array, norms: jax.Array, table: jax.Array) -> jax.Array:
    """Return labels int32 [N], the first of ties: argmin over k of |c|^2 - 2xc."""
    distances = (norms[None, :] + dot(x, table)).reshape(len(x), -1, _GROUP)
    group = _first_minimum(jnp.min(distances, axis=2))
    return group * _GROUP + _first_minimum(jnp.take_along_axis(distances, group[:, None, None], axis=1)[:, 0])


def _first_minimum(values: jax.Array) -> jax.Array:
    """Compute argmin int32 [N] over the rows of [N, M]; two plain minima are faster than XLA's argmin on CPU."""
    index = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :]
    return jnp.min(jnp.where(values <= jnp.min(values, axis=1, keepdims=True), index, values.shape[1]), axis=1)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply matrices in full float32 on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
