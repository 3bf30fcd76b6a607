"""VisE: an encoder and one linear head for each kind of engagement (Sec. 3.3)."""

import functools
from collections.abc import Mapping

import jax
from flax import nnx

from vise_jax.models import initial
from vise_jax.models.clip_resnet import CLIPResNet
from vise_jax.models.resnet import ResNet


class VisE(nnx.Module):
    """An encoder with linear classifiers on its features.

    Args:
        encoder: maps images to features.
        heads: name → number of classes, e.g. {"comments": 5000, "reactions": 128}.
        rngs: source of the heads' initial weights.
    """

    def __init__(self, encoder: ResNet | CLIPResNet, heads: Mapping[str, int], *, rngs: nnx.Rngs):
        self.encoder = encoder
        linear = functools.partial(nnx.Linear, encoder.feature_dim, kernel_init=initial.lecun_normal, rngs=rngs)
        self.heads = nnx.Dict({name: linear(heads[name]) for name in sorted(heads)})
        self.feature_dim = encoder.feature_dim
        self.feature_layer = encoder.feature_layer

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Predict every kind of engagement.

        Args:
            images: float32 [B, H, W, 3], normalized.
            train: normalize by the batch's statistics and update the running ones.

        Returns:
            The logits, float32 [B, classes] for each head's name; and the intermediates: "features", float32 [B, D],
            and "feature_map", [B, h, w, D] in the encoder's type.
        """
        features, intermediates = self.encoder(images, train=train)
        return {name: head(features) for name, head in self.heads.items()}, intermediates
