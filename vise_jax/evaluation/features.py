"""Features of an image set, computed once."""

import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vise_jax import artefact
from vise_jax.data import images as data_images
from vise_jax.data.downstream import ImageSet
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.progress import Progress


class FeatureExtractor(Protocol):
    """What is asked of an encoder here."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides on the features."""
        ...

    def features(self, images: np.ndarray) -> np.ndarray:
        """Map images, uint8 [B, H, W, 3], to features, float32 [B, D]."""
        ...


def open_encoder(source: str, seed: int) -> Encoder:
    """The encoder in a folder; or, for `random:NAME` and `random:FOLDER`, that architecture untrained.

    Args:
        source: what stands after `--encoder`.
        seed: of random weights.

    Raises:
        UserError: see `Encoder.load` and `Encoder.random`.
    """
    return Encoder.random(source, seed) if source.startswith("random:") else Encoder.load(source)


def preprocessing_at(preprocessing: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The same preprocessing for a crop of `image_size` pixels (0 = unchanged): resized in proportion."""
    if not image_size:
        return dict(preprocessing)
    resize = round(preprocessing["resize"] * image_size / preprocessing["crop"])
    return {**preprocessing, "resize": resize, "crop": image_size}


def extract(
    encoder: FeatureExtractor,
    images: ImageSet,
    preprocessing: Mapping[str, Any],
    *,
    batch_size: int,
    threads: int,
    max_image_pixels: int,
) -> np.ndarray:
    """Features of all images, each computed once.

    Args:
        encoder: whose features.
        images: the set.
        preprocessing: resize, crop and interpolation of the images before the encoder.
        batch_size: images through the encoder at a time.
        threads: threads that decode; 0 = one per core.
        max_image_pixels: an image with more is refused before it is decoded.

    Returns:
        float32 [N, D], in the order of the set.

    Raises:
        UserError: an image that can't be decoded, by name.
    """
    size = min(batch_size, len(images))
    found: list[np.ndarray] = []
    with Progress("features", len(images), "images") as progress:
        for batch in data_images.batches(images, range(len(images)), preprocessing, size, threads, max_image_pixels):
            # The last batch is filled up, for the encoder is compiled for one shape only.
            padding = np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)
            found.append(encoder.features(np.concatenate([batch, padding]))[: len(batch)])
            progress.advance(len(batch))
    return np.concatenate(found)


def cached(
    folder: Path, encoder: FeatureExtractor, images: ImageSet, preprocessing: Mapping[str, Any], **settings: int
) -> np.ndarray:
    """As `extract`, but what was computed before is read from `folder`.

    The file's name is a fingerprint of the encoder, the preprocessing and the set, so that none of them can change
    unnoticed. A damaged file is computed again.
    """
    key = _key(encoder, images, preprocessing)
    path = folder / f"{key[:32]}.npz"
    features = _read(path, key)
    if features is not None:
        print(f"features of {images.title}: kept in {path}, read from there", file=sys.stderr)
        return features
    features = extract(encoder, images, preprocessing, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, key, features, images)
    return features


def export(
    encoder: FeatureExtractor, images: ImageSet, preprocessing: Mapping[str, Any], path: Path, **settings: int
) -> np.ndarray:
    """As `extract`, and write the features with the paths of their images to the .npz file `path`.

    The file holds `features`, float32 [N, D], `paths`, text [N], both ordered by path, and `key`, a fingerprint of what
    they were made from. Where it holds just these features already, it is read instead.

    Raises:
        UserError: see `extract`; or the file exists and holds something else.
    """
    key = _key(encoder, images, preprocessing)
    features = _read(path, key)
    if features is not None:
        return features
    if path.exists():
        raise UserError(f"{path} already exists and holds something else: name another file, or delete it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    features = extract(encoder, images, preprocessing, **settings)
    _write(path, key, features, images)
    return features


def _key(encoder: FeatureExtractor, images: ImageSet, preprocessing: Mapping[str, Any]) -> str:
    return artefact.fingerprint([encoder.fingerprint, dict(preprocessing), images.fingerprint])


def _write(path: Path, key: str, features: np.ndarray, images: ImageSet) -> None:
    with artefact.whole_file(path) as file:
        np.savez(file, features=features, paths=np.array(images.names), key=np.array(key))


def _read(path: Path, key: str) -> np.ndarray | None:
    """The features that were written under this key; None where the file is missing, damaged or holds others."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["features"] if str(arrays["key"]) == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
