"""Initial weights are those of jax.nn.initializers."""

import jax
import numpy as np
import pytest

from vise_jax.models import initial

SHAPES = [(7, 7, 3, 16), (3, 3, 33, 40), (1, 1, 5, 700), (1, 1, 64, 64), (3, 3, 4, 256)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (initial.he_fan_out, jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")),
        (initial.normal(0.02), jax.nn.initializers.normal(0.02)),
    ],
)
def test_kernels_have_the_bits_of_jax(shape, ours, theirs) -> None:
    key = jax.random.fold_in(jax.random.key(3), 5)
    expected = np.asarray(theirs(key, shape, np.float32))
    np.testing.assert_array_equal(ours(key, shape), expected)
    # A compiler that sees both scales rounds once.
    np.testing.assert_allclose(jax.jit(lambda key: ours(key, shape))(key), expected, rtol=2e-7)


@pytest.mark.parametrize("shape", [(33, 40), (512, 5), (1, 1)])
def test_matrices_have_the_bits_of_jax(shape) -> None:
    key = jax.random.key(1)
    np.testing.assert_array_equal(
        initial.lecun_normal(key, shape), jax.nn.initializers.lecun_normal()(key, shape, np.float32)
    )


def test_few_programs_draw_many_shapes() -> None:
    initial._draw.clear_cache()
    for shape in SHAPES:
        initial.he_fan_out(jax.random.key(0), shape)
    assert initial._draw._cache_size() == 2
