"""Metrics of class scores, each over every example once, with bootstrap intervals."""

from collections.abc import Callable, Mapping

import numpy as np
from sklearn import metrics as sklearn_metrics

# Confidence bins of the expected calibration error (Guo et al. 2017 use 15).
_BINS = 15
# Elements of a bootstrap's arrays that are in memory at a time.
_MAX_ELEMENTS = 1 << 24

# From scores, float [N, K], and labels, int [N], to a number.
Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of examples whose largest score is that of the true class; the first class of a tie.

    Args:
        scores: float [N, K].
        labels: int [N], the true classes.

    Raises:
        ValueError: there are no examples, or the shapes don't fit.
    """
    _check(scores, labels)
    return float(np.mean(scores.argmax(axis=1) == labels))


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve, macro-averaged: each class against the others.

    With two classes it is the area of either. Classes without an example, or without an example of another class, are
    left out. Ties count half.

    Args:
        scores: float [N, K].
        labels: int [N], the true classes.

    Raises:
        ValueError: there are no examples, all examples have one class, or the shapes don't fit.
    """
    return float(np.mean([sklearn_metrics.roc_auc_score(*pair) for pair in _one_against_others(scores, labels)]))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the average precision: with two classes of the second one, else the mean over classes with an example.

    Args:
        scores: float [N, K].
        labels: int [N], the true classes.

    Raises:
        ValueError: there are no examples, all examples have one class, or the shapes don't fit.
    """
    pairs = _one_against_others(scores, labels)
    return float(np.mean([sklearn_metrics.average_precision_score(*pair) for pair in pairs]))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 3): 15 bins of equal width, (0, 1/15] the first.

    Args:
        probabilities: float [N, K], rows sum to 1.
        labels: int [N], the true classes.

    Raises:
        ValueError: there are no examples, or the shapes don't fit.
    """
    _check(probabilities, labels)
    return float(_weighted_calibration_error(probabilities, labels, np.ones((1, len(labels))))[0])


# Metrics of any scores, and those that need probabilities. Larger is better, except for the calibration error.
METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "roc_auc": roc_auc, "average_precision": average_precision}
CALIBRATION: Mapping[str, Metric] = {"calibration_error": expected_calibration_error}


def compute(scores: np.ndarray, labels: np.ndarray, *, probabilities: bool = True) -> dict[str, float]:
    """Return all metrics that are defined for these examples, by name.

    Args:
        scores: float [N, K].
        labels: int [N], the true classes.
        probabilities: whether `scores` are probabilities; otherwise the calibration error is left out.
    """
    chosen = dict(METRICS)
    if len(np.unique(labels)) < 2:
        del chosen["roc_auc"], chosen["average_precision"]
    if probabilities:
        chosen |= CALIBRATION
    return {name: metric(scores, labels) for name, metric in chosen.items()}


def confusion(scores: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Return the number of examples of each class (row) that are predicted as each class (column), [K][K]."""
    classes = np.arange(scores.shape[1])
    return sklearn_metrics.confusion_matrix(labels, scores.argmax(axis=1), labels=classes).tolist()


def bootstrap(
    scores: np.ndarray, labels: np.ndarray, *, probabilities: bool = True, replicates: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return each metric of `compute` on bootstrap replicates of the examples (Efron 1979).

    A replicate draws N examples with replacement. The draws depend on N and `seed` alone, so that the replicates of two
    encoders on the same examples are paired.

    Args:
        scores: float [N, K].
        labels: int [N], the true classes.
        probabilities: see `compute`.
        replicates: number of replicates, R.
        seed: of the draws.

    Returns:
        float64 [R] by name. A replicate that draws no example of a class leaves that class out; NaN where no class is
        left.
    """
    draws: list[dict[str, np.ndarray]] = []
    rows = max(_MAX_ELEMENTS // max(len(labels), 1), 1)
    names = compute(scores, labels, probabilities=probabilities)
    for start in range(0, replicates, rows):
        weights = _draws(len(labels), range(start, min(start + rows, replicates)), seed)
        draws.append({name: _WEIGHTED[name](scores, labels, weights) for name in names})
    return {name: np.concatenate([one[name] for one in draws]) for name in names}


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile interval of bootstrap replicates, float [R]; NaN are left out."""
    low, high = np.nanpercentile(replicates, (2.5, 97.5))
    return float(low), float(high)


def _draws(size: int, replicates: range, seed: int) -> np.ndarray:
    """Return how often each example is drawn, float64 [R, N]. Each replicate has random bits of its own."""
    weights = np.empty((len(replicates), size))
    for row, replicate in enumerate(replicates):
        bits = np.random.Philox(key=seed, counter=replicate << 64).random_raw(size)
        weights[row] = np.bincount((bits >> 11) % size, minlength=size)
    return weights


def _weighted_accuracy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ (scores.argmax(axis=1) == labels) / weights.sum(axis=1)


def _weighted_calibration_error(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    confidence = probabilities.max(axis=1).astype(np.float64)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    # The upper edge belongs to a bin.
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    of_bin = bins[:, None] == np.arange(_BINS)[None]
    return np.abs(weights @ (of_bin * gap[:, None])).sum(axis=1) / weights.sum(axis=1)


def _weighted_roc_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    def area(true: np.ndarray, values: np.ndarray) -> np.ndarray:
        positives, negatives = (_sums_of_ties(values, weights * is_one) for is_one in (true, ~true))
        below = np.cumsum(negatives, axis=1) - negatives
        wins = (positives * (below + negatives / 2)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return wins / (positives.sum(axis=1) * negatives.sum(axis=1))

    return _mean_over_classes([area(*pair) for pair in _one_against_others(scores, labels)])


def _weighted_average_precision(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    def precision(true: np.ndarray, values: np.ndarray) -> np.ndarray:
        positives, counts = (_sums_of_ties(-values, weights * some) for some in (true, np.ones_like(true)))
        with np.errstate(invalid="ignore"):
            precisions = np.cumsum(positives, axis=1) / np.maximum(np.cumsum(counts, axis=1), 1)
            return (positives * precisions).sum(axis=1) / positives.sum(axis=1)

    return _mean_over_classes([precision(*pair) for pair in _one_against_others(scores, labels)])


_WEIGHTED: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": _weighted_accuracy,
    "roc_auc": _weighted_roc_auc,
    "average_precision": _weighted_average_precision,
    "calibration_error": _weighted_calibration_error,
}


def _sums_of_ties(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weights [R, N] summed over equal `values` [N], in ascending order: [R, number of distinct values]."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)
    return np.add.reduceat(weights[:, order], starts, axis=1)


def _mean_over_classes(values: list[np.ndarray]) -> np.ndarray:
    """Return the mean of the values [R] of each class; a replicate leaves classes out that it doesn't define.

    NaN where it defines none.
    """
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)


def _one_against_others(scores: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return whether examples are of a class, bool [N], and its scores, for each class with examples; see `roc_auc`."""
    _check(scores, labels)
    present = np.unique(labels)
    if len(present) < 2:
        raise ValueError("a class against the others needs examples of two classes")
    if scores.shape[1] == 2:
        # One score: the difference orders examples as the second class's probability does.
        return [(labels == 1, scores[:, 1].astype(np.float64) - scores[:, 0])]
    return [(labels == label, scores[:, label]) for label in present]


def _check(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"metrics need scores [N, K] and labels [N], not {scores.shape} and {labels.shape}")
