"""One step of training, compiled for a mesh of devices; and the step of an evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from vise_jax.encoder import imagenet_preprocessing, normalize
from vise_jax.training import engagement_loss, optimizer, sharding
from vise_jax.training import state as train_state
from vise_jax.training.sharding import AXIS, Layout
from vise_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(graphdef: nnx.GraphDef, config: ConfigDict, steps: int, mesh: Mesh, layout: Layout) -> TrainStep:
    """Compile the training step.

    Where each group of batch norm lies on one device, every device works on its own examples, microbatch after
    microbatch, and the only exchange is one sum of all gradients (and, before it, of a few counts). Otherwise the
    compiler adds what the groups' statistics need.

    Args:
        graphdef: structure of the model, as `state.create` split it off.
        config: the whole configuration.
        steps: length of the whole run (the learning rate depends on it).
        mesh: from `sharding.data_mesh`.
        layout: from `sharding.layout`.

    Returns:
        From the state, which is donated, and a batch with `images` (uint8 [B, S, S, 3]), `comment_labels` (int32
        [B, M]), `comment_weights` (float32 [B, M]), `reaction_label` (int32 [B]) and `signals` (int32 [B, Z]) to the
        next state and the metrics of this step: `loss`, `loss_comments`, `loss_reactions`, `learning_rate`,
        `gradient_norm`, `parameter_norm` (after the step), float32 scalars, `corrupt_examples` (so far), int32, and
        `signals`, int32 [Z], summed over the batch: what the processes tell each other.
    """
    transformation = optimizer.make(config.training, steps)
    rate = optimizer.learning_rate(config.training, steps)
    preprocessing = imagenet_preprocessing(config.data.image_size)

    def gradients(params: nnx.State, batch_stats: nnx.State, batch: Batch) -> tuple[Any, nnx.State, Any, Any]:
        """Of this device's examples where groups are local, else of all: gradients, statistics, losses, counts."""

        def over_devices(values: Any) -> Any:
            return jax.lax.psum(values, AXIS) if layout.local else values

        counts: dict[str, Any] = {head: known.sum() for head, known in engagement_loss.labeled(batch).items()}
        counts = over_devices(counts | {"bad": batch["bad"].sum(), "signals": batch["signals"].sum(0)})

        def loss_of(params: nnx.State, part: Batch) -> tuple[jax.Array, tuple[dict[str, jax.Array], nnx.State]]:
            model = nnx.merge(graphdef, params, batch_stats, copy=True)
            images = jnp.where(part["flipped"][:, None, None, None], part["images"][:, :, ::-1], part["images"])
            logits, _ = model(normalize(images, preprocessing), train=True)
            loss, terms = engagement_loss.engagement_loss(logits, part, counts)
            return loss, (terms, nnx.state(model, nnx.BatchStat))

        def of_part(part: Batch) -> tuple[Any, nnx.State]:
            grads, (terms, stats) = jax.grad(loss_of, has_aux=True)(params, part)
            return (grads, terms), stats

        if layout.microbatches == 1:
            sums, stats = of_part(batch)
        else:
            parts = {name: _parts(array, layout, mesh) for name, array in batch.items()}
            shapes = jax.eval_shape(of_part, jax.tree.map(lambda array: array[0], parts))
            zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
            add = lambda total, part: (jax.tree.map(jnp.add, total, of_part(part)), None)  # noqa: E731
            (sums, stats), _ = jax.lax.scan(add, zeros, parts)
            # Each part moved the same running statistics: the mean is what their groups together make.
            stats = jax.tree.map(lambda leaf: leaf / layout.microbatches, stats)
        grads, terms = over_devices(sums)
        return grads, stats, terms, counts

    if layout.local:
        one, many = PartitionSpec(), PartitionSpec(AXIS)
        gradients = jax.shard_map(
            gradients,
            mesh=mesh,
            in_specs=(one, many, many),
            out_specs=(one, many, one, one),
            # Gradients are of each device's own examples until they are summed by hand, all at once.
            check_vma=False,
        )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = {**batch, "flipped": jnp.zeros(layout.batch_size, bool)}
        if config.data.flip:
            # Drawn for the whole batch, so that they don't depend on how it is divided.
            key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
            batch["flipped"] = jax.random.bernoulli(key, shape=(layout.batch_size,))
        grads, batch_stats, terms, counts = gradients(state.params, state.batch_stats, batch)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        corrupt_examples = state.corrupt_examples + counts["bad"]
        metrics = {
            "loss": sum(terms.values(), start=jnp.float32(0.0)),
            **{f"loss_{head}": term for head, term in terms.items()},
            "learning_rate": rate(state.step),
            "gradient_norm": optax.tree.norm(grads),
            "parameter_norm": optax.tree.norm(params),
            "corrupt_examples": corrupt_examples,
            "signals": counts["signals"],
        }
        return TrainState(state.step + 1, corrupt_examples, params, batch_stats, opt_state), metrics

    places = train_state.shardings(mesh, layout)
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(places, sharding.split(mesh)),
        out_shardings=(places, everywhere),
        donate_argnums=0,
    )


def _parts(array: jax.Array, layout: Layout, mesh: Mesh) -> jax.Array:
    """Cut [B, ...] into [M, B / M, ...].

    Where groups are local, `array` is one device's and so is each part. Otherwise a part is a run of the whole batch,
    so that no group is cut, and is divided anew over the devices.
    """
    parts = array.reshape(layout.microbatches, -1, *array.shape[1:])
    if layout.local:
        return parts
    return jax.lax.with_sharding_constraint(parts, jax.NamedSharding(mesh, PartitionSpec(None, AXIS)))


def make_evaluation_step(graphdef: nnx.GraphDef, config: ConfigDict, mesh: Mesh, layout: Layout) -> Any:
    """Compile what `evaluate` does with one batch.

    Returns:
        From parameters, batch statistics and a batch (as for training, without flips) to sums over its labeled
        examples, float32 scalars: `loss_HEAD`, `top1_HEAD`, `top5_HEAD` (examples with one of their labels among the
        1 or 5 most probable classes) and `labeled_HEAD` (how many there are).
    """
    preprocessing = imagenet_preprocessing(config.data.image_size)

    def evaluation_step(params: nnx.State, batch_stats: nnx.State, batch: Batch) -> dict[str, jax.Array]:
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        logits, _ = model(normalize(batch["images"], preprocessing), train=False)
        known = engagement_loss.labeled(batch)
        sums = {
            "loss": engagement_loss.loss_sums(logits, batch),
            "top1": engagement_loss.hits(logits, batch, 1),
            "top5": engagement_loss.hits(logits, batch, 5),
            "labeled": {head: known[head].sum() for head in logits},
        }
        return {f"{name}_{head}": value for name, values in sums.items() for head, value in values.items()}

    places = train_state.shardings(mesh, layout)
    return jax.jit(
        evaluation_step,
        in_shardings=(places.params, places.batch_stats, sharding.split(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
