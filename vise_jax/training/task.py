"""The training task: model, data and loss, as the loop and the step use them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vise_jax.training.sharding import Layout
from vise_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
# float32 scalars by the name of a loss term.
Terms = Mapping[str, jax.Array]


class Evaluator(Protocol):
    """Measures a state. Every process calls it; values of the first process are recorded."""

    def run(self, state: TrainState) -> dict[str, float]:
        """Return numbers by name."""


def forward(model: nnx.Module, batch: Batch) -> Mapping[str, jax.Array]:
    """Apply a model to images in training mode; the default of `Task.forward`."""
    return model(batch["images"], train=True)[0]  # type: ignore[operator]


def no_evaluators(graphdef: nnx.GraphDef, mesh: Mesh, layout: Layout) -> tuple[Evaluator, ...]:
    """Return no evaluators; the default of `Task.evaluators`."""
    return ()


@dataclass(frozen=True)
class Task:
    """A model, its data and its loss.

    Args:
        build: from the size of a batch-norm group to the model, with the weights that the run starts from.
        batches: from a step and the rows of this process, int [L], to host batches without end from that step on:
            `images` uint8 [L, S, S, 3] (if the model takes images), `example_id` bytes [L] (b"" for a corrupt example),
            and other inputs and labels [L, ...].
        examples: number of examples in an epoch.
        normalize: from `images`, uint8 [B, S, S, 3], to normalized ones, float32. Runs on the device.
        loss_sums: from the output of `forward` and the batch to the sum of each loss term over the examples.
        counts: from the batch to the number of examples that each loss term is a mean over.
        forward: applies the model to a batch, with normalized images.
        trainable: NNX filter of the parameters to train; the others stay as they are and have no optimizer state.
        flip: flip images horizontally at random, on the device.
        evaluators: run every `evaluate_every` steps and at the end.
    """

    build: Callable[[int], nnx.Module]
    batches: Callable[[int, np.ndarray], Iterator[dict[str, np.ndarray]]]
    examples: int
    normalize: Callable[[jax.Array], jax.Array]
    loss_sums: Callable[[Mapping[str, jax.Array], Batch], Terms]
    counts: Callable[[Batch], Terms]
    forward: Callable[[nnx.Module, Batch], Mapping[str, jax.Array]] = forward
    trainable: nnx.filterlib.Filter = nnx.Param
    flip: bool = True
    evaluators: Callable[[nnx.GraphDef, Mesh, Layout], tuple[Evaluator, ...]] = no_evaluators
