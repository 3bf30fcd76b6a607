"""Nearest neighbors against scikit-learn's."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from vise_jax.errors import UserError
from vise_jax.evaluation.protocols import knn
from vise_jax.preprocessing import Preprocessing


@pytest.mark.parametrize("k", [1, 5, 60, 500])
def test_votes_are_scikit_learns(k):
    draw = np.random.default_rng(0)
    train, test = draw.normal(size=(60, 8)).astype(np.float32), draw.normal(size=(1500, 8)).astype(np.float32)
    labels = draw.integers(0, 4, 60)
    peer = KNeighborsClassifier(min(k, 60), metric="cosine", weights=lambda distance: np.exp(-distance / 0.5))
    expected = peer.fit(train, labels).predict(test)
    predictions = knn.predict(train, labels, test, 4, k=k, temperature=0.5)
    assert (predictions == expected).mean() > 0.999


def test_the_probe_is_right_if_the_features_are_the_color(tmp_path):
    for split in ("train", "test"):
        for label, color in {"red": (200, 0, 0), "blue": (0, 0, 200)}.items():
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(5):
                file = io.BytesIO()
                Image.new("RGB", (40, 30), tuple(np.add(color, number))).save(file, "PNG")
                (tmp_path / split / label / f"{number}.png").write_bytes(file.getvalue())
    probe = knn.make_probe(tmp_path, Preprocessing.imagenet(24), batch_size=8, k=3)
    shapes = []

    def encode(images: np.ndarray) -> np.ndarray:
        shapes.append(images.shape)
        return images.mean((1, 2)).astype(np.float32)

    assert probe(encode) == {"knn_accuracy": 1.0}
    assert set(shapes) == {(8, 24, 24, 3)}
    assert probe(lambda images: np.ones((len(images), 2), np.float32)) == {"knn_accuracy": 0.5}


def test_the_probe_names_all_corrupt_images(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(9):
            Image.new("RGB", (30, 30)).save(tmp_path / label / f"{number}.png")
    for name in ("a/0.png", "b/8.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 of 18 images in .* \(a/0\.png, b/8\.png\)"):
        knn.make_probe(tmp_path, Preprocessing.imagenet(24), batch_size=8)
