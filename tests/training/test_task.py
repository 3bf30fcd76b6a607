"""A task of its own on the engine: what is not trainable stays as it is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vise_jax import models
from vise_jax.training import sharding
from vise_jax.training import state as train_state
from vise_jax.training.step import make_train_step
from vise_jax.training.task import Task

BATCH = 8


def task() -> Task:
    """Classify images by a linear head on a frozen encoder."""

    def forward(model, batch):
        _, intermediates = model.encoder(batch["images"], train=False)
        return {"class": model.heads["class"](intermediates["features"])}

    def loss_sums(output, batch):
        return {"class": optax.softmax_cross_entropy_with_integer_labels(output["class"], batch["label"]).sum()}

    return Task(
        build=lambda bn_group: models.build("tiny", width=4, heads={"class": 3}, bn_group=bn_group),
        batches=lambda step, rows: iter(()),
        examples=100,
        normalize=lambda images: images.astype(jnp.float32) / 255.0,
        loss_sums=loss_sums,
        counts=lambda batch: {"class": jnp.float32(batch["label"].size)},
        forward=forward,
        trainable=nnx.PathContains("heads"),
        flip=False,
    )


def leaves(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf).copy() for name, leaf in train_state.named_leaves(tree).items()}


def test_only_the_trainable_parameters_move():
    linear = task()
    mesh, layout = sharding.data_mesh(jax.devices()[:1]), sharding.layout(BATCH, 1)
    optimizer = optax.sgd(0.1, momentum=0.9)
    graphdef, state = train_state.create(linear.build(layout.bn_group), optimizer, layout, linear.trainable)
    assert all("heads" in name for name in leaves(state.params))
    # The optimizer holds a momentum for each trainable parameter and nothing else.
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == sum(
        leaf.size for leaf in jax.tree.leaves(state.params)
    )
    step = make_train_step(graphdef, linear, optimizer, lambda _: jnp.float32(0.1), seed=0, mesh=mesh, layout=layout)
    draw = np.random.default_rng(0)
    batch = {
        "images": draw.integers(0, 256, (BATCH, 32, 32, 3), np.uint8),
        "label": draw.integers(0, 3, BATCH, np.int32),
    }
    control = {"corrupt": np.zeros(BATCH, np.int32), "signals": np.zeros((BATCH, 3), np.int32)}
    before = {part: leaves(getattr(state, part)) for part in ("params", "frozen", "batch_stats")}
    state, metrics = step(state, sharding.put_batch(mesh, batch), sharding.put_batch(mesh, control))
    for part in ("frozen", "batch_stats"):
        for name, value in leaves(getattr(state, part)).items():
            np.testing.assert_array_equal(value, before[part][name], err_msg=name)
    assert all((value != before["params"][name]).any() for name, value in leaves(state.params).items())
    assert float(metrics["loss"]) > 0


def test_a_task_that_freezes_nothing_has_no_frozen_parameters():
    everything = replace(task(), trainable=nnx.Param)
    _, state = train_state.create(everything.build(8), optax.sgd(0.1), sharding.layout(8, 1), everything.trainable)
    assert not jax.tree.leaves(state.frozen)
