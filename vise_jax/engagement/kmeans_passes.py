"""Passes of K-means over the points, block by block on the devices of all processes.

A pass goes through tiles, so that the distances of one tile to all centroids are the largest array: never points x
centroids. An array in memory stays on the devices; an `np.memmap` is streamed from the disk in each pass. Products are
float32 on every device. Sums are float32 within a block of points, and float64 over blocks, so that the number of
devices and processes decides no more than the rounding of float64.
"""

import math
import mmap
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vise_jax import hosts

# Distances held at a time on each device, and points at most: few enough for a core's cache, enough for an accelerator.
_CPU_TILE, _ACCELERATOR_TILE = (2**20, 1024), (2**26, 65536)
_SMALLEST_TILE = 64
# Bytes of points that go to a device at a time, and the number of blocks that even few points are divided into.
_BLOCK_BYTES, _LEAST_BLOCKS = 2**26, 4
# XLA's argmin is a scalar loop on CPU. Selections between rows, one centroid of each group, are not.
_GROUP = 32


class Pass(NamedTuple):
    """Results of a pass over the points.

    Attributes:
        sums: float64 [k, D], of the points of each cluster, over all processes.
        counts: int64 [k], of the points of each cluster, over all processes.
        inertia: sum of the squared distances to the centroids, over all processes.
        labels: int32 [N], the cluster of each point of this process.
        distances: float32 [N], squared, to its centroid.
    """

    sums: np.ndarray
    counts: np.ndarray
    inertia: float
    labels: np.ndarray
    distances: np.ndarray


class Points(NamedTuple):
    """The points of this process, by block on its devices.

    Attributes:
        blocks: starts a pass: yields blocks [B, D] of full tiles, each on one device, and the number of rows that are
            points; the other rows are zeros.
        devices: of this process.
        tile: rows whose distances a device holds at a time.
        size: rows of a block.
        most_blocks: number of blocks of the process that has the most.
        processes: number of processes that the points are divided among.
    """

    blocks: Callable[[], Iterator[tuple[jax.Array, int]]]
    devices: list[jax.Device]
    tile: int
    size: int
    most_blocks: int
    processes: int


def put_points(x: np.ndarray, k: int, devices: list[jax.Device], process: int, processes: int) -> Points:
    """Put this process's share of an array on its devices once; put that of an `np.memmap` there in each pass again.

    Neither devices nor processes decide what a block is.
    """
    rows = max(1, min(_most_rows(x), -(-len(x) // _LEAST_BLOCKS)))
    tile = _tile(rows, k)
    size = -(-rows // tile) * tile
    blocks = -(-len(x) // size)
    mine = range(blocks * process // processes, blocks * (process + 1) // processes)

    def put() -> Iterator[tuple[jax.Array, int]]:
        for number in mine:
            part = np.asarray(x[number * size : (number + 1) * size])
            padded = np.pad(part, ((0, size - len(part)), (0, 0)))
            yield jax.device_put(padded, devices[number % len(devices)]), len(part)
            release(x)

    rest = (devices, tile, size, -(-blocks // processes), processes)
    if isinstance(x, np.memmap):
        return Points(put, *rest)
    resident = list(put())
    return Points(lambda: iter(resident), *rest)


def release(x: np.ndarray) -> None:
    """Release the pages of an `np.memmap` that were read: they would count as this process's memory."""
    if isinstance(x, np.memmap) and (mapping := getattr(x, "_mmap", None)) is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def _most_rows(x: np.ndarray) -> int:
    return max(1, _BLOCK_BYTES // max(1, x.itemsize * x.shape[1]))


def _tile(points: int, k: int) -> int:
    """Return the number of points in a tile: a power of two, so that few sizes are compiled."""
    distances, largest = _CPU_TILE if jax.default_backend() == "cpu" else _ACCELERATOR_TILE
    fitting = 1 << max(0, (distances // k).bit_length() - 1)
    needed = 1 << max(0, points - 1).bit_length()
    return max(_SMALLEST_TILE, min(largest, fitting, needed))


def run_pass(points: Points, centroids: np.ndarray) -> Pass:
    """Assign the points to their nearest centroids, and sum them up by cluster. Every process has to call it.

    Raises:
        ValueError: a point or centroid is not finite.
    """
    sums, counts = np.zeros(centroids.shape, np.float64), np.zeros(len(centroids), np.int64)
    labels, distances = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    inertias = np.zeros(points.most_blocks)
    on_each = {device: jax.device_put(centroids, device) for device in points.devices}

    def collect(block: tuple[jax.Array, ...], rows: int) -> None:
        nonlocal sums, counts
        block_sums, block_counts, block_labels, block_distances = map(np.asarray, block)
        sums += block_sums
        counts += block_counts
        inertias[len(labels) - 1] = block_distances[:rows].sum(dtype=np.float64)
        labels.append(block_labels[:rows])
        distances.append(block_distances[:rows])

    # Every device has a block to work on while the next one is read.
    waiting: list[tuple[tuple[jax.Array, ...], int]] = []
    for block, rows in points.blocks():
        centroids_there = on_each[next(iter(block.devices()))]
        waiting.append((_work(block, jnp.int32(rows), centroids_there, points.tile), rows))
        if len(waiting) > len(points.devices):
            collect(*waiting.pop(0))
    for arrays, rows in waiting:
        collect(arrays, rows)
    inertia = math.fsum(np.concatenate(_gather(points, inertias)))
    if not math.isfinite(inertia):
        raise ValueError("x and init have to be finite")
    sums, counts = (np.sum(_gather(points, array), axis=0) for array in (sums, counts))
    return Pass(sums, counts, inertia, np.concatenate(labels), np.concatenate(distances))


def gather_rows(points: Points, own: np.ndarray) -> np.ndarray:
    """Return the values of all points, from those of each process's: [N]. Every process has to call it."""
    padded = np.zeros(points.most_blocks * points.size, own.dtype)
    padded[: len(own)] = own
    rows = [int(number) for number in _gather(points, np.array(len(own)))]
    return np.concatenate([values[:count] for values, count in zip(_gather(points, padded), rows, strict=True)])


def _gather(points: Points, array: np.ndarray) -> list[np.ndarray]:
    return hosts.gather(array) if points.processes > 1 else [array]


def nearest(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each point, the first of ties: int32 [N]. It works on one device.

    Raises:
        ValueError: a point or centroid is not finite.
    """
    if not np.isfinite(centroids).all():
        raise ValueError("x and init have to be finite")
    rows = _most_rows(x)
    tile = _tile(min(len(x), rows), len(centroids))
    labels = [np.zeros(0, np.int32)]
    for first in range(0, len(x), rows):
        part = np.asarray(x[first : first + rows])
        if not np.isfinite(part).all():
            raise ValueError("x and init have to be finite")
        padded = np.pad(part, ((0, -len(part) % tile), (0, 0)))
        labels.append(np.asarray(_labels(padded, centroids, tile))[: len(part)])
        release(x)
    return np.concatenate(labels)


@partial(jax.jit, static_argnames="tile")
def _labels(x: jax.Array, centroids: jax.Array, tile: int) -> jax.Array:
    norms, table = _padded(centroids)
    return jax.lax.map(lambda rows: _nearest(rows, norms, table), x.reshape(-1, tile, x.shape[1])).ravel()


# Sums and counts so far, and the number of the next row.
_Carry = tuple[jax.Array, jax.Array, jax.Array]


@partial(jax.jit, static_argnames="tile")
def _work(x: jax.Array, points: jax.Array, centroids: jax.Array, tile: int) -> tuple[jax.Array, ...]:
    """Compute sums [k, D] and counts [k] of the clusters, labels [B] and squared distances [B] of a block [B, D]."""
    k = len(centroids)
    norms, table = _padded(centroids)

    def add(carry: _Carry, rows: jax.Array) -> tuple[_Carry, tuple[jax.Array, jax.Array]]:
        sums, counts, first = carry
        labels = _nearest(rows, norms, table)
        distances = jnp.sum((rows - centroids[labels]) ** 2, axis=1)
        is_point = (first + jnp.arange(tile, dtype=jnp.int32) < points).astype(jnp.int32)
        sums += jax.ops.segment_sum(rows, labels, num_segments=k)
        counts += jax.ops.segment_sum(is_point, labels, num_segments=k)
        return (sums, counts, first + tile), (labels, distances)

    start = (jnp.zeros_like(centroids), jnp.zeros(k, jnp.int32), jnp.int32(0))
    (sums, counts, _), (labels, distances) = jax.lax.scan(add, start, x.reshape(-1, tile, x.shape[1]))
    return sums, counts, labels.ravel(), distances.ravel()


def _padded(centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return |c|^2 [32, G] and -2c [D, 32 * G] of groups of 32 centroids, the first of all groups first.

    The last group is filled up with centroids that nothing is near.
    """
    rest = -len(centroids) % _GROUP
    norms = jnp.pad(jnp.sum(centroids * centroids, axis=1), (0, rest), constant_values=jnp.inf)
    table = jnp.pad(-2 * centroids, ((0, rest), (0, 0))).reshape(-1, _GROUP, centroids.shape[1])
    return norms.reshape(-1, _GROUP).T, table.transpose(2, 1, 0).reshape(centroids.shape[1], -1)


def _nearest(x: jax.Array, norms: jax.Array, table: jax.Array) -> jax.Array:
    """Return labels int32 [N], the first of ties: argmin over k of |c|^2 - 2xc."""
    products = dot(x, table).reshape(len(x), *norms.shape)
    smallest = jnp.full((len(x), norms.shape[1]), jnp.inf)
    number = jnp.zeros(smallest.shape, jnp.int32)
    for row in range(_GROUP):
        distances = norms[None, row] + products[:, row]
        nearer = distances < smallest
        number = jnp.where(nearer, row, number)
        smallest = jnp.where(nearer, distances, smallest)
    group = _first_minimum(smallest)
    return group * _GROUP + jnp.take_along_axis(number, group[:, None], axis=1)[:, 0]


def _first_minimum(values: jax.Array) -> jax.Array:
    """Compute argmin int32 [N] over the rows of [N, M]; two plain minima are faster than XLA's argmin on CPU."""
    index = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :]
    return jnp.min(jnp.where(values <= jnp.min(values, axis=1, keepdims=True), index, values.shape[1]), axis=1)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply matrices in full float32 on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
