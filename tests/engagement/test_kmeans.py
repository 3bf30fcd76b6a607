"""K-means against scikit-learn's Lloyd from the same start, and the corners: duplicates, empty clusters, large k."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans

from vise_jax.engagement import kmeans, kmeans_passes
from vise_jax.errors import UserError


def blobs(n: int, d: int, centers: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 3, (centers, d))[rng.integers(centers, size=n)] + rng.normal(0, 1, (n, d))).astype(np.float32)


@pytest.mark.parametrize(("n", "d", "k"), [(9_001, 16, 40), (500, 3, 7), (64, 5, 64)])
def test_same_start_gives_the_inertia_of_scikit_learn(n: int, d: int, k: int) -> None:
    x = blobs(n, d, 60)
    start = x[np.random.default_rng(1).choice(n, k, replace=False)]
    reference = KMeans(k, init=start, n_init=1, algorithm="lloyd", tol=0, max_iter=15).fit(x)
    centroids, inertia = kmeans.fit(x, k, init=start, iterations=15, seed=0)
    assert inertia == pytest.approx(reference.inertia_, rel=1e-4, abs=1e-6)
    assert centroids.shape == (k, d)
    assert centroids.dtype == np.float32
    labels = kmeans.assign(x, centroids)
    assert labels.dtype == np.int32
    assert (labels == reference.predict(x)).mean() > 0.999


def test_empty_clusters_are_reseeded_as_in_scikit_learn() -> None:
    x = blobs(2_000, 4, 10)
    start = np.concatenate([x[:6], np.full((4, 4), 1e3, np.float32) + np.arange(4, dtype=np.float32)[:, None]])
    reference = KMeans(10, init=start, n_init=1, algorithm="lloyd", tol=0, max_iter=20).fit(x)
    centroids, inertia = kmeans.fit(x, 10, init=start, iterations=20, seed=0)
    assert len(np.unique(kmeans.assign(x, centroids))) == 10
    assert inertia == pytest.approx(reference.inertia_, rel=1e-4)


def test_own_start_is_as_good_as_scikit_learns() -> None:
    x = blobs(5_000, 8, 30)
    ours = np.median([kmeans.fit(x, 30, iterations=25, seed=seed).inertia for seed in range(5)])
    theirs = np.median([KMeans(30, n_init=1, max_iter=25, random_state=seed).fit(x).inertia_ for seed in range(5)])
    assert ours <= 1.05 * theirs


def test_same_seed_gives_the_same_bytes() -> None:
    x = blobs(3_000, 8, 12)
    first, second, other = (kmeans.fit(x, 12, iterations=5, seed=seed).centroids for seed in (3, 3, 4))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


def test_each_distinct_point_gets_a_cluster_though_most_are_the_same() -> None:
    x = np.concatenate([np.zeros((50_000, 3), np.float32), np.eye(3, dtype=np.float32), -np.eye(3, dtype=np.float32)])
    centroids, inertia = kmeans.fit(x, 7, iterations=25, seed=0)
    assert inertia == pytest.approx(0, abs=1e-9)
    assert len(np.unique(kmeans.assign(x, centroids))) == 7


def test_more_clusters_than_distinct_points_is_refused_unless_fewer_are_allowed() -> None:
    x = np.repeat(np.eye(5, dtype=np.float32), 20, axis=0)
    with pytest.raises(UserError, match=r"6 clusters .* only 5 distinct points.*allow_fewer_clusters"):
        kmeans.fit(x, 6, iterations=3, seed=0)
    centroids, inertia = kmeans.fit(x, 6, iterations=10, seed=0, allow_fewer=True)
    assert centroids.shape == (5, 5)
    assert inertia == pytest.approx(0, abs=1e-9)


def test_minus_zero_is_no_other_point_than_zero() -> None:
    x = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]], np.float32)
    with pytest.raises(UserError, match="only 1 distinct"):
        kmeans.fit(x, 2, iterations=1, seed=0)


def test_equal_distances_go_to_the_first_centroid_and_no_points_to_none() -> None:
    centroids = np.array([[1, 0], [-1, 0], [1, 0]], np.float32)
    assert kmeans.assign(np.array([[0, 1], [2, 0]], np.float32), centroids).tolist() == [0, 0]
    assert kmeans.assign(np.zeros((0, 2), np.float32), centroids).shape == (0,)


@pytest.mark.parametrize("x", [np.full((5, 2), np.nan, np.float32), np.zeros(5, np.float32)])
def test_points_that_are_no_points(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        kmeans.fit(x, 1, iterations=1, seed=0)


def on_disk(x: np.ndarray, path: Path) -> np.memmap:
    np.save(path, x)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("block_bytes", [2**12, 2**26])
def test_points_streamed_from_disk_in_blocks_give_what_points_in_memory_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    x = blobs(3_001, 8, 12)
    expected = kmeans.fit(x, 12, iterations=6, seed=0)
    monkeypatch.setattr(kmeans_passes, "_BLOCK_BYTES", block_bytes)
    streamed = kmeans.fit(on_disk(x, tmp_path / "x.npy"), 12, iterations=6, seed=0)
    np.testing.assert_allclose(streamed.centroids, expected.centroids, rtol=1e-5, atol=1e-5)
    assert streamed.inertia == pytest.approx(expected.inertia, rel=1e-6)
    assert (
        kmeans.assign(on_disk(x, tmp_path / "x.npy"), expected.centroids) == kmeans.assign(x, expected.centroids)
    ).all()


def test_one_device_gives_the_bits_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    x = blobs(4_003, 8, 12)
    assert jax.local_device_count() == 4
    four = kmeans.fit(x, 12, iterations=6, seed=0)
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    one = kmeans.fit(x, 12, iterations=6, seed=0)
    assert one.centroids.tobytes() == four.centroids.tobytes()
    assert one.inertia == four.inertia


def test_shares_of_processes_add_up_to_all_blocks(tmp_path: Path) -> None:
    x = blobs(4_003, 8, 12)
    for points in (x, on_disk(x, tmp_path / "x.npy")):
        shares = [kmeans_passes.put_points(points, 12, jax.devices(), process, 3) for process in range(3)]
        blocks = [[np.asarray(block)[:rows] for block, rows in share.blocks()] for share in shares]
        np.testing.assert_array_equal(np.concatenate(list(itertools.chain(*blocks))), x)
        assert max(map(len, blocks)) == shares[0].most_blocks
        assert min(map(len, blocks)) > 0


class Killed(BaseException):
    pass


def kill_at(iteration: int):
    calls = []

    def after_iteration(inertia: float) -> None:
        calls.append(inertia)
        if len(calls) == iteration:
            raise Killed

    return after_iteration


@pytest.mark.parametrize("batch_size", [0, 200])
def test_a_stopped_fit_resumes_to_the_same_bits(tmp_path: Path, batch_size: int) -> None:
    x, state = blobs(2_000, 8, 3), tmp_path / "state.safetensors"
    options = {"iterations": 12, "seed": 3, "batch_size": batch_size}
    expected = kmeans.fit(x, 30, **options)
    with pytest.raises(Killed):
        kmeans.fit(x, 30, **options, state=state, save_every=2, after_iteration=kill_at(8))
    iterations: list[float] = []
    resumed = kmeans.fit(x, 30, **options, state=state, save_every=2, after_iteration=iterations.append)
    assert len(iterations) <= 12 - 6
    assert resumed.centroids.tobytes() == expected.centroids.tobytes()
    assert resumed.inertia == expected.inertia
    with pytest.raises(UserError, match=r"state\.safetensors holds the state of another K-means"):
        kmeans.fit(x, 29, **options, state=state)
    flipped = bytearray(state.read_bytes())
    flipped[-20] ^= 1
    state.write_bytes(flipped)
    with pytest.raises(UserError, match=r"holds no state .*SHA-256"):
        kmeans.fit(x, 30, **options, state=state)
    state.write_bytes(b"half of it")
    with pytest.raises(UserError, match="holds no state"):
        kmeans.fit(x, 30, **options, state=state)


def test_mini_batches_are_running_means_over_the_batches_points() -> None:
    x, start = blobs(600, 4, 5), blobs(600, 4, 5)[[0, 100, 200]]
    centroids, seen = start.astype(np.float64), np.zeros(3)
    for iteration in range(4):
        batch = x[np.sort(np.random.default_rng([7, iteration]).choice(600, 50, replace=False))]
        labels = ((batch[:, None] - centroids[None]) ** 2).sum(2).argmin(1)
        for cluster in range(3):
            for point in batch[labels == cluster]:
                seen[cluster] += 1
                centroids[cluster] += (point - centroids[cluster]) / seen[cluster]
    found = kmeans.fit(x, 3, init=start, iterations=4, seed=7, batch_size=50)
    np.testing.assert_allclose(found.centroids, centroids, rtol=1e-4)


def test_mini_batches_come_near_lloyd_and_leave_no_cluster_empty() -> None:
    x = blobs(5_000, 8, 30)
    lloyd = kmeans.fit(x, 30, iterations=25, seed=0)
    batches = kmeans.fit(x, 30, iterations=60, seed=0, batch_size=500)
    assert batches.inertia < 1.1 * lloyd.inertia
    far = np.concatenate([x[:20], np.full((10, 8), 1e4, np.float32) + np.arange(10, dtype=np.float32)[:, None]])
    mended = kmeans.fit(x, 30, init=far, iterations=60, seed=0, batch_size=500)
    assert len(np.unique(kmeans.assign(x, mended.centroids))) == 30


def test_a_tolerance_stops_when_the_inertia_hardly_falls() -> None:
    x = blobs(3_000, 8, 40)
    falls: list[float] = []
    kmeans.fit(x, 20, iterations=40, seed=0, tolerance=1e-2, after_iteration=falls.append)
    shares = -np.diff(falls) / falls[1:]
    assert 2 < len(falls) < 40
    assert (shares[:-1] >= 1e-2).all()
    assert shares[-1] < 1e-2


def test_a_fit_that_has_converged_is_not_gone_on_with(tmp_path: Path) -> None:
    x, state = blobs(3_000, 8, 40), tmp_path / "state.safetensors"
    options = {"iterations": 40, "seed": 0, "tolerance": 1e-2}
    expected = kmeans.fit(x, 20, **options, state=state)
    again: list[float] = []
    found = kmeans.fit(x, 20, **options, state=state, after_iteration=again.append)
    assert found.centroids.tobytes() == expected.centroids.tobytes()
    assert not again
