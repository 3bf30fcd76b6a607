"""Time K-means beside faiss and scikit-learn from the same start, and measure the memory of points on disk.

    python benchmarks/kmeans.py
    python benchmarks/kmeans.py --points 50000 --dimensions 64 --clusters 500 --rounds 5

Points are overlapping Gaussian blobs scaled to length 1, as phi_C is. Each does the same number of Lloyd
iterations from the same points; ours and scikit-learn's also compute the final inertia, which faiss does not. Each is a
process of its own; they take turns, round by round. The peak memory is that of a process that fits points from a
memory-mapped file.
faiss: pip install faiss-cpu.
The last line is one JSON object; a ratio above 1 means that this project is ahead.
"""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import jax
import numpy as np
from absl import flags
from measuring import Prepared, Variant, peak_bytes, ratio, take_turns, timed

from vise_jax import cli
from vise_jax.engagement import kmeans

QUICK = flags.DEFINE_bool("quick", False, "Few points: a smoke test.")
POINTS = flags.DEFINE_integer("points", None, "Points; by default 200,000.", 1)
DIMENSIONS = flags.DEFINE_integer("dimensions", 256, "Their dimensions.", 1)
CLUSTERS = flags.DEFINE_integer("clusters", None, "Clusters; by default 1,000.", 1)
ITERATIONS = flags.DEFINE_integer("iterations", 10, "Lloyd iterations.", 1)
ROUNDS = flags.DEFINE_integer("rounds", None, "Turns that each takes; by default 5.", 1)
DISK_POINTS = flags.DEFINE_integer("disk_points", None, "Points on disk, of 128 dimensions; by default 2,000,000.", 1)
FILE = flags.DEFINE_string("file", None, "For the benchmark itself: fit the points of this file, print peak memory.")


def main(words: list[str]) -> None:
    cli.no_words(words)
    quick = QUICK.value
    clusters = CLUSTERS.value or (50 if quick else 1000)
    if FILE.value:
        _fit_file(Path(FILE.value), clusters)
        return
    count, rounds = POINTS.value or (5_000 if quick else 200_000), ROUNDS.value or (15 if quick else 5)
    fits = {name: Variant(prepare, name, count, DIMENSIONS.value, clusters, ITERATIONS.value) for name in installed()}
    seconds = take_turns(fits, rounds, 1)
    inertia = {name: fit.end() for name, fit in fits.items()}
    for name, times in seconds.items():
        print(f"{name}: {np.median(times):.2f} s, inertia {inertia[name]:.6g}", flush=True)
    ours = 1 / seconds.pop("vise_jax")
    ratios = {name: ratio(ours, 1 / times) for name, times in seconds.items()}
    for name, found in ratios.items():
        print(f"{found['median']:.2f} times {name} ({found['low']:.2f} to {found['high']:.2f})")
    disk = _on_disk(DISK_POINTS.value or (20_000 if quick else 2_000_000), clusters)
    print(
        f"{disk['points']:,} x 128 from disk: {disk['seconds']:.1f} s for {ITERATIONS.value} iterations, peak memory "
        f"{disk['peak_bytes'] / 2**30:.2f} GiB, of which {disk['idle_bytes'] / 2**30:.2f} GiB before it began"
    )
    print(
        json.dumps(
            {
                "benchmark": "kmeans",
                "device": jax.devices()[0].device_kind,
                "ratios": ratios,
                "points": count,
                "dimensions": DIMENSIONS.value,
                "clusters": clusters,
                "iterations": ITERATIONS.value,
                "rounds": rounds,
                "inertia": inertia,
                "inertia_above_scikit_learn": inertia["vise_jax"] / inertia["scikit-learn"] - 1,
                "disk": disk,
                "versions": {
                    module: importlib.metadata.version(module)
                    for module in ("jax", "scikit-learn", *(("faiss-cpu",) if "faiss" in ratios else ()))
                },
            }
        )
    )


def blobs(count: int, dimensions: int, centers: int) -> np.ndarray:
    """Draw points, float32 [count, dimensions], rows of length 1."""
    generator = np.random.default_rng(0)
    means = generator.normal(size=(centers, dimensions)).astype(np.float32)
    x = means[generator.integers(centers, size=count)]
    x += 1.5 * generator.standard_normal(x.shape, np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def installed() -> list[str]:
    """Return the libraries that can run here."""
    if importlib.util.find_spec("faiss"):
        return ["vise_jax", "scikit-learn", "faiss"]
    print("faiss is not installed (pip install faiss-cpu): not compared with.")
    return ["vise_jax", "scikit-learn"]


def prepare(name: str, count: int, dimensions: int, clusters: int, iterations: int) -> Prepared:
    """Return a function that times fits of a library, and one for the inertia of its last centroids."""
    x = blobs(count, dimensions, 2 * clusters)
    start = x[np.random.default_rng(1).choice(count, clusters, replace=False)]
    fit = {"vise_jax": _ours, "scikit-learn": _scikit_learn, "faiss": _faiss}[name]
    inertia: list[float] = []

    def run(fits: int) -> None:
        inertia.extend(fit(x, start, iterations) for _ in range(fits))

    return timed(run), lambda: inertia[-1]


def _ours(x: np.ndarray, start: np.ndarray, iterations: int) -> float:
    return kmeans.fit(x, len(start), init=start, iterations=iterations, seed=0).inertia


def _scikit_learn(x: np.ndarray, start: np.ndarray, iterations: int) -> float:
    from sklearn.cluster import KMeans

    fitted = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(x)
    return float(fitted.inertia_)


def _faiss(x: np.ndarray, start: np.ndarray, iterations: int) -> float:
    import faiss

    every = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
    fitted = faiss.Kmeans(x.shape[1], len(start), niter=iterations, **every)
    fitted.train(x, init_centroids=start)
    return float(np.asarray(fitted.obj)[-1])


def _on_disk(count: int, clusters: int) -> dict[str, float]:
    """Fit points from a file in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "points.npy"
        points = np.lib.format.open_memmap(path, "w+", np.float32, (count, 128))
        for first in range(0, count, 100_000):
            points[first : first + 100_000] = blobs(min(100_000, count - first), 128, 2 * clusters)
        points.flush()
        del points
        command = [sys.executable, __file__, "--file", path, "--clusters", clusters, "--iterations", ITERATIONS.value]
        output = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _fit_file(path: Path, clusters: int) -> None:
    x = np.load(path, mmap_mode="r")
    jax.block_until_ready(jax.numpy.zeros(1))
    idle = peak_bytes()
    began = time.perf_counter()
    fitted = kmeans.fit(x, clusters, init=np.array(x[:clusters]), iterations=ITERATIONS.value, seed=0)
    seconds = time.perf_counter() - began
    found = {"points": len(x), "seconds": seconds, "inertia": fitted.inertia}
    print(json.dumps({**found, "peak_bytes": peak_bytes(), "idle_bytes": idle}))


if __name__ == "__main__":
    cli.run(main, __doc__)
