"""Batch normalization with torch's semantics, over groups of examples."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from vise_jax.models.conv import kept
from vise_jax.models.sums import spread, sums


class BatchNorm(nnx.Module):
    """Batch normalization (Ioffe & Szegedy 2015) over batch, height and width.

    As in torch, the batch is normalized by its biased variance while the running variance averages the unbiased one.
    Statistics and parameters are float32 whatever the type of the input.

    Args:
        channels: channels of the input.
        group: examples that share statistics, consecutive ones; 0 = the whole batch. A group that lies on one
            device costs no communication.
        momentum: weight of the old running statistics in an update (1 minus torch's `momentum`).
        epsilon: added to the variance.
        initial_scale: first value of the scale.

    The running statistics are [C], to which every group contributes equally, or [G, C] (see `per_group`), a row for
    each of a batch's G groups, so that training needs no reduction over them; rows are averaged where they are read.
    """

    def __init__(self, channels: int, *, group: int, momentum: float, epsilon: float, initial_scale: float = 1.0):
        self.scale = nnx.Param(jnp.full(channels, initial_scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))
        self.group = group
        self.momentum = momentum
        self.epsilon = epsilon

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalize [B, H, W, C], keeping its type: by the batch's statistics when training, else by the running ones.

        Raises:
            ValueError: the batch is no multiple of `group`.
        """
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            mean, var = merged(self.mean[...]), merged(self.var[...])
            return _affine(x, mean, scale * jax.lax.rsqrt(var + self.epsilon), bias)
        group = self.group or x.shape[0]
        if x.shape[0] % group:
            raise ValueError(f"a batch of {x.shape[0]} is no multiple of the batch norm's group of {group}")
        grouped = x.reshape(-1, group, *x.shape[1:])
        running = jnp.broadcast_to(self.mean[...], (len(grouped), x.shape[-1]))
        y, mean, var = _normalize(self.epsilon, grouped, scale, bias, running)
        count = group * x.shape[1] * x.shape[2]
        unbiased = var * (count / max(count - 1, 1))
        if self.mean[...].ndim == 1:
            mean, unbiased = mean.mean(0), unbiased.mean(0)
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * unbiased
        return y.reshape(x.shape)


def per_group(statistics: jax.Array, groups: int) -> jax.Array:
    """Repeat the running statistics of a batch norm, [C], for each group: [groups, C]."""
    return jnp.broadcast_to(statistics, (groups, *statistics.shape))


def merged(statistics: jax.Array) -> jax.Array:
    """Average the running statistics of a batch norm, [C] or [G, C], over groups: [C]."""
    return statistics if statistics.ndim == 1 else statistics.mean(0)


class FrozenBatchNorm(nnx.Module):
    """Batch normalization that no training moves: by the running statistics always, its affine a constant, too.

    Detection backbones have it since their batches are too small for statistics. All four arrays are `nnx.BatchStat`,
    so that an optimizer of `nnx.Param` doesn't see them.

    Args:
        channels: channels of the input.
        epsilon: added to the variance.
        initial_scale: the scale.
    """

    def __init__(self, channels: int, *, epsilon: float, initial_scale: float = 1.0):
        self.scale = nnx.BatchStat(jnp.full(channels, initial_scale, jnp.float32))
        self.bias = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalize [B, H, W, C], keeping its type; the same in training."""
        scale, bias, mean, var = (merged(one[...]) for one in (self.scale, self.bias, self.mean, self.var))
        return _affine(x, mean, scale * jax.lax.rsqrt(var + self.epsilon), bias)


def _affine(x: jax.Array, mean: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """Compute (x - mean) * gain + bias in float32; mean and gain are [C], or [G, C] for x [G, B, H, W, C]."""
    centered = x.astype(jnp.float32) - spread(mean, x)
    return (centered * spread(gain, x) + spread(bias, x)).astype(x.dtype)


def _statistics(x: jax.Array, running: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute mean and biased variance [G, C] of x [G, B, H, W, C], in one pass.

    Values are shifted by the mean of the group's first example. On TPUs it is the running mean [G, C], so that the sums
    are a part of the convolution that computes x.
    """
    return _moments(x, jax.lax.platform_dependent(x, running, tpu=_running, default=_of_first))


def _moments(x: jax.Array, center: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute mean and biased variance from x - center: a small variance would be lost in E[x²] beside a large mean."""

    def terms(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        deviation = x.astype(jnp.float32) - spread(center, x)
        return deviation, jnp.square(deviation)

    total, squares = sums(terms, x)
    count = x.shape[1] * x.shape[2] * x.shape[3]
    return center + total / count, jnp.maximum(squares / count - jnp.square(total / count), 0)


def _running(_: jax.Array, running: jax.Array) -> jax.Array:
    return running


def _of_first(x: jax.Array, _: jax.Array) -> jax.Array:
    (total,) = sums(lambda x: (x.astype(jnp.float32),), x[:, 0])
    return total / (x.shape[2] * x.shape[3])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array, running: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalize x [G, B, H, W, C] by its own statistics: (y, mean [G, C], variance [G, C]).

    The running mean [G, C] is one that the statistics may be shifted by.

    The gradient is written out because autodiff would keep float32 copies of `x` and pass over them once more.
    The statistics feed only the running averages, so that no gradient is taken through them.
    """
    return _forward(epsilon, x, scale, bias, running)[0]


def _forward(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array, running: jax.Array) -> tuple:
    mean, var = _statistics(x, running)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = _affine(x, mean, scale[None] * inverse, bias)
    return (y, mean, var), (x, mean, inverse, scale)


def _backward(epsilon: float, saved: tuple, gradients: tuple) -> tuple:
    x, mean, inverse, scale = saved
    dy = kept(gradients[0])

    def normalized(x: jax.Array) -> jax.Array:
        return (x.astype(jnp.float32) - spread(mean, x)) * spread(inverse, x)

    def terms(x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        dy = dy.astype(jnp.float32)
        return dy, dy * normalized(x)

    dbias, dscale = sums(terms, x, dy)
    count = x.shape[1] * x.shape[2] * x.shape[3]
    dx = dy.astype(jnp.float32) - spread(dbias / count, x) - normalized(x) * spread(dscale / count, x)
    dx = dx * spread(inverse * scale[None], x)
    return dx.astype(x.dtype), dscale.sum(0), dbias.sum(0), jnp.zeros_like(mean)


_normalize.defvjp(_forward, _backward)
