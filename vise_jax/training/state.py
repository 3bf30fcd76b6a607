"""The training state: what changes from step to step, as one pytree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from vise_jax.models.norm import merged, per_group
from vise_jax.training import sharding
from vise_jax.training.sharding import Layout


class TrainState(NamedTuple):
    """The state after a step.

    Attributes:
        step: int32 scalar, number of steps done.
        corrupt_examples: int32 scalar, number of corrupt examples in these steps.
        params: `nnx.State` of the trainable parameters, float32.
        frozen: `nnx.State` of the other parameters, float32.
        batch_stats: `nnx.State` of the running means and variances, float32 [G, C] each, one row per batch-norm group.
        opt_state: the optimizer's, of `params`.
    """

    step: jax.Array
    corrupt_examples: jax.Array
    params: nnx.State
    frozen: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState


def create(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    trainable: nnx.filterlib.Filter = nnx.Param,
) -> tuple[nnx.GraphDef, TrainState]:
    """Split a model into its graph definition and the state of step 0.

    Args:
        model: the model.
        optimizer: initialized on the trainable parameters.
        layout: batch statistics get one row per batch-norm group.
        trainable: NNX filter of the parameters to train.
    """
    graphdef, params, frozen, batch_stats = nnx.split(  # type: ignore[misc]
        model, nnx.All(nnx.Param, trainable), nnx.Param, nnx.BatchStat
    )
    batch_stats = jax.tree.map(lambda leaf: per_group(leaf, layout.bn_groups), batch_stats)
    return graphdef, TrainState(jnp.int32(0), jnp.int32(0), params, frozen, batch_stats, optimizer.init(params))


def shardings(mesh: Mesh, layout: Layout) -> TrainState:
    """Return the sharding of each part of the state.

    Batch statistics of device-local groups are split over the devices; everything else is replicated.
    """
    everywhere = sharding.replicated(mesh)
    stats = sharding.split(mesh) if layout.local else everywhere
    return TrainState(everywhere, everywhere, everywhere, everywhere, stats, everywhere)  # type: ignore[arg-type]


def named_leaves(state: object) -> dict[str, jax.Array]:
    """Return the arrays of a pytree by path, e.g. `params/encoder/layer1/0/conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def on_one_device(state: TrainState, mesh: Mesh) -> nnx.State:
    """Return parameters and merged batch statistics on this process's first device. Every process must call it."""
    merge = jax.jit(lambda stats: jax.tree.map(merged, stats), out_shardings=sharding.replicated(mesh))
    weights = nnx.merge_state(state.params, state.frozen, merge(state.batch_stats))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), weights)
