"""The training step is the same whatever the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vise_jax import config as vise_config
from vise_jax import models
from vise_jax.training import optimizer, sharding
from vise_jax.training import state as train_state
from vise_jax.training.step import flip_at_random, make_train_step


def losses(devices: int, bn_group: int) -> list[float]:
    """Three steps on `devices` devices."""
    config = vise_config.base()
    config.data.image_size = 32
    config.training.batch_size = 8
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    model = models.build("resnet18", width=4, heads={"comments": 5, "reactions": 3}, bn_group=bn_group)
    graphdef, state = train_state.create(model, optimizer.sgd(config.training, 10))
    state = jax.device_put(state, sharding.replicated(mesh))
    step = make_train_step(graphdef, config, 10, mesh)
    draw, found = np.random.default_rng(0), []
    for _ in range(3):
        batch = {
            "images": draw.integers(0, 256, (8, 32, 32, 3), np.uint8),
            "comment_labels": draw.integers(-1, 5, (8, 2), np.int32),
            "comment_weights": np.ones((8, 2), np.float32),
            "reaction_label": draw.integers(-1, 3, 8, np.int32),
        }
        state, metrics = step(state, sharding.put_batch(mesh, batch))
        assert set(metrics) == {"loss", "loss_comments", "loss_reactions", "learning_rate"}
        found.append(float(metrics["loss"]))
    assert int(state.step) == 3
    return found


@pytest.mark.parametrize("bn_group", [0, 2])
def test_losses_do_not_depend_on_the_number_of_devices(bn_group):
    np.testing.assert_allclose(losses(1, bn_group), losses(4, bn_group), rtol=1e-5)


def test_flips_mirror_about_half_of_the_images():
    images = jnp.arange(64 * 2 * 3 * 3, dtype=jnp.uint8).reshape(64, 2, 3, 3)
    flipped = np.asarray(flip_at_random(images, jax.random.key(0)))
    mirrored = [np.array_equal(flipped[i], images[i, :, ::-1]) for i in range(64)]
    same = [np.array_equal(flipped[i], images[i]) for i in range(64)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48
