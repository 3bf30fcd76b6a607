"""kNN classification of features. It fits nothing, and is cheap enough to run during training."""

from pathlib import Path

import numpy as np

from vise_jax import config as vise_config
from vise_jax.data import datasets
from vise_jax.data import images as data_images
from vise_jax.evaluation import metrics, splits
from vise_jax.evaluation.splits import SplitSettings
from vise_jax.preprocessing import Preprocessing
from vise_jax.training.evaluators import Features, Probe

# Rows of similarities in memory at a time.
_ROWS = 1024


def predict(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, *, k: int, temperature: float
) -> np.ndarray:
    """Classify by a weighted vote of the k nearest neighbors (Wu et al. 2018, Sec. 3.4).

    Args:
        train: float32 [N, D], features.
        labels: int32 [N], classes of the rows of `train`.
        test: float32 [M, D], features to classify.
        classes: number of classes.
        k: number of neighbors. A `k` above N is N.
        temperature: a neighbor of cosine similarity s has exp(s / temperature) votes.

    Returns:
        The class with most votes for each row of `test`, int64 [M]; the first one of a tie.
    """
    train, test = _unit(train), _unit(test)
    k = min(k, len(train))
    predicted = np.empty(len(test), np.int64)
    for start in range(0, len(test), _ROWS):
        similarity = test[start : start + _ROWS] @ train.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        votes = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / temperature)
        tally = np.zeros((len(similarity), classes))
        np.add.at(tally, (np.arange(len(similarity))[:, None], labels[nearest]), votes)
        predicted[start : start + _ROWS] = tally.argmax(axis=1)
    return predicted


def _unit(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo(np.float32).tiny)


def make_probe(
    path: Path, preprocessing: Preprocessing, batch_size: int, *, k: int = 20, temperature: float = 0.07
) -> Probe:
    """Return a probe for training: the kNN accuracy on a dataset, whose images are decoded once.

    Args:
        path: the dataset, see `datasets.open_labeled`. Without official splits, the first random split is used.
        preprocessing: `resize`, `crop` and `interpolation` of the images.
        batch_size: number of images that the encoder gets at a time. The last batch is padded with black images.
        k: number of neighbors.
        temperature: see `predict`.

    Returns:
        From a function of images, uint8 [batch_size, S, S, 3], to features, float32 [batch_size, D], to
        {"knn_accuracy": accuracy on test}.

    Raises:
        UserError: no such dataset, corrupt images, or a dataset that can't be split.
    """
    dataset = datasets.open_labeled(path)
    config = vise_config.evaluation()
    split = splits.official_or_random(dataset, SplitSettings.of(config))[0]
    size = preprocessing.crop
    images = np.empty((len(dataset), size, size, 3), np.uint8)
    filled = 0
    for batch in data_images.batches(
        dataset, np.arange(len(dataset)), preprocessing, batch_size, config.threads, config.max_image_pixels
    ):
        images[filled : filled + len(batch)] = batch
        filled += len(batch)

    def probe(encode: Features) -> dict[str, float]:
        rows = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = np.zeros((batch_size - len(batch), *batch.shape[1:]), np.uint8)
            rows.append(encode(np.concatenate([batch, padding]))[: len(batch)])
        features = np.concatenate(rows)
        predictions = predict(
            features[split.train],
            dataset.labels[split.train],
            features[split.test],
            len(dataset.classes),
            k=k,
            temperature=temperature,
        )
        return {"knn_accuracy": metrics.accuracy(predictions, dataset.labels[split.test])}

    return probe
