"""Convolutions of every platform against sums written out, and their gradients against one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vise_jax.models import conv_cpu, conv_xla
from vise_jax.models.conv import Conv, compiler_options, convolve, kept
from vise_jax.models.grouped_conv import GroupedConv


def _by_hand(x, kernel, stride, groups=1):
    """The definition of a convolution with zeros around, in float64."""
    side, size = (kernel.shape[0] - 1) // 2, kernel.shape[2]
    out = kernel.shape[3] // groups
    padded = np.pad(x.astype(np.float64), ((0, 0), (side, side), (side, side), (0, 0)))
    rows, columns = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    y = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + kernel.shape[0], j * stride : j * stride + kernel.shape[1]]
            for g in range(groups):
                part = window[..., g * size : (g + 1) * size]
                y[:, i, j, g * out : (g + 1) * out] = np.einsum(
                    "bhwc,hwcd->bd", part, kernel[..., g * out : (g + 1) * out]
                )
    return y


def _images(side, channels):
    return np.random.default_rng(0).normal(size=(2, side, side, channels)).astype(np.float32)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize(("stride", "side"), [(1, 6), (2, 6), (2, 7)])
def test_conv(kernel_size, stride, side):
    conv = Conv(4, 5, kernel_size, stride=stride, dtype="float32", rngs=nnx.Rngs(0))
    x = _images(side, 4)
    np.testing.assert_allclose(conv(jnp.asarray(x)), _by_hand(x, np.asarray(conv.kernel[...]), stride), atol=1e-5)


PATHS = {"cpu": conv_cpu, "xla": conv_xla}
# Kernel size, stride, groups, and sides of the map on both sides of each choice of `conv_cpu`.
CASES = [
    *((1, stride, 1, side) for stride in (1, 2) for side in (1, 2, 6, 7)),
    *((3, stride, groups, side) for stride in (1, 2) for groups in (1, 3) for side in (1, 2, 3, 4, 5, 6, 7)),
    (7, 2, 1, 9),
]


def _weights(kernel_size, groups, channels=12, out=6):
    shape = (kernel_size, kernel_size, channels // groups, out)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("kernel_size", "stride", "groups", "side"), CASES)
def test_every_path_is_the_definition(path, kernel_size, stride, groups, side):
    x, kernel = _images(side, 12), _weights(kernel_size, groups)
    expected = _by_hand(x, kernel, stride, groups)
    found = PATHS[path].convolve(jnp.asarray(x), jnp.asarray(kernel), stride, groups)
    np.testing.assert_allclose(found, expected, atol=1e-4)


# Channels on both sides of `conv_cpu._CHANNELS`.
@pytest.mark.parametrize(
    ("kernel_size", "stride", "groups", "side", "channels"),
    [(*case, channels) for case in CASES for channels in ((12, 66) if case[:2] == (3, 2) else (12,))],
)
def test_every_path_has_the_gradients_of_xla(kernel_size, stride, groups, side, channels):
    x, kernel = jnp.asarray(_images(side, channels)), jnp.asarray(_weights(kernel_size, groups, channels))
    y, pull = jax.vjp(lambda x, kernel: conv_xla.convolve(x, kernel, stride, groups), x, kernel)
    cotangent = jnp.asarray(np.random.default_rng(2).normal(size=y.shape).astype(np.float32))
    _, chosen = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, groups), x, kernel)
    for found in (
        *(path.gradients(x, kernel, cotangent, stride, groups) for path in PATHS.values()),
        chosen(cotangent),
    ):
        for one, expected in zip(found, pull(cotangent), strict=True):
            np.testing.assert_allclose(one, expected, atol=1e-4)


def test_the_path_follows_the_platform_that_is_compiled_for():
    """Not the one that compiles: programs are compiled here for accelerators that are elsewhere."""
    x, kernel = jnp.zeros((2, 16, 16, 12)), jnp.zeros((3, 3, 4, 12))
    gradient = jax.jit(jax.grad(lambda kernel: jnp.sin(convolve(x, kernel, 1, 3)).sum()))
    programs = {
        platform: gradient.trace(kernel).lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu")
    }
    assert "batch_group_count = 3" in programs["tpu"]
    assert "batch_group_count = 3" not in programs["cpu"]


def test_bfloat16_products_of_float32_kernels():
    x = jnp.asarray(_images(6, 12))
    for conv in (
        Conv(12, 4, 1, dtype="bfloat16", rngs=nnx.Rngs(0)),
        Conv(12, 4, 3, dtype="bfloat16", rngs=nnx.Rngs(0)),
        GroupedConv(12, 3, dtype="bfloat16", rngs=nnx.Rngs(0)),
    ):
        assert conv.kernel.dtype == jnp.float32
        assert conv(x).dtype == jnp.bfloat16


def test_an_activation_is_kept_on_cpus_and_left_to_the_compiler_elsewhere():
    def double(x: jax.Array) -> jax.Array:
        return kept(x + 1) * 2

    x = jnp.arange(4.0)
    compiled = jax.jit(double, compiler_options=compiler_options("cpu")).lower(x).compile()
    # Another name of the pass that drops barriers would make steps slow again, and nothing else.
    assert "opt-barrier" in compiled.as_text()
    np.testing.assert_array_equal(compiled(x), 2 * (x + 1))
    np.testing.assert_array_equal(jax.grad(lambda x: double(x).sum())(x), np.full(4, 2))
    assert "optimization_barrier" not in jax.jit(double).trace(x).lower(lowering_platforms=("tpu",)).as_text()
