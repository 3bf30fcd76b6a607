"""Sums over all positions of activations, per channel, by the functions of the platform that is compiled for."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from vise_jax.models import conv_cpu

# From arrays [G, ..., C], or parts of them in the dimensions between, to the terms of each sum, of the same shape.
Terms = Callable[..., tuple[jax.Array, ...]]


def sums(terms: Terms, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Sum what `terms` computes from arrays [G, ..., C] over all dimensions between: a float32 [G, C] of each.

    Args:
        terms: elementwise; may close over what broadcasts against a part, see `spread`.
        arrays: of one shape.
    """
    return jax.lax.platform_dependent(
        *arrays,
        cpu=partial(conv_cpu.sums, terms),
        tpu=partial(_sums_apart, terms),
        default=partial(_sums_at_once, terms),
    )


def spread(values: jax.Array, like: jax.Array) -> jax.Array:
    """Reshape [G, C] to [G, 1, ..., 1, C], or [C] to [1, ..., 1, C], with as many dimensions as `like`."""
    return values.reshape(*values.shape[:-1], *(1,) * (like.ndim - values.ndim), values.shape[-1])


def norm(arrays: list[jax.Array]) -> jax.Array:
    """Return the Euclidean norm of all arrays together, a float32 scalar."""
    return jnp.sqrt(jax.lax.platform_dependent(*arrays, cpu=conv_cpu.sum_of_squares, default=_sum_of_squares))


def _sum_of_squares(*arrays: jax.Array) -> jax.Array:
    return jnp.stack([jnp.square(array).sum() for array in arrays]).sum()


def _between(array: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, array.ndim - 1))


def _sums_apart(terms: Terms, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Sum one array after the other. XLA's TPU compiler fuses these sums itself, and not `_sums_at_once`."""
    return tuple(term.sum(_between(term)) for term in terms(*arrays))


def _sums_at_once(terms: Terms, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Sum all terms in one pass over what they are computed from."""
    values = terms(*arrays)
    zeros = (jnp.zeros((), jnp.float32),) * len(values)
    add = lambda a, b: tuple(map(jnp.add, a, b))  # noqa: E731
    return tuple(jax.lax.reduce(values, zeros, add, _between(values[0])))
