"""Optimizers and schedules against the update rule worked by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vise_jax import config as vise_config
from vise_jax.training.pretrain import make_optimizer


def learning_rate(training, steps):
    return make_optimizer(training, steps)[0]


def training(**keys: float):
    config = vise_config.base().training
    config.update(keys)
    return config


def test_schedule_warms_up_linearly_and_falls_as_a_cosine():
    rate = learning_rate(training(batch_size=1536, learning_rate=0.1, warmup_fraction=0.05), steps=1000)
    rates = np.array([rate(jnp.int32(step)) for step in range(1000)])
    np.testing.assert_allclose(rates[:50], 0.6 * np.arange(1, 51) / 50, rtol=1e-5)
    half_cosine = 0.6 * 0.5 * (1 + np.cos(np.pi * np.arange(950) / 950))
    np.testing.assert_allclose(rates[50:], half_cosine, rtol=1e-4, atol=1e-7)
    assert rates.max() == pytest.approx(0.6, rel=1e-6)


def test_one_step_without_warmup_starts_at_the_peak():
    rate = learning_rate(training(batch_size=256, learning_rate=0.1, warmup_fraction=0.0), steps=1)
    assert float(rate(jnp.int32(0))) == pytest.approx(0.1)


def test_updates_are_torchs_and_vectors_do_not_decay():
    config = training(batch_size=256, learning_rate=0.1, momentum=0.9, weight_decay=0.01, warmup_fraction=0.0)
    steps = 4
    rate, optimizer = make_optimizer(config, steps)
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    state = optimizer.init(params)
    expected = {name: np.asarray(value, np.float64) for name, value in params.items()}
    momentum = {name: np.zeros_like(value) for name, value in expected.items()}
    gradients = np.random.default_rng(0).normal(size=(steps, 3))
    for step, values in enumerate(gradients):
        gradient = {"kernel": values[None, :2], "bias": values[2:]}
        updates, state = optimizer.update(
            {name: jnp.asarray(value, jnp.float32) for name, value in gradient.items()}, state, params
        )
        params = optax.apply_updates(params, updates)
        # As the documentation of torch.optim.SGD says, without dampening.
        for name in expected:
            decay = 0.01 * expected[name] if name == "kernel" else 0.0
            momentum[name] = 0.9 * momentum[name] + gradient[name] + decay
            expected[name] = expected[name] - float(rate(jnp.int32(step))) * momentum[name]
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-5)


def test_the_step_schedule_halves_at_equal_intervals():
    config = training(batch_size=256, learning_rate=1.0, warmup_fraction=0.1, schedule="step", decays=3)
    rate = learning_rate(config, steps=100)
    rates = np.array([rate(jnp.int32(step)) for step in range(100)])
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
    # Ninety steps in four intervals of 22.5.
    expected = [0.5 ** int(step / 22.5) for step in range(90)]
    np.testing.assert_allclose(rates[10:], expected, rtol=1e-6)


def test_the_constant_schedule_stays_at_the_peak():
    rate = learning_rate(training(batch_size=512, learning_rate=0.1, warmup_fraction=0.0, schedule="constant"), steps=9)
    assert all(float(rate(jnp.int32(step))) == pytest.approx(0.2) for step in range(9))


def test_adamw_is_loshchilovs_and_vectors_do_not_decay():
    config = training(
        optimizer="adamw",
        batch_size=256,
        learning_rate=0.1,
        adam_betas=(0.8, 0.95),
        adam_epsilon=1e-3,
        weight_decay=0.01,
        warmup_fraction=0.0,
    )
    steps = 4
    rate, optimizer = make_optimizer(config, steps)
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    state = optimizer.init(params)
    expected = {name: np.asarray(value, np.float64) for name, value in params.items()}
    first, second = ({name: np.zeros_like(value) for name, value in expected.items()} for _ in range(2))
    for step, values in enumerate(np.random.default_rng(0).normal(size=(steps, 3)), start=1):
        gradient = {"kernel": values[None, :2], "bias": values[2:]}
        # Optax's own bias correction is not written for strict types.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(
                {name: jnp.asarray(value, jnp.float32) for name, value in gradient.items()}, state, params
            )
        params = optax.apply_updates(params, updates)
        # Loshchilov & Hutter 2019, Algorithm 2, the decay scaled by the rate as in torch.optim.AdamW.
        for name, value in gradient.items():
            first[name] = 0.8 * first[name] + 0.2 * value
            second[name] = 0.95 * second[name] + 0.05 * value**2
            move = first[name] / (1 - 0.8**step) / (np.sqrt(second[name] / (1 - 0.95**step)) + 1e-3)
            decay = 0.01 * expected[name] if name == "kernel" else 0.0
            expected[name] = expected[name] - float(rate(jnp.int32(step - 1))) * (move + decay)
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-5)
