"""Metrics of predictions."""

from collections.abc import Callable

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of examples that are predicted correctly.

    Args:
        predictions: int [N], the predicted classes.
        labels: int [N], the true classes.

    Raises:
        ValueError: there are no examples, or the shapes differ.
    """
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"accuracy needs as many predictions as labels, not {predictions.shape} and {labels.shape}")
    return float(np.mean(predictions == labels))


# From predicted and true classes, int [N] each, to a number; larger is better.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"accuracy": accuracy}
