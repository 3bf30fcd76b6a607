"""Batch norm against formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vise_jax.models import norm as norms
from vise_jax.models.norm import BatchNorm, FrozenBatchNorm, merged, per_group

SHAPE = (8, 5, 6, 3)
EPSILON = 1e-5


def _norm(group=0, channels=SHAPE[-1]):
    norm = BatchNorm(channels, group=group, momentum=0.9, epsilon=EPSILON)
    generator = np.random.default_rng(1)
    norm.scale[...] = jnp.asarray(generator.uniform(0.5, 2, channels), jnp.float32)
    norm.bias[...] = jnp.asarray(generator.normal(size=channels), jnp.float32)
    return norm


def _images(mean=0.0, std=1.0, dtype=np.float32):
    return (mean + std * np.random.default_rng(0).normal(size=SHAPE)).astype(dtype)


def _expected(norm, x, mean, var):
    scale, bias = (np.asarray(value[...], np.float64) for value in (norm.scale, norm.bias))
    return (x.astype(np.float64) - mean) / np.sqrt(var + EPSILON) * scale + bias


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (1000, 1), (-300, 0.1)])
def test_training_normalizes_by_the_batch_whatever_its_mean(mean, std):
    norm, x = _norm(), _images(mean, std)
    exact = x.astype(np.float64)
    batch_mean, batch_var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    y = norm(jnp.asarray(x), train=True)
    np.testing.assert_allclose(y, _expected(norm, x, batch_mean, batch_var), atol=1e-4 * max(1, abs(mean) * 1e-3 / std))
    np.testing.assert_allclose(norm.mean[...], 0.1 * batch_mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * exact.var((0, 1, 2), ddof=1), rtol=1e-4)


def test_many_values_with_a_large_mean():
    x = (1000 + np.random.default_rng(0).normal(size=(16, 64, 64, 2))).astype(np.float32)
    norm = _norm(channels=2)
    exact = x.astype(np.float64)
    y = norm(jnp.asarray(x), train=True)
    np.testing.assert_allclose(y, _expected(norm, x, exact.mean((0, 1, 2)), exact.var((0, 1, 2))), atol=1e-3)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    norm, x = _norm(), _images()
    norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0])
    y = norm(jnp.asarray(x), train=False)
    np.testing.assert_allclose(y, _expected(norm, x, np.array([1, 2, 3]), np.array([4, 5, 6])), atol=1e-5)
    assert norm.mean[...].tolist() == [1, 2, 3]
    assert norm.var[...].tolist() == [4, 5, 6]


def test_groups_have_their_own_statistics_and_share_the_running_ones():
    x = _images() * np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1)
    grouped = _norm(group=2)
    y = grouped(jnp.asarray(x), train=True)
    alone = [_norm() for _ in range(4)]
    parts = [norm(jnp.asarray(x[2 * i : 2 * i + 2]), train=True) for i, norm in enumerate(alone)]
    np.testing.assert_allclose(y, np.concatenate(parts), atol=1e-5)
    for kind in ("mean", "var"):
        average = np.mean([np.asarray(getattr(norm, kind)[...]) for norm in alone], axis=0)
        np.testing.assert_allclose(getattr(grouped, kind)[...], average, rtol=1e-5, atol=1e-6)


def test_running_statistics_of_each_group_are_averaged_where_they_are_read():
    x = _images() * np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1)
    apart, together = _norm(group=2), _norm(group=2)
    for statistics in (apart.mean, apart.var):
        statistics.set_value(per_group(statistics[...], 4))
    for _ in range(3):
        apart(jnp.asarray(x), train=True)
        together(jnp.asarray(x), train=True)
    alone = [_norm() for _ in range(4)]
    for number, norm in enumerate(alone):
        for _ in range(3):
            norm(jnp.asarray(x[2 * number : 2 * number + 2]), train=True)
    for kind in ("mean", "var"):
        found = np.asarray(getattr(apart, kind)[...])
        np.testing.assert_allclose(found, [getattr(norm, kind)[...] for norm in alone], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            merged(getattr(apart, kind)[...]), getattr(together, kind)[...], rtol=1e-5, atol=1e-6
        )
    y = jnp.asarray(_images(2.0))
    np.testing.assert_allclose(apart(y, train=False), together(y, train=False), atol=1e-5)


def test_a_batch_that_is_no_multiple_of_the_group_is_refused():
    with pytest.raises(ValueError, match="batch of 8 is no multiple of the batch norm's group of 3"):
        _norm(group=3)(jnp.asarray(_images()), train=True)


@pytest.mark.parametrize("group", [0, 4])
def test_gradient_equals_autodiff_of_the_formula(group):
    x = jnp.asarray(_images(3.0))
    weights = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE), jnp.float32)
    norm = _norm(group)
    graph, params, statistics = nnx.split(norm, nnx.Param, nnx.BatchStat)

    def ours(params, x):
        return (nnx.merge(graph, params, statistics, copy=True)(x, train=True) * weights).sum()

    def plain(params, x):
        parts = x.reshape(-1, group or 8, *SHAPE[1:])
        centered = parts - parts.mean((1, 2, 3), keepdims=True)
        y = centered / jnp.sqrt(jnp.square(centered).mean((1, 2, 3), keepdims=True) + EPSILON)
        scale, bias = (params[name].get_value().reshape(1, 1, 1, -1) for name in ("scale", "bias"))
        return ((y.reshape(SHAPE) * scale + bias) * weights).sum()

    for found, expected in zip(
        jax.tree.leaves(jax.grad(ours, (0, 1))(params, x)),
        jax.tree.leaves(jax.grad(plain, (0, 1))(params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_in_and_out_with_float32_statistics():
    norm, x = _norm(), _images(5.0)
    half = jnp.asarray(x, jnp.bfloat16)
    y = norm(half, train=True)
    assert y.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
    exact = np.asarray(half, np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean((0, 1, 2)), rtol=1e-5)


def test_a_frozen_norm_is_an_affine_that_training_does_not_move():
    norm = FrozenBatchNorm(2, epsilon=0.0)
    for name, values in {"scale": [2, 1], "bias": [0, 5], "mean": [1, 0], "var": [4, 1]}.items():
        getattr(norm, name)[...] = jnp.asarray(values, jnp.float32)
    x = jnp.asarray([[[[3.0, 2.0]]], [[[1.0, -1.0]]]])
    for train in (False, True):
        np.testing.assert_array_equal(norm(x, train=train), [[[[2, 7]]], [[[0, 4]]]])
    assert not jax.tree.leaves(nnx.state(norm, nnx.Param))
    assert norm.mean[...].tolist() == [1, 0]


@pytest.mark.parametrize(("mean", "center"), [(0, 0), (3, 0), (1000, 990), (-300, -300)])
def test_moments_are_exact_around_a_center_near_the_mean(mean, center):
    x = _images(mean).reshape(2, 4, *SHAPE[1:])
    found = norms._moments(jnp.asarray(x), jnp.full((2, SHAPE[-1]), center, jnp.float32))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found[0], exact.mean((1, 2, 3)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[1], exact.var((1, 2, 3)), rtol=1e-4)


def test_tpus_shift_by_the_running_mean():
    traced = jax.jit(norms._statistics).trace(jnp.ones((1, *SHAPE)), jnp.ones((1, SHAPE[-1])))
    slices = {name: traced.lower(lowering_platforms=(name,)).as_text().count("slice") for name in ("cuda", "tpu")}
    # The first example is a slice, on which the sums of all would wait.
    assert slices["tpu"] == 0 < slices["cuda"]
