"""Class activation maps: which parts of an image speak for a class (Zhou et al. 2016; the paper's Figure 7)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vise_jax import models, variables
from vise_jax.encoder import Encoder
from vise_jax.models.clip_resnet import CLIPResNet
from vise_jax.models.vise import VisE
from vise_jax.preprocessing import normalize


class AffineHead(NamedTuple):
    """A linear classifier of an encoder's features.

    Attributes:
        kernel: float32 [D, K].
        bias: float32 [K].
    """

    kernel: np.ndarray
    bias: np.ndarray


class Explanation(NamedTuple):
    """Maps of a batch of images.

    Attributes:
        logits: float32 [B, K], of the pooled features.
        maps: float32 [B, h, w], of the class that each map was requested for.
    """

    logits: np.ndarray
    maps: np.ndarray


def make_explainer(encoder: Encoder, head: AffineHead) -> Callable[[np.ndarray, np.ndarray | None], Explanation]:
    """Return the function from images and classes to class activation maps.

    For an encoder that averages its feature map, a map has the logit of each location; their mean is the logit of the
    class. For one with attention pooling it is Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2): the feature map weighted
    by the mean gradient of the logit, positive parts only.

    Args:
        encoder: of images.
        head: a classifier of its features.

    Returns:
        A function of images, uint8 [B, H, W, 3], and classes, int [B], or None for the predicted ones.
    """

    @partial(jax.jit, compiler_options=models.compiler_options(jax.default_backend()))
    def explain(weights: dict[str, jax.Array], images: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision("highest"):
            network = variables.with_weights(encoder.architecture, weights)
            network = network.encoder if isinstance(network, VisE) else network
            features, intermediates = network(normalize(images, encoder.preprocessing), train=False)
            feature_map = intermediates["feature_map"].astype(jnp.float32)
            logits = features @ head.kernel + head.bias[None]
            chosen = jnp.where(classes >= 0, classes, logits.argmax(axis=1))
            if not isinstance(network, CLIPResNet):
                located = jnp.einsum("bhwd,db->bhw", feature_map, jnp.asarray(head.kernel)[:, chosen])
                return logits, located + jnp.asarray(head.bias)[chosen][:, None, None]

            def chosen_logits(feature_map: jax.Array) -> jax.Array:
                pooled = network.attnpool(feature_map) @ head.kernel + head.bias[None]
                return jnp.take_along_axis(pooled, chosen[:, None], axis=1).sum()

            importance = jax.grad(chosen_logits)(feature_map).mean((1, 2), keepdims=True)
            return logits, jax.nn.relu((importance * feature_map).sum(3))

    def explainer(images: np.ndarray, classes: np.ndarray | None = None) -> Explanation:
        requested = np.full(len(images), -1) if classes is None else np.asarray(classes)
        logits, maps = explain(encoder.weights, images, requested.astype(np.int32))
        return Explanation(np.asarray(logits), np.asarray(maps))

    return explainer


def location_centers(encoder: Encoder, count: int, side: int) -> np.ndarray:
    """Return the pixel of the image at the center of each row (or column) of a feature map's receptive fields.

    torch's padding puts the first location of a ResNet at the image's edge, not at the middle of its cell; average
    pools, which CLIP's strides are, keep locations in the middle of their cells.

    Args:
        encoder: of images.
        count: number of rows of the feature map.
        side: of the image, in pixels.

    Returns:
        float64 [count].
    """
    offset = 0.5 if encoder.architecture["name"].startswith("clip_") else 0.0
    return (np.arange(count) + offset) * (side / count)


def own_head(encoder: Encoder, name: str) -> AffineHead:
    """Return a head that the encoder was trained with, e.g. "comments"."""
    kernel, bias = (np.asarray(encoder.weights[f"heads/{name}/{part}"]) for part in ("kernel", "bias"))
    return AffineHead(kernel, bias)
