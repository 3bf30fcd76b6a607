"""Nearest neighbours of an image among features that were kept, by the cosine, exactly."""

from pathlib import Path

import numpy as np

from vise_jax.encoder import Encoder
from vise_jax.engagement.vectors import unit_rows
from vise_jax.errors import UserError
from vise_jax.evaluation import features


def check(encoder: Encoder, path: Path) -> int:
    """Check that a file of features was made by an encoder.

    Returns:
        Side of the crops that it was made from, in pixels.

    Raises:
        UserError: it was not; or see `features.read_about`.
    """
    about = features.read_about(path)
    if about["encoder"] != encoder.fingerprint:
        raise UserError(
            f"The features in {path} were made by another encoder: give that one, or make them again with extract.py."
        )
    return about["crop"]


def nearest(path: Path, query: np.ndarray, k: int) -> list[tuple[str, float]]:
    """Find the images whose features have the highest cosines with those of a query.

    Features are read part by part, see `features.read`. Images without any direction (zeros) have the cosine 0.

    Args:
        path: a file of features, float32 [N, D].
        query: float32 [D].
        k: how many; there may be fewer.

    Returns:
        Paths and cosines, the highest first, equal ones in the order of the file.

    Raises:
        UserError: a damaged file.
    """
    best: list[tuple[float, int, str]] = []
    unit, seen = unit_rows(query[None])[0], 0
    for names, rows in features.read(path):
        cosines = unit_rows(rows) @ unit
        order = np.argsort(-cosines, kind="stable")[:k].tolist()
        best = sorted(best + [(-float(cosines[row]), seen + row, names[row]) for row in order])[:k]
        seen += len(names)
    return [(name, -negative) for negative, _, name in best]
