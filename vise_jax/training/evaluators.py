"""Evaluators: objects that measure a training state, `run(state) → {name: value}`."""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vise_jax import models
from vise_jax.training import engagement_loss, sharding
from vise_jax.training import state as train_state
from vise_jax.training.sharding import Layout
from vise_jax.training.state import TrainState
from vise_jax.training.task import Batch

# From images, uint8 [B, S, S, 3], to features, float32 [B, D].
Features = Callable[[np.ndarray], np.ndarray]
# Measures features; runs on the first process alone.
Probe = Callable[[Features], Mapping[str, float]]


class FeatureEvaluator:
    """Measure the encoder's features with a probe, e.g. its kNN accuracy.

    Args:
        probe: from the feature function to numbers by name; None on all processes but the first.
        graphdef: graph definition of a model with an attribute `encoder`.
        mesh: all devices.
        normalize: from images to the encoder's input, on the device.
    """

    def __init__(
        self, probe: Probe | None, graphdef: nnx.GraphDef, mesh: Mesh, normalize: Callable[[jax.Array], jax.Array]
    ):
        self._probe, self._mesh = probe, mesh
        self._encode = jax.jit(
            lambda weights, images: nnx.merge(graphdef, weights).encoder(normalize(images), train=False)[0],
            compiler_options=models.compiler_options(mesh.devices.flat[0].platform),
        )

    def run(self, state: TrainState) -> dict[str, float]:
        """Return the probe's numbers, on the first process."""
        weights = train_state.on_one_device(state, self._mesh)
        if self._probe is None:
            return {}
        return dict(self._probe(lambda images: np.asarray(self._encode(weights, images))))


class ValidationEvaluator:
    """Measure loss and accuracy on the validation examples, each counted once.

    Args:
        batches: returns an iterator over the validation batches of this process, as host arrays.
        graphdef: graph definition of the model.
        mesh: all devices.
        layout: how a batch is divided.
        normalize: from images to the model's input, on the device.
    """

    def __init__(
        self,
        batches: Callable[[], Iterator[dict[str, np.ndarray]]],
        graphdef: nnx.GraphDef,
        mesh: Mesh,
        layout: Layout,
        normalize: Callable[[jax.Array], jax.Array],
    ):
        self._batches, self._mesh = batches, mesh
        self._step = make_evaluation_step(graphdef, normalize, mesh, layout)

    def run(self, state: TrainState) -> dict[str, float]:
        """Return `validation_loss`, and for each head `validation_{loss,top1,top5}_HEAD`, means over its examples."""
        sums: dict[str, float] = {}
        weights = nnx.merge_state(state.params, state.frozen)
        for batch in self._batches():
            del batch["example_id"]
            for name, value in self._step(weights, state.batch_stats, sharding.put_batch(self._mesh, batch)).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        heads = [name.removeprefix("labeled_") for name in sums if name.startswith("labeled_")]
        means = {
            f"validation_{name}_{head}": sums[f"{name}_{head}"] / max(sums[f"labeled_{head}"], 1)
            for name in ("loss", "top1", "top5")
            for head in heads
        }
        return {"validation_loss": sum(means[f"validation_loss_{head}"] for head in heads)} | means


def make_evaluation_step(
    graphdef: nnx.GraphDef, normalize: Callable[[jax.Array], jax.Array], mesh: Mesh, layout: Layout
) -> Callable[[nnx.State, nnx.State, Batch], dict[str, jax.Array]]:
    """Compile the evaluation of one batch.

    Returns:
        A function of parameters, batch statistics and a batch. It returns sums over the labeled examples, float32
        scalars: `loss_HEAD`, `top1_HEAD`, `top5_HEAD` (top-k correct: one of the labels is among the k largest logits)
        and their number, `labeled_HEAD`.
    """

    def evaluation_step(params: nnx.State, batch_stats: nnx.State, batch: Batch) -> dict[str, jax.Array]:
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        logits, _ = model(normalize(batch["images"]), train=False)
        labeled = engagement_loss.labeled(batch)
        sums = {
            "loss": engagement_loss.loss_sums(logits, batch),
            "top1": engagement_loss.top_k_correct(logits, batch, 1),
            "top5": engagement_loss.top_k_correct(logits, batch, 5),
            "labeled": {head: labeled[head].sum() for head in logits},
        }
        return {f"{name}_{head}": value for name, values in sums.items() for head, value in values.items()}

    places = train_state.shardings(mesh, layout)
    return jax.jit(
        evaluation_step,
        in_shardings=(places.params, places.batch_stats, sharding.split(mesh)),
        out_shardings=sharding.replicated(mesh),
        compiler_options=models.compiler_options(mesh.devices.flat[0].platform),
    )
