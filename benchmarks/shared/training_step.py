"""The training step that `benchmarks/step.py` times and `benchmarks/compiled.py` compiles."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vise_jax import config, models
from vise_jax.training import pretrain, sharding
from vise_jax.training import state as train_state
from vise_jax.training.sharding import Layout
from vise_jax.training.state import TrainState
from vise_jax.training.step import TrainStep, make_train_step

HEADS = {"comments": 5000, "reactions": 128}
LABELS_PER_IMAGE = 8


class Built(NamedTuple):
    """A step that was not compiled yet.

    Attributes:
        step: the function.
        state: its first argument, on the host.
        mesh: the devices.
        layout: of the batch on them.
    """

    step: TrainStep
    state: TrainState
    mesh: Mesh
    layout: Layout


def build(
    name: str,
    *,
    width: int,
    batch_size: int,
    image_size: int,
    dtype: str,
    devices: Sequence[jax.Device],
    remat: tuple[int, ...] = (),
) -> Built:
    """Build the step of `train.py` for an encoder and two heads."""
    experiment = config.base()
    experiment.model.update(name=name, width=width, dtype=dtype)
    experiment.training.update(batch_size=batch_size, remat=remat)
    experiment.data.image_size = image_size
    config.validate(experiment)
    mesh = sharding.data_mesh(devices)
    layout = sharding.layout(batch_size, mesh.size)
    model = models.build(name, width=width, heads=HEADS, bn_group=layout.bn_group, dtype=dtype, remat=remat)
    total = 1_000_000
    rate, optimizer = pretrain.make_optimizer(experiment.training, total)
    graphdef, state = train_state.create(model, optimizer, layout)
    task = pretrain.make_task(experiment, {"examples": total, "validation": {"examples": 0}}, lambda _: model)
    step = make_train_step(graphdef, task, optimizer, rate, seed=0, mesh=mesh, layout=layout)
    return Built(step, state, mesh, layout)


def batch(size: int, side: int) -> dict[str, np.ndarray]:
    """Draw random images and labels, every example with both kinds; see `vise_jax.training.step` for shapes."""
    generator = np.random.default_rng(0)
    return {
        "images": generator.integers(0, 256, (size, side, side, 3), np.uint8),
        "comment_labels": generator.integers(0, HEADS["comments"], (size, LABELS_PER_IMAGE), np.int32),
        "comment_weights": np.ones((size, LABELS_PER_IMAGE), np.float32),
        "reaction_label": generator.integers(0, HEADS["reactions"], size, np.int32),
    }


def control(size: int) -> dict[str, np.ndarray]:
    """Return the control inputs of a batch without corrupt examples and requests."""
    return {"corrupt": np.zeros(size, np.int32), "signals": np.zeros((size, 3), np.int32)}
