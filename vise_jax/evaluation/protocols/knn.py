"""kNN classification on features, without fitting; cheap enough to run during training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vise_jax import config as vise_config
from vise_jax.data import datasets
from vise_jax.data import images as data_images
from vise_jax.evaluation import metrics, splits
from vise_jax.evaluation.splits import SplitSettings
from vise_jax.preprocessing import Preprocessing

# Rows of similarities in memory at a time.
_ROWS = 1024

# From the feature function to numbers by name.
Watcher = Callable[[Callable[[np.ndarray], np.ndarray]], dict[str, float]]


def predict(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, *, k: int, temperature: float
) -> np.ndarray:
    """Classify by a weighted vote of the k nearest neighbors (Wu et al. 2018, Sec. 3.4).

    Args:
        train: float32 [N, D], features.
        labels: int32 [N], their classes.
        test: float32 [M, D].
        classes: how many there are.
        k: neighbors, at most N.
        temperature: a neighbor of cosine similarity s has exp(s / temperature) votes.

    Returns:
        The class with most votes for each row of `test`, int64 [M]; of equals the first.
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


def watcher(
    path: Path, preprocessing: Preprocessing, batch_size: int, *, k: int = 20, temperature: float = 0.07
) -> Watcher:
    """Return a probe for `training.pretrain.train`: the kNN accuracy on labeled images, decoded once.

    Args:
        path: the images, see `datasets.open_labeled`. Without official splits, the first of the random ones is taken.
        preprocessing: how they are resized and cropped.
        batch_size: images through the encoder at a time; the last batch is filled up.
        k: neighbors.
        temperature: of their votes.

    Returns:
        From the encoder, which maps images, uint8 [B, S, S, 3], to features, to {"knn_accuracy": share}.

    Raises:
        UserError: no such images, or none to test on.
    """
    images = datasets.open_labeled(path)
    config = vise_config.evaluation()
    settings = SplitSettings(
        config.seed, config.splits, config.train_fraction, config.validation_fraction, config.held_out_fraction
    )
    split = splits.official_or_random(images, settings)[0]
    size = preprocessing.crop
    decoded = np.empty((len(images), size, size, 3), np.uint8)
    filled = 0
    for batch in data_images.batches(
        images, np.arange(len(images)), preprocessing, batch_size, config.threads, config.max_image_pixels
    ):
        decoded[filled : filled + len(batch)] = batch
        filled += len(batch)

    def evaluate(encode: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        features = []
        for start in range(0, len(decoded), batch_size):
            batch = decoded[start : start + batch_size]
            full = np.concatenate([batch, np.zeros((batch_size - len(batch), *batch.shape[1:]), np.uint8)])
            features.append(encode(full)[: len(batch)])
        every = np.concatenate(features)
        predicted = predict(
            every[split.train],
            images.labels[split.train],
            every[split.test],
            len(images.classes),
            k=k,
            temperature=temperature,
        )
        return {"knn_accuracy": metrics.accuracy(predicted, images.labels[split.test])}

    return evaluate
