"""The parts of the K-means benchmark: all libraries start from and end at the same points."""

import importlib.util

import numpy as np
import pytest


def test_points_are_of_length_1_and_the_same_each_time(load_benchmark) -> None:
    benchmark = load_benchmark("kmeans")
    x = benchmark.blobs(500, 8, 6)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    assert x.dtype == np.float32
    assert (x == benchmark.blobs(500, 8, 6)).all()


def test_every_library_ends_near_the_same_inertia(load_benchmark) -> None:
    benchmark = load_benchmark("kmeans")
    inertia = {}
    for name in benchmark.installed():
        turn, last_inertia = benchmark.prepare(name, 2_000, 8, 10, 5)
        assert turn(1) > 0
        inertia[name] = last_inertia()
    assert {"vise_jax", "scikit-learn"} <= inertia.keys()
    assert ("faiss" in inertia) == (importlib.util.find_spec("faiss") is not None)
    assert inertia["vise_jax"] == pytest.approx(inertia["scikit-learn"], rel=1e-3)
    # Of the centroids before the last step.
    assert inertia.get("faiss", inertia["vise_jax"]) == pytest.approx(inertia["vise_jax"], rel=2e-2)
