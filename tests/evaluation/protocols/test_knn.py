"""Nearest neighbors against scikit-learn's."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from vise_jax.evaluation.protocols import knn
from vise_jax.preprocessing import Preprocessing


@pytest.mark.parametrize("k", [1, 5, 60, 500])
def test_votes_are_scikit_learns(k):
    draw = np.random.default_rng(0)
    train, test = draw.normal(size=(60, 8)).astype(np.float32), draw.normal(size=(1500, 8)).astype(np.float32)
    labels = draw.integers(0, 4, 60)
    peer = KNeighborsClassifier(min(k, 60), metric="cosine", weights=lambda distance: np.exp(-distance / 0.5))
    expected = peer.fit(train, labels).predict(test)
    found = knn.predict(train, labels, test, 4, k=k, temperature=0.5)
    assert (found == expected).mean() > 0.999


def test_an_encoder_that_sees_the_color_tells_colors_apart(tmp_path):
    for split in ("train", "test"):
        for label, color in {"red": (200, 0, 0), "blue": (0, 0, 200)}.items():
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(5):
                file = io.BytesIO()
                Image.new("RGB", (40, 30), tuple(np.add(color, number))).save(file, "PNG")
                (tmp_path / split / label / f"{number}.png").write_bytes(file.getvalue())
    evaluate = knn.watcher(tmp_path, Preprocessing.imagenet(24), batch_size=8, k=3)
    shapes = []

    def encode(images: np.ndarray) -> np.ndarray:
        shapes.append(images.shape)
        return images.mean((1, 2)).astype(np.float32)

    assert evaluate(encode) == {"knn_accuracy": 1.0}
    assert set(shapes) == {(8, 24, 24, 3)}
    assert evaluate(lambda images: np.ones((len(images), 2), np.float32)) == {"knn_accuracy": 0.5}
