"""Max-pooling against Flax's, whose gradient XLA computes by select-and-scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vise_jax.models import pool
from vise_jax.models.pool import max_pool


def _expected(x):
    return nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 8, 3), (1, 6, 5, 2), (3, 1, 2, 1)])
def test_maxima_and_gradient_are_those_of_xla_bit_for_bit(shape):
    generator = np.random.default_rng(0)
    # Rounded and rectified, so that most windows have several maxima.
    x = jnp.asarray(np.maximum(generator.normal(size=shape), 0).round(1), jnp.float32)
    expected, pull = jax.vjp(_expected, x)
    found, ours = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(found, expected)
    cotangent = jnp.asarray(generator.normal(size=expected.shape), jnp.float32)
    np.testing.assert_array_equal(ours(cotangent)[0], pull(cotangent)[0])
    for of_platform in (pool._by_xla, pool._by_comparison):
        np.testing.assert_array_equal(of_platform(x, expected, cotangent), pull(cotangent)[0])


def test_the_gradient_goes_to_the_first_of_equal_maxima():
    (gradient,) = jax.vjp(max_pool, jnp.ones((1, 2, 2, 1)))[1](jnp.full((1, 1, 1, 1), 3.0))
    assert gradient[0, :, :, 0].tolist() == [[3, 0], [0, 0]]
