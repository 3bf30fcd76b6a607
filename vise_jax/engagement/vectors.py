"""Vectors of unit length, the form of every phi."""

import numpy as np


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Divide each row of float [N, D] by its L2 norm; rows of zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
