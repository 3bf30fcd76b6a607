"""K-means against scikit-learn's Lloyd from the same start, and the corners: duplicates, empty clusters, large k."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from vise_jax.engagement import kmeans
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
