"""Optimizers and learning rates, by config."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

Rate = Callable[[jax.Array], jax.Array]


def learning_rate(config: ConfigDict, steps: int) -> Rate:
    """Linear warm-up to the peak, then what `schedule` says.

    Args:
        config: the `training` section. The peak is `learning_rate` per 256 images of the batch (Goyal et al. 2017).
        steps: length of the whole run.

    Returns:
        From the number of steps done (int32 scalar) to the rate of the next one (float32 scalar).
    """
    peak = config.learning_rate * config.batch_size / 256
    warmup = round(config.warmup_fraction * steps)

    def after_warmup(progress: jax.Array) -> jax.Array:
        if config.schedule == "cosine":
            return 0.5 * (1.0 + jnp.cos(math.pi * progress))
        if config.schedule == "step":
            # So many decays part the run into one interval more.
            return jnp.float32(config.decay_factor) ** jnp.floor(progress * (config.decays + 1))
        return jnp.ones_like(progress)

    def rate(step: jax.Array) -> jax.Array:
        done = jnp.asarray(step, jnp.float32)
        rising = (done + 1.0) / max(warmup, 1)
        progress = jnp.clip((done - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        return peak * jnp.minimum(rising, after_warmup(progress))

    return rate


def make(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer that `optimizer` names, at the rate of `learning_rate`.

    Biases and the parameters of batch norm, which have one dimension, don't decay.

    Args:
        config: the `training` section.
        steps: length of the whole run.
    """
    rate = learning_rate(config, steps)
    if config.optimizer == "adamw":
        (first, second), epsilon = config.adam_betas, config.adam_epsilon
        return optax.adamw(rate, first, second, epsilon, weight_decay=config.weight_decay, mask=_decays)
    # SGD as in torch: decay joins the gradient, momentum is summed, then the rate scales both.
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_decays),
        optax.trace(config.momentum),
        optax.scale_by_learning_rate(rate),
    )


def _decays(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
