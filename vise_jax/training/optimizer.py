"""SGD with momentum, its weight decay and its learning rate."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def learning_rate(config: ConfigDict, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Linear warm-up to the peak, then a cosine to 0.

    Args:
        config: the `training` section. The peak is `learning_rate` per 256 images of the batch (Goyal et al. 2017).
        steps: length of the whole run.

    Returns:
        From the number of steps done (int32 scalar) to the rate of the next one (float32 scalar).
    """
    peak = config.learning_rate * config.batch_size / 256
    warmup = round(config.warmup_share * steps)

    def rate(step: jax.Array) -> jax.Array:
        done = jnp.asarray(step, jnp.float32)
        rising = (done + 1.0) / max(warmup, 1)
        progress = jnp.clip((done - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        return peak * jnp.minimum(rising, 0.5 * (1.0 + jnp.cos(math.pi * progress)))

    return rate


def sgd(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """SGD as in torch: decay joins the gradient, momentum is summed, then the rate scales both.

    Biases and the parameters of batch norm, which have one dimension, don't decay.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
        optax.trace(config.momentum),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
