"""Cache of the features of datasets and texts, and of the images that can't be decoded."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vise_jax import arrays, artifact
from vise_jax.data import images as data_images
from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.inference import extract, feature_files
from vise_jax.preprocessing import Preprocessing
from vise_jax.progress import Progress
from vise_jax.text_encoder import TextEncoder

log = logging.getLogger(__name__)


def cached(
    directory: Path, encoder: extract.FeatureExtractor, images: Dataset, preprocessing: Preprocessing, **settings: int
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Compute the features of a dataset, or read them from `directory` where they were computed before.

    The file's name is a fingerprint of the encoder, the preprocessing and the dataset, so that a change of any is a new
    file. A file is computed again if it is corrupt, or if an image that was corrupt can be decoded now.

    Args:
        directory: created if it doesn't exist.
        encoder: computes the features.
        images: the dataset.
        preprocessing: of the images before the encoder.
        **settings: `batch_size`, `threads` and `max_image_pixels`, see `extract.computed`.

    Returns:
        Features float32 [M, D]; the examples they are of, int64 [M], ascending; and a reason for each image that can't
        be decoded, by name.

    Raises:
        UserError: see `extract.computed`.
    """
    key = extract.key_of(encoder, images, preprocessing)
    path = directory / f"{key[:32]}.npz"
    if feature_files.holds(path, key) and extract.is_up_to_date(path, images, preprocessing, **settings):
        log.info(f"features of {images.title}: read from {path}")
        extract.clear(path)
    else:
        with extract.computed(encoder, images, preprocessing, path, **settings) as (parts, about):
            extract.write(path, parts, about, images)
    rejected = feature_files.read_about(path)["rejected"]
    indices = [index for index, name in enumerate(images.names) if name not in rejected]
    features = np.concatenate([features for _, features in feature_files.read(path)])
    return features, np.array(indices, np.int64), rejected


def cached_texts(
    directory: Path, encoder: TextEncoder, texts: Sequence[str], max_tokens: int, batch_size: int
) -> np.ndarray:
    """Compute the features of texts, or read them from `directory` where they were computed before.

    Args:
        directory: created if it doesn't exist.
        encoder: computes the features.
        texts: N of them.
        max_tokens: see `TextEncoder.features`.
        batch_size: number of texts through the encoder at a time.

    Returns:
        float32 [N, D].
    """
    key = artifact.fingerprint([encoder.fingerprint, list(texts), max_tokens, extract.computed_on()])
    path = directory / f"{key[:32]}.text.npz"
    try:
        features = arrays.read_npz(path, ["features"])["features"]
        if features.shape == (len(texts), encoder.feature_dim):
            return features
    except (*feature_files.UNREADABLE, UserError):
        pass
    with Progress("text features", len(texts), "texts") as progress:
        features = encoder.features(texts, batch_size, max_tokens=max_tokens, after_each=progress.advance)
    artifact.make_directory(directory)
    # No text is written.
    with artifact.atomic_file(path) as file:
        np.savez(file, features=features)
    return features


def undecodable(
    directory: Path, images: Dataset, preprocessing: Preprocessing, *, threads: int, max_image_pixels: int
) -> dict[str, str]:
    """Return a reason for each image that can't be decoded, by name; decodes all images once and caches the answer.

    Args:
        directory: of the cached answer.
        images: the dataset.
        preprocessing: of the images.
        threads: see `extract.computed`.
        max_image_pixels: see `extract.computed`.
    """
    key = artifact.fingerprint(
        [images.fingerprint, preprocessing.to_json(), max_image_pixels, images.limits.image_bytes]
    )
    path = directory / f"{key[:32]}.undecodable.json"
    if artifact.is_file(path):
        with contextlib.suppress(ValueError):  # it is damaged
            kept = artifact.from_json(path.read_bytes())
            # An image may have been unreadable for a moment: its version tells nothing of permissions or the network.
            if (
                isinstance(kept, dict)
                and kept.keys() <= set(images.names)
                and not extract.any_decodable(images, kept, preprocessing, threads, max_image_pixels)
            ):
                return kept
    rejected: dict[str, str] = {}
    decoded = data_images.decode_each(images, np.arange(len(images)), preprocessing, threads, max_image_pixels)
    with Progress("check images", len(images), "images") as progress, contextlib.closing(decoded):
        for name, image in zip(images.names, decoded, strict=True):
            if isinstance(image, UserError):
                rejected[name] = str(image)
            progress.advance(1)
    artifact.make_directory(directory)
    artifact.write_json(path, rejected)
    return rejected
