"""Find the nearest neighbors of an image in a file of features, by exact cosine similarity."""

from pathlib import Path

import numpy as np

from vise_jax.data import images as data_images
from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.inference import feature_files
from vise_jax.similarity import unit_rows


def nearest(encoder: Encoder, path: Path, query: Dataset, k: int, max_image_pixels: int) -> list[tuple[str, float]]:
    """Find the images whose features have the highest cosines with those of a query image.

    The query is prepared as the images were. Features are read part by part, see `extract.read`.

    Args:
        encoder: that the features are of.
        path: a file of features.
        query: a set of one image.
        k: how many; there may be fewer.
        max_image_pixels: a query with more is refused.

    Returns:
        As `nearest_to`.

    Raises:
        UserError: the features were made by another encoder, or are damaged; several queries, or one that can't be
            read.
    """
    about = feature_files.read_about(path)
    if about["encoder"] != encoder.fingerprint:
        raise UserError(
            f"The features in {path} were made by another encoder: give that one, or make them again with extract.py."
        )
    if len(query) != 1:
        raise UserError(f"{query.title} has {len(query):,} images: name one image as the query.")
    preprocessing = encoder.preprocessing.at(about["crop"])
    (image,) = data_images.batches(query, [0], preprocessing, 1, 1, max_image_pixels)
    return nearest_to(encoder.features(image)[0], path, k)


def nearest_to(query: np.ndarray, path: Path, k: int) -> list[tuple[str, float]]:
    """Find the images whose features have the highest cosines with a vector; that of zeros with anything is 0.

    Args:
        query: float32 [D].
        path: a file of features, float32 [N, D].
        k: how many; there may be fewer.

    Returns:
        Names and cosines, the highest first, equal ones in the order of the file.

    Raises:
        UserError: a damaged file.
    """
    best: list[tuple[float, int, str]] = []
    unit, seen = unit_rows(query[None])[0], 0
    for names, rows in feature_files.read(path):
        cosines = unit_rows(rows) @ unit
        order = np.argsort(-cosines, kind="stable")[:k].tolist()
        best = sorted(best + [(-float(cosines[row]), seen + row, names[row]) for row in order])[:k]
        seen += len(names)
    return [(name, -negative) for negative, _, name in best]
