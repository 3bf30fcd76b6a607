"""Nearest neighbors against scikit-learn's."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation import metrics
from vise_jax.evaluation.protocols import knn
from vise_jax.evaluation.splits import Split
from vise_jax.preprocessing import Preprocessing


@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_votes_are_scikit_learns(temperature):
    draw = np.random.default_rng(0)
    train, test = draw.normal(size=(60, 8)).astype(np.float32), draw.normal(size=(1500, 8)).astype(np.float32)
    labels = draw.integers(0, 4, 60)
    ks = [1, 5, 60, 500]
    shares = knn.votes(train, labels, test, 4, k=ks, temperature=temperature)
    for k, of_k in zip(ks, shares, strict=True):
        peer = KNeighborsClassifier(min(k, 60), metric="cosine", weights=lambda d: np.exp(-d / temperature))
        expected = peer.fit(train.astype(np.float64), labels).predict_proba(test.astype(np.float64))
        np.testing.assert_allclose(of_k, expected, atol=1e-4)


def test_votes_neither_overflow_nor_vanish():
    train, test = np.array([[1, 0], [-1, 0]], np.float32), np.array([[-1, 0.01], [0, 0]], np.float32)
    shares = knn.votes(train, np.array([0, 1]), test, 2, k=[2], temperature=1e-4)
    np.testing.assert_allclose(shares[0], [[0, 1], [0.5, 0.5]], atol=1e-6)


def test_validation_selects_the_number_of_neighbors():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 300).astype(np.int32)
    features = (np.eye(2)[labels] + draw.normal(size=(300, 2))).astype(np.float32)
    names = tuple(f"{number:03d}" for number in range(300))
    dataset = Dataset("blobs", names, labels, ("a", "b"), None, None, None, "0", ())
    split = Split(3, *np.split(np.arange(300), 3))
    evaluator = knn.KNNEvaluator(
        lambda encoders: (features, dataset), lambda dataset: [split], primary="accuracy", k=[1, 50], temperature=1.0
    )
    values = evaluator.run(None)
    (outcome,) = evaluator.outcomes
    assert outcome.sweep[1]["validation"] > outcome.sweep[0]["validation"]
    assert evaluator.selection()["selected"] == [{"k": 50}]
    assert values["accuracy"] == outcome.sweep[1]["test"] == metrics.accuracy(outcome.scores, labels[200:])
    np.testing.assert_allclose(outcome.scores.sum(axis=1), 1, atol=1e-6)


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
