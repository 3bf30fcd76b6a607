"""Metrics of predictions against true labels."""

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of examples that are predicted correctly.

    Args:
        predictions: int [N], predicted classes.
        labels: int [N], true classes.

    Raises:
        ValueError: no examples, or shapes that differ.
    """
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"accuracy needs as many predictions as labels, not {predictions.shape} and {labels.shape}")
    return float(np.mean(predictions == labels))
