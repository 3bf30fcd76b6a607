"""A classifier on the features of an image encoder, a text encoder, or both (Sec. 4.2)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from vise_jax.models import initial
from vise_jax.models.clip_resnet import CLIPResNet
from vise_jax.models.resnet import ResNet
from vise_jax.models.transformer import TextTransformer


class Classifier(nnx.Module):
    """A linear head on the concatenated features of encoders.

    Args:
        image: encoder of images, or None.
        text: encoder of texts, or None.
        frozen_dim: number of features that are computed beforehand.
        classes: number of classes, K.
        rngs: source of the head's initial weights.
    """

    def __init__(
        self,
        image: ResNet | CLIPResNet | None,
        text: TextTransformer | None,
        *,
        frozen_dim: int,
        classes: int,
        rngs: nnx.Rngs,
    ):
        self.image, self.text = image, text
        self.feature_dim = frozen_dim + sum(encoder.feature_dim for encoder in (image, text) if encoder is not None)
        # Small initial logits, as usual for a new head on trained features.
        self.head = nnx.Linear(self.feature_dim, classes, kernel_init=initial.normal(0.01), rngs=rngs)

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> jax.Array:
        """Return logits, float32 [B, K].

        Args:
            batch: `images` float32 [B, H, W, 3], normalized, with an image encoder; `tokens` int32 [B, L] and `mask`
                bool [B, L] with a text encoder; `frozen_features` float32 [B, F] if there are any.
            train: normalize by the batch's statistics and update the running ones.
        """
        parts = []
        if self.image is not None:
            parts.append(self.image(batch["images"], train=train)[0])
        if self.text is not None:
            parts.append(self.text(batch["tokens"], batch["mask"], train=train)[0])
        if "frozen_features" in batch:
            parts.append(batch["frozen_features"])
        return self.head(jnp.concatenate(parts, axis=1))
