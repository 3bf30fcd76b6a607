"""Sums of every platform against NumPy's in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from vise_jax.models import conv_cpu, sums


# Rows that are one slice, a prime, and slices of slices.
@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 4), (1, 4, 4, 4, 3), (3, 8, 6, 14, 2), (1, 37, 3), (2, 1, 5)])
@pytest.mark.parametrize("function", [conv_cpu.sums, sums._sums_apart, sums._sums_at_once])
def test_sums_are_those_of_numpy(function, shape):
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
    scale = generator.normal(size=(shape[0], shape[-1])).astype(np.float32)

    def terms(x, y):
        return x, x * y * sums.spread(jnp.asarray(scale), x)

    first, second = function(terms, jnp.asarray(x), jnp.asarray(y))
    between = tuple(range(1, len(shape) - 1))
    x, y = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(first, x.sum(between), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(second, (x * y).sum(between) * scale, rtol=1e-5, atol=1e-5)


def test_norm_is_that_of_numpy():
    arrays = [np.random.default_rng(0).normal(size=shape) for shape in [(3, 3, 8, 16), (16,), (5, 7), (1, 1, 2, 1)]]
    expected = np.linalg.norm(np.concatenate([array.ravel() for array in arrays]))
    arrays = [jnp.asarray(array, jnp.float32) for array in arrays]
    assert float(sums.norm(arrays)) == pytest.approx(expected, rel=1e-6)
    for function in (conv_cpu.sum_of_squares, sums._sum_of_squares):
        assert float(function(*arrays)) == pytest.approx(expected**2, rel=1e-6)
