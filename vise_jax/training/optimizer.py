"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# From the number of steps done (int32 scalar) to the learning rate of the next step (float32 scalar).
Rate = Callable[[jax.Array], jax.Array]


def learning_rate(
    peak: float, steps: int, *, schedule: str, warmup_fraction: float, decays: int, decay_factor: float
) -> Rate:
    """Return a schedule with linear warm-up.

    Args:
        peak: learning rate after the warm-up.
        steps: length of the run.
        schedule: "cosine" (to 0), "step" or "constant".
        warmup_fraction: fraction of the steps with linear warm-up.
        decays: for "step": `decays` drops split the run after the warm-up into `decays + 1` equal intervals.
        decay_factor: for "step": factor of each drop.
    """
    warmup = round(warmup_fraction * steps)

    def after_warmup(progress: jax.Array) -> jax.Array:
        if schedule == "cosine":
            return 0.5 * (1.0 + jnp.cos(math.pi * progress))
        if schedule == "step":
            return jnp.float32(decay_factor) ** jnp.floor(progress * (decays + 1))
        return jnp.ones_like(progress)

    def rate(step: jax.Array) -> jax.Array:
        done = jnp.asarray(step, jnp.float32)
        rising = (done + 1.0) / max(warmup, 1)
        progress = jnp.clip((done - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        return peak * jnp.minimum(rising, after_warmup(progress))

    return rate


def sgd(rate: Rate, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Return SGD as torch defines it: decay is added to the gradient, momentum accumulates, the rate scales both.

    Biases and batch-norm parameters, which have one dimension, don't decay.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_decays),
        optax.trace(momentum),
        optax.scale_by_learning_rate(rate),
    )


class GridState(NamedTuple):
    """State of `sgd_of_grid`: float32 scalars `peak_rate` and `weight_decay`, and the momentum of each parameter."""

    step: jax.Array
    peak_rate: jax.Array
    weight_decay: jax.Array
    momentum: optax.Params


def sgd_of_grid(shape: Rate, *, momentum: float, peak_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Return `sgd` with learning rate and weight decay in its state, so that a grid of them shares one program.

    Args:
        shape: learning rate divided by its peak.
        momentum: of SGD.
        peak_rate: largest learning rate.
        weight_decay: see `sgd`.
    """

    def init(params: optax.Params) -> GridState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return GridState(jnp.int32(0), jnp.float32(peak_rate), jnp.float32(weight_decay), zeros)

    def update(
        gradient: optax.Updates, state: GridState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, GridState]:
        rate = state.peak_rate * shape(state.step)

        def of_leaf(gradient: jax.Array, parameter: jax.Array, decays: bool, velocity: jax.Array) -> jax.Array:
            return gradient + (state.weight_decay * parameter if decays else 0) + momentum * velocity

        velocity = jax.tree.map(of_leaf, gradient, params, _decays(params), state.momentum)
        return jax.tree.map(lambda leaf: -rate * leaf, velocity), state._replace(step=state.step + 1, momentum=velocity)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def adamw(
    rate: Rate, *, betas: tuple[float, float], epsilon: float, weight_decay: float
) -> optax.GradientTransformation:
    """Return AdamW. Biases and batch-norm parameters don't decay."""
    return optax.adamw(rate, betas[0], betas[1], epsilon, weight_decay=weight_decay, mask=_decays)


def _decays(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
