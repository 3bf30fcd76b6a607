"""Initial weights, bit-equal to those of `jax.nn.initializers`, without a program for each shape.

XLA compiles a normal draw for half a second, and a ResNet-50 has kernels of twenty sizes. JAX's random bits depend on
the key and the position in the array alone (`jax_threefry_partitionable`): part of a larger draw is the smaller one.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# From a key, a shape and a dtype to an array.
Initializer = Callable[..., jax.Array]

# Standard deviation of a standard normal variable cut off at -2 and 2.
_TRUNCATED = 0.87962566103423978


def normal(stddev: float) -> Initializer:
    """Return `jax.nn.initializers.normal(stddev)`."""
    return lambda key, shape, dtype=jnp.float32: _scaled(_standard, key, shape, stddev, dtype)


def he_fan_out(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Draw a convolution's kernel [k, k, C, D] with variance 2 / fan_out (He et al. 2015), not truncated.

    That is torchvision's for ResNets.
    """
    fan_out = shape[0] * shape[1] * shape[3]
    return _scaled(_standard, key, shape, np.sqrt(np.float32(2 / fan_out)), dtype)


def lecun_normal(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Draw a matrix [C, D] with variance 1 / C, truncated at two standard deviations (`jax.nn.initializers`)."""
    return _scaled(_cut_off, key, shape, np.sqrt(np.float32(1 / shape[0])) / np.float32(_TRUNCATED), dtype)


def _standard(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape)


def _cut_off(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.truncated_normal(key, -2, 2, shape)


def _scaled(
    sample: Callable[..., jax.Array],
    key: jax.Array,
    shape: tuple[int, ...],
    stddev: float | np.floating,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    scale = np.float32(stddev)
    if isinstance(key, jax.core.Tracer):
        return (sample(key, shape) * scale).astype(dtype)
    count = math.prod(shape)
    draws = np.asarray(_draw(sample, key, _size(count)))[:count]
    return jnp.asarray((draws * scale).reshape(shape), dtype)


def _size(count: int) -> int:
    """Return the smallest power of 4, at least 4,096, that is not smaller."""
    return 4 ** max(6, math.ceil(math.log(count, 4)))


@functools.partial(jax.jit, static_argnames=("sample", "size"))
def _draw(sample: Callable[..., jax.Array], key: jax.Array, size: int) -> jax.Array:
    return sample(key, (size,))
