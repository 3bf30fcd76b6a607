"""What changes from step to step, as one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class TrainState(NamedTuple):
    """Attributes:

    step: int32 scalar, steps done.
    params: `nnx.State` of the parameters, float32.
    batch_stats: `nnx.State` of the running means and variances, float32.
    opt_state: the optimiser's.
    """

    step: jax.Array
    params: nnx.State
    batch_stats: nnx.State
    opt_state: Any


def create(model: nnx.Module, optimizer: optax.GradientTransformation) -> tuple[nnx.GraphDef, TrainState]:
    """Split a model into its structure and a state of step 0."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    return graphdef, TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params))


def named_leaves(state: Any) -> dict[str, jax.Array]:
    """The arrays of a pytree by their paths, e.g. `params/encoder/layer1/0/conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
