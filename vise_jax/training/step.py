"""One training step, compiled for a mesh of devices."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from vise_jax import models
from vise_jax.models.sums import norm
from vise_jax.training import sharding
from vise_jax.training import state as train_state
from vise_jax.training.optimizer import Rate
from vise_jax.training.sharding import AXIS, Layout
from vise_jax.training.state import TrainState
from vise_jax.training.task import Batch, Task, Terms

# `corrupt` int32 [B], 1 for a corrupt example; `signals` int32 [B, Z], summed over all processes.
Control = Mapping[str, jax.Array]
TrainStep = Callable[[TrainState, Batch, Control], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    graphdef: nnx.GraphDef,
    task: Task,
    optimizer: optax.GradientTransformation,
    rate: Rate,
    *,
    seed: int,
    mesh: Mesh,
    layout: Layout,
) -> TrainStep:
    """Compile the training step.

    If every batch-norm group lies on one device, each device computes the gradient of its own examples, microbatch
    after microbatch, and gradients are summed over the devices once. Otherwise the compiler inserts the communication
    that the batch statistics need.

    Args:
        graphdef: graph definition of the model, from `state.create`.
        task: the loss, normalization and augmentation.
        optimizer: of the trainable parameters.
        rate: its learning rate, for the metrics.
        seed: of the horizontal flips.
        mesh: from `sharding.data_mesh`.
        layout: from `sharding.layout`.

    Returns:
        A function of the state (donated), the batch (arrays [B, ...]) and the control inputs. It returns the next state
        and metrics: float32 scalars `loss`, `loss_TERM`, `learning_rate`, `gradient_norm` and `parameter_norm` (after
        the update), `corrupt_examples` (int32, of the run) and `signals` (int32 [Z], summed over the batch).
    """

    def gradients(
        params: nnx.State, frozen: nnx.State, batch_stats: nnx.State, batch: Batch, control: Control
    ) -> tuple[nnx.State, nnx.State, Terms, Terms]:
        """Return gradients, batch statistics, loss terms and counts, of this device's examples or of all."""

        def over_devices(values):  # type: ignore[no-untyped-def]
            return jax.lax.psum(values, AXIS) if layout.local and mesh.size > 1 else values

        counts = dict(task.counts(batch))
        counts = over_devices(counts | {"corrupt": control["corrupt"].sum(), "signals": control["signals"].sum(axis=0)})

        def loss_of(params: nnx.State, microbatch: Batch) -> tuple[jax.Array, tuple[Terms, nnx.State]]:
            model = nnx.merge(graphdef, params, frozen, batch_stats, copy=True)
            inputs = dict(microbatch)
            if "images" in inputs:
                flipped, images = inputs.pop("flipped")[:, None, None, None], inputs["images"]
                images = jnp.where(flipped, images[:, :, ::-1], images) if task.flip else images
                inputs["images"] = task.normalize(images)
            output = task.forward(model, inputs)
            sums = task.loss_sums(output, microbatch)
            terms = {name: value / jnp.maximum(counts[name], 1.0) for name, value in sums.items()}
            return sum(terms.values(), start=jnp.float32(0.0)), (terms, nnx.state(model, nnx.BatchStat))

        def of_microbatch(microbatch: Batch):  # type: ignore[no-untyped-def]
            grads, (terms, stats) = jax.grad(loss_of, has_aux=True)(params, microbatch)
            return (grads, terms), stats

        if layout.microbatches == 1:
            sums, stats = of_microbatch(batch)
        else:
            microbatches = {name: _microbatches(array, layout, mesh) for name, array in batch.items()}
            shapes = jax.eval_shape(of_microbatch, jax.tree.map(lambda array: array[0], microbatches))
            zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
            add = lambda total, batch: (jax.tree.map(jnp.add, total, of_microbatch(batch)), None)  # noqa: E731
            (sums, stats), _ = jax.lax.scan(add, zeros, microbatches)
            # Each microbatch updated the same running statistics: their mean is the update of all groups together.
            stats = jax.tree.map(lambda leaf: leaf / layout.microbatches, stats)
        grads, terms = over_devices(sums)
        return grads, stats, terms, counts

    if layout.local:
        one, many = PartitionSpec(), PartitionSpec(AXIS)
        gradients = jax.shard_map(
            gradients,
            mesh=mesh,
            in_specs=(one, one, many, many, many),
            out_specs=(one, many, one, one),
            # Gradients are of each device's own examples until they are summed explicitly, all at once.
            check_vma=False,
        )

    def train_step(state: TrainState, batch: Batch, control: Control) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = {**batch, "flipped": jnp.zeros(layout.batch_size, bool)}
        if task.flip:
            # Drawn for the whole batch, so that flips don't depend on how it is divided.
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            batch["flipped"] = jax.random.bernoulli(key, shape=(layout.batch_size,))
        grads, batch_stats, terms, counts = gradients(state.params, state.frozen, state.batch_stats, batch, control)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        corrupt_examples = state.corrupt_examples + counts["corrupt"]
        metrics = {
            "loss": sum(terms.values(), start=jnp.float32(0.0)),
            **{f"loss_{name}": term for name, term in terms.items()},
            # A grid of learning rates shares one program: the peak is then part of the state.
            "learning_rate": rate(state.step) * optax.tree.get(opt_state, "peak_rate", 1.0),
            "gradient_norm": norm(jax.tree.leaves(grads)),
            "parameter_norm": norm(jax.tree.leaves(params)),
            "corrupt_examples": corrupt_examples,
            "signals": counts["signals"],
        }
        return TrainState(state.step + 1, corrupt_examples, params, state.frozen, batch_stats, opt_state), metrics

    places, everywhere, split = train_state.shardings(mesh, layout), sharding.replicated(mesh), sharding.split(mesh)
    return jax.jit(
        train_step,
        in_shardings=(places, split, split),
        out_shardings=(places, everywhere),
        donate_argnums=0,
        compiler_options=models.compiler_options(mesh.devices.flat[0].platform),
    )


def _microbatches(array: jax.Array, layout: Layout, mesh: Mesh) -> jax.Array:
    """Reshape [B, ...] to [M, B / M, ...].

    With device-local groups `array` belongs to one device, and so does each microbatch. Otherwise a microbatch is a
    range of the whole batch, so that no group is cut, and is divided over the devices again.
    """
    microbatches = array.reshape(layout.microbatches, -1, *array.shape[1:])
    if layout.local:
        return microbatches
    return jax.lax.with_sharding_constraint(microbatches, jax.NamedSharding(mesh, PartitionSpec(None, AXIS)))
