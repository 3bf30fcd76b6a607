"""Convolutions against sums written out, and the two ways of a grouped one against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vise_jax.models.conv import Conv
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


@pytest.mark.parametrize("backend", ["gpu", "cpu"])
@pytest.mark.parametrize(("stride", "side"), [(1, 5), (2, 6), (2, 7)])
def test_grouped_conv(monkeypatch, backend, stride, side):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    conv = GroupedConv(12, 3, stride=stride, dtype="float32", rngs=nnx.Rngs(0))
    assert conv.kernel.shape == (3, 3, 4, 12)
    x = _images(side, 12)
    expected = _by_hand(x, np.asarray(conv.kernel[...]), stride, groups=3)
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_both_ways_of_a_grouped_conv_have_one_gradient(monkeypatch, stride):
    x = jnp.asarray(_images(7, 12))
    gradients = []
    for backend in ("gpu", "cpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        graph, params = nnx.split(GroupedConv(12, 3, stride=stride, dtype="float32", rngs=nnx.Rngs(0)))
        objective = lambda params, x: jnp.sin(nnx.merge(graph, params)(x)).sum()  # noqa: B023, E731
        gradients.append(jax.tree.leaves(jax.grad(objective, (0, 1))(params, x)))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_bfloat16_products_of_float32_kernels():
    x = jnp.asarray(_images(6, 12))
    for conv in (
        Conv(12, 4, 1, dtype="bfloat16", rngs=nnx.Rngs(0)),
        Conv(12, 4, 3, dtype="bfloat16", rngs=nnx.Rngs(0)),
        GroupedConv(12, 3, dtype="bfloat16", rngs=nnx.Rngs(0)),
    ):
        assert conv.kernel.dtype == jnp.float32
        assert conv(x).dtype == jnp.bfloat16
