"""Neighbors, held against scikit-learn's."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from vise_jax.data import datasets
from vise_jax.errors import UserError
from vise_jax.inference import extract, feature_files, neighbors

SETTINGS = {"batch_size": 4, "threads": 1, "max_image_pixels": 10**6}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("images")
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(directory / f"{number:02d}.png")
    return directory


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_the_nearest_are_scikit_learn_s(trained, directory, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(extract, "_PART", 4)
    images, path = datasets.open_unlabeled(directory), tmp_path / f"features.{ending}"
    preprocessing = trained.preprocessing.at(12)
    extract.export(trained, images, preprocessing, path, **SETTINGS)
    rows = np.concatenate([rows for _, rows in feature_files.read(path)])
    distances, numbers = NearestNeighbors(n_neighbors=5, metric="cosine").fit(rows).kneighbors(rows[7:8])
    found = neighbors.nearest(trained, path, datasets.open_unlabeled(directory / "07.png"), 5, 10**6)
    assert [name for name, _ in found] == [images.names[number] for number in numbers[0]]
    np.testing.assert_allclose([cosine for _, cosine in found], 1 - distances[0], atol=1e-5)
    assert found[0] == ("07.png", pytest.approx(1, abs=1e-5))
    assert len(neighbors.nearest_to(rows[0], path, 99)) == 11


def test_zeros_and_equal_ones(trained, directory, tmp_path, monkeypatch):
    table = [(["a", "b"], [[0, 0], [1, 1]]), (["c", "d"], [[-1, 0], [2, 2]])]
    monkeypatch.setattr(feature_files, "read", lambda _: ((names, np.array(rows, np.float32)) for names, rows in table))
    found = neighbors.nearest_to(np.array([3, 3], np.float32), tmp_path, 4)
    assert [name for name, _ in found] == ["b", "d", "a", "c"]
    assert [cosine for _, cosine in found] == pytest.approx([1, 1, 0, -(0.5**0.5)])


def test_features_of_another_encoder_and_several_queries_are_refused(trained, directory, tmp_path):
    images, path = datasets.open_unlabeled(directory), tmp_path / "features.npz"
    extract.export(trained, images, trained.preprocessing, path, **SETTINGS)
    other = dataclasses.replace(
        trained, preprocessing=dataclasses.replace(trained.preprocessing, interpolation="bicubic")
    )
    with pytest.raises(UserError, match="were made by another encoder"):
        neighbors.nearest(other, path, images, 5, 10**6)
    with pytest.raises(UserError, match="has 11 images: name one"):
        neighbors.nearest(trained, path, images, 5, 10**6)
