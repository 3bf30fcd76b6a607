"""Vectors of unit length, the form of every phi."""

import numpy as np


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Divide each row of float [N, D] by its L2 norm; rows of zeros stay zeros."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    lengths[lengths == 0] = 1
    return rows / lengths[:, None]
