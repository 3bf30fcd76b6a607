"""The encoders that a measurement uses, one per modality, and their features."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vise_jax import artifact
from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.evaluation.results import EncoderId
from vise_jax.evaluation.tasks import Setting
from vise_jax.inference import extract, feature_cache
from vise_jax.preprocessing import Preprocessing
from vise_jax.text_encoder import TextEncoder


# Encoders have arrays: two instances are equal if they are the same object.
@dataclass(frozen=True, eq=False)
class Encoders:
    """Encoders by modality. At least one is there.

    Attributes:
        image: of images, or None.
        text: of texts, or None.
        preprocessing: of the images; None without an image encoder.
        max_tokens: number of tokens that texts are truncated to, unless the text encoder's is smaller.
    """

    image: Encoder | None
    text: TextEncoder | None
    preprocessing: Preprocessing | None
    max_tokens: int

    @classmethod
    def open(
        cls, source: str, text_source: str, setting: Setting, seed: int, image_size: int, max_tokens: int
    ) -> "Encoders":
        """Load the encoders that a setting needs.

        Args:
            source: an image encoder's directory, `random:NAME` or `random:DIRECTORY`.
            text_source: a text encoder's directory.
            setting: names the modalities.
            seed: of random weights.
            image_size: side of the crop; 0 = the encoder's own.
            max_tokens: see the attribute.

        Raises:
            UserError: an encoder is missing, damaged, of the other modality, or given but not used.
        """
        if setting.image and not source:
            raise UserError("The setting needs an image encoder: give --encoder=ENCODER or --encoder=random:resnet50.")
        if source and not setting.image:
            raise UserError("The setting uses no image: leave --encoder out, or choose image_text.")
        if setting.text != bool(text_source):
            raise UserError(
                "The setting needs a text encoder: give --text-encoder=ENCODER."
                if setting.text
                else "The setting uses no text: leave --text-encoder out, or choose image_text."
            )
        image = extract.open_encoder(source, seed) if setting.image else None
        text = TextEncoder.load(text_source) if setting.text else None
        return cls(image, text, image.preprocessing.at(image_size) if image else None, max_tokens)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the encoders' fingerprints."""
        return artifact.fingerprint([self.image and self.image.fingerprint, self.text and self.text.fingerprint])

    def features(self, dataset: Dataset, cache: Path, **settings: int) -> tuple[np.ndarray, dict[str, str]]:
        """Return the features of each modality concatenated, computed once and cached per modality.

        Args:
            dataset: with texts if there is a text encoder.
            cache: directory of cached features.
            **settings: `batch_size`, `threads` and `max_image_pixels`, see `extract.computed`.

        Returns:
            float32 [N, D]; and a reason for each image that can't be decoded, by name. Its example is left out.
        """
        parts, rejected, indices = [], dict[str, str](), np.arange(len(dataset))
        if self.image and self.preprocessing:
            images, indices, rejected = feature_cache.cached(cache, self.image, dataset, self.preprocessing, **settings)
            parts.append(images)
        if self.text:
            parts.append(self.text_features(dataset, cache, settings["batch_size"])[indices])
        return np.concatenate(parts, axis=1), rejected

    def text_features(self, dataset: Dataset, cache: Path, batch_size: int) -> np.ndarray:
        """Return the features of the texts, float32 [N, D], computed once and cached."""
        if self.text is None or dataset.texts is None:
            raise ValueError("there are no texts")
        return feature_cache.cached_texts(cache, self.text, dataset.texts, self.max_tokens, batch_size)

    def count_truncated(self, dataset: Dataset) -> int:
        """Return the number of texts that are truncated."""
        return self.text.at(self.max_tokens).count_truncated(dataset.texts) if self.text and dataset.texts else 0

    def describe(self, name: str, text_name: str) -> tuple[EncoderId, EncoderId | None]:
        """Return the values of a result's keys `encoder`, of text in the setting "text", and `text_encoder`."""
        texts = _describe(text_name, "text", self.text, None) if self.text else None
        if self.image:
            return _describe(name, "image", self.image, self.preprocessing), texts
        if texts is None:
            raise ValueError("there are no encoders")
        return {**texts, "name": name}, None


def _describe(
    name: str, modality: str, encoder: Encoder | TextEncoder, preprocessing: Preprocessing | None
) -> EncoderId:
    architecture: Mapping[str, Any] = encoder.architecture
    return {
        "name": name,
        "fingerprint": encoder.fingerprint,
        "modality": modality,
        "architecture": dict(architecture),
        "preprocessing": preprocessing.to_json() if preprocessing else {},
        "feature_dim": encoder.feature_dim,
        "provenance": encoder.provenance,
        "license": encoder.license,
    }
