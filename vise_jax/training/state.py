"""What changes from step to step, as one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from vise_jax.models.norm import merged, per_group
from vise_jax.training import sharding
from vise_jax.training.sharding import Layout


class TrainState(NamedTuple):
    """Attributes:

    step: int32 scalar, steps done.
    corrupt_examples: int32 scalar, damaged examples so far.
    params: `nnx.State` of the parameters, float32.
    batch_stats: `nnx.State` of the running means and variances, float32 [G, C] each, a row for each group.
    opt_state: the optimizer's.
    """

    step: jax.Array
    corrupt_examples: jax.Array
    params: nnx.State
    batch_stats: nnx.State
    opt_state: Any


def create(
    model: nnx.Module, optimizer: optax.GradientTransformation, layout: Layout
) -> tuple[nnx.GraphDef, TrainState]:
    """Split a model into its structure and a state of step 0."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    batch_stats = jax.tree.map(lambda leaf: per_group(leaf, layout.bn_groups), batch_stats)
    return graphdef, TrainState(jnp.int32(0), jnp.int32(0), params, batch_stats, optimizer.init(params))


def shardings(mesh: Mesh, layout: Layout) -> TrainState:
    """Where the state lives: running statistics where their groups are, everything else on each device."""
    everywhere = sharding.replicated(mesh)
    stats = sharding.split(mesh) if layout.local else everywhere
    return TrainState(everywhere, everywhere, everywhere, stats, everywhere)  # type: ignore[arg-type]


def named_leaves(state: Any) -> dict[str, jax.Array]:
    """The arrays of a pytree by their paths, e.g. `params/encoder/layer1/0/conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def on_one_device(state: TrainState, mesh: Mesh) -> nnx.State:
    """Parameters and merged running statistics on this process's first device; every process has to ask."""
    merge = jax.jit(lambda stats: jax.tree.map(merged, stats), out_shardings=sharding.replicated(mesh))
    weights = nnx.merge_state(state.params, merge(state.batch_stats))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), weights)
