"""kNN classification of features. It fits nothing, and is cheap enough to run during training."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vise_jax import config as vise_config
from vise_jax.data import datasets
from vise_jax.data import images as data_images
from vise_jax.data.datasets import Dataset
from vise_jax.evaluation import metrics, outcomes, splits
from vise_jax.evaluation.encoders import Encoders
from vise_jax.evaluation.results import Selection
from vise_jax.evaluation.splits import Split, SplitSettings
from vise_jax.preprocessing import Preprocessing
from vise_jax.similarity import unit_rows
from vise_jax.training.evaluators import Features, Probe

# Rows of similarities in memory at a time.
_ROWS = 1024


def votes(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, *, k: Sequence[int], temperature: float
) -> np.ndarray:
    """Return the fraction of weighted votes of the k nearest neighbors for each class (Wu et al. 2018, Sec. 3.4).

    Args:
        train: float32 [N, D], features.
        labels: int32 [N], classes of the rows of `train`.
        test: float32 [M, D], features to classify.
        classes: number of classes, C.
        k: numbers of neighbors, Q of them. A number above N is N.
        temperature: a neighbor of cosine similarity s has exp(s / temperature) votes.

    Returns:
        float64 [Q, M, C].
    """
    train, test = unit_rows(train), unit_rows(test)
    largest = min(max(k), len(train))
    shares = np.zeros((len(k), len(test), classes))
    for start in range(0, len(test), _ROWS):
        similarity = test[start : start + _ROWS] @ train.T
        nearest = np.argpartition(-similarity, largest - 1, axis=1)[:, :largest]
        of_nearest = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-of_nearest, axis=1, kind="stable")
        nearest, of_nearest = (np.take_along_axis(array, order, axis=1) for array in (nearest, of_nearest))
        # The nearest neighbor has weight 1, so that no weight overflows and their sum is not 0.
        weights = np.exp((of_nearest - of_nearest[:, :1]).astype(np.float64) / temperature)
        rows = np.arange(len(similarity))[:, None]
        for number, neighbors in enumerate(k):
            tally = np.zeros((len(similarity), classes))
            np.add.at(tally, (rows, labels[nearest[:, :neighbors]]), weights[:, :neighbors])
            shares[number, start : start + _ROWS] = tally / tally.sum(axis=1, keepdims=True)
    return shares


class KNNEvaluator:
    """Evaluate an encoder by weighted kNN classification of its features.

    For each split, the number of neighbors that is best on validation is reported on test; of equal ones the first.

    Args:
        extract: from encoders to their features of the dataset, float32 [N, D], and the dataset.
        divide: from the dataset to its splits.
        primary: name of the metric that selects, one of `metrics.METRICS`.
        k: numbers of neighbors.
        temperature: see `votes`.

    Attributes:
        outcomes: of the last run, one per split.
    """

    def __init__(
        self,
        extract: Callable[[Encoders], tuple[np.ndarray, Dataset]],
        divide: Callable[[Dataset], list[Split]],
        *,
        primary: str,
        k: Sequence[int],
        temperature: float,
    ):
        self._extract, self._divide, self._primary = extract, divide, primary
        self._k, self._temperature = tuple(k), temperature
        self.outcomes: list[outcomes.Outcome] = []

    def run(self, state: Encoders) -> dict[str, float]:
        """Return the mean of each metric over the splits."""
        features, dataset = self._extract(state)
        metric, labels = metrics.METRICS[self._primary], dataset.labels
        self.outcomes = []
        for split in self._divide(dataset):
            rows = np.concatenate([split.validation, split.test])
            shares = votes(
                features[split.train],
                labels[split.train],
                features[rows],
                len(dataset.classes),
                k=self._k,
                temperature=self._temperature,
            )
            validation, test = np.split(shares, [len(split.validation)], axis=1)
            sweep: list[outcomes.SweepRow] = [
                {
                    "settings": {"k": k},
                    "validation": metric(validation[number], labels[split.validation]),
                    "test": metric(test[number], labels[split.test]),
                    "details": {},
                }
                for number, k in enumerate(self._k)
            ]
            selected = outcomes.best(sweep)
            self.outcomes.append(outcomes.Outcome(split, test[selected].astype(np.float32), sweep, selected))
        return outcomes.means(self.outcomes, dataset)

    def selection(self) -> Selection:
        """Describe how the reported numbers of neighbors were selected."""
        return outcomes.selection(self.outcomes, self._primary)


def make_probe(
    path: Path, preprocessing: Preprocessing, batch_size: int, *, k: int = 20, temperature: float = 0.07
) -> Probe:
    """Return a probe for training: the kNN accuracy on a dataset, whose images are decoded once.

    Args:
        path: the dataset, see `datasets.open_labeled`. Without official splits, the first random split is used.
        preprocessing: `resize`, `crop` and `interpolation` of the images.
        batch_size: number of images that the encoder gets at a time. The last batch is padded with black images.
        k: number of neighbors.
        temperature: see `votes`.

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
        shares = votes(
            features[split.train],
            dataset.labels[split.train],
            features[split.test],
            len(dataset.classes),
            k=[k],
            temperature=temperature,
        )
        return {"knn_accuracy": metrics.accuracy(shares[0], dataset.labels[split.test])}

    return probe
