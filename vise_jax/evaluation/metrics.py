"""How well predictions fit the truth."""

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples that are predicted right, each counted once.

    Args:
        predictions: int [N], the predicted classes.
        labels: int [N], the true ones.

    Raises:
        ValueError: no examples, or not one prediction for each label.
    """
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"accuracy needs as many predictions as labels, not {predictions.shape} and {labels.shape}")
    return float(np.mean(predictions == labels))
