"""Parameters and batch statistics of a network by path, e.g. `layer1/0/conv1/kernel`: names, checks, files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx, traverse_util

from vise_jax import models
from vise_jax.errors import UserError


def of_model(model: nnx.Module) -> dict[str, jax.Array]:
    """Return all parameters and batch statistics of a model by path, sorted."""
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return dict(sorted(("/".join(map(str, path)), variable.get_value()) for path, variable in state))


def abstract_model(architecture: Mapping[str, Any], **computation: Any) -> Any:
    """Return the network of an architecture with shapes and types in the place of arrays.

    Args:
        architecture: arguments of `models.build` that decide what is computed.
        **computation: those that decide how: `bn_group`, `dtype`, `remat`.

    Raises:
        UserError: `models.build` doesn't take these arguments.
    """
    try:
        return nnx.eval_shape(lambda: models.build(**architecture, **computation))
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"{dict(architecture)} is no architecture of an encoder ({_first_line(error)}): correct it."
        ) from error


def with_weights(architecture: Mapping[str, Any], weights: Mapping[str, jax.Array], **computation: Any) -> Any:
    """Return the network of an architecture with the arrays of `weights`; see `abstract_model` for `computation`."""
    graph, state = nnx.split(abstract_model(architecture, **computation))
    filled = [
        (path, variable.replace(weights["/".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def expected(architecture: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and type of each array of an architecture, by path."""
    return of_model(abstract_model(architecture))  # type: ignore[return-value]


def differences(expected: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    """Describe how two sets of arrays differ in path, shape and type; return "" if they don't."""
    wrong = [f"missing {key}" for key in expected if key not in weights]
    wrong += [f"unexpected {key}" for key in weights if key not in expected]
    for key in expected.keys() & weights.keys():
        actual, wanted = (f"{np.dtype(array.dtype)} {list(array.shape)}" for array in (weights[key], expected[key]))
        if actual != wanted:
            wrong.append(f"{key} is {actual} instead of {wanted}")
    shown = "; ".join(sorted(wrong)[:16])
    return shown if len(wrong) <= 16 else f"{shown}; and {len(wrong) - 16} more"


def write(directory: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an Orbax checkpoint."""
    _checkpointer().save(directory.absolute(), traverse_util.unflatten_dict(dict(weights), "/"))
    # Orbax writes the path of this machine into it.
    if (done := directory / "commit_success.txt").exists():
        done.write_text("Checkpoint commit was successful\n")


def read(directory: Path, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read arrays that `write` wrote.

    Args:
        directory: the Orbax checkpoint.
        expected: shape and type by path.

    Raises:
        UserError: the arrays can't be read, or differ from `expected` in path, shape or type.
    """
    path, checkpointer = directory.absolute(), _checkpointer()
    # Without this, Orbax would look for the devices that the weights were saved from.
    as_numpy = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in expected}
    try:
        stored = traverse_util.flatten_dict(dict(checkpointer.metadata(path).item_metadata.tree), sep="/")
        if not (wrong := differences(expected, stored)):
            tree = checkpointer.restore(path, restore_args=traverse_util.unflatten_dict(as_numpy, "/"))
    except Exception as error:  # Orbax and TensorStore raise whatever the damage leads to
        raise UserError(f"The weights in {path} can't be read ({_first_line(error)}): copy them again.") from error
    if wrong:
        raise UserError(f"The weights in {path} don't fit the architecture ({wrong}): copy the directory again.")
    arrays = traverse_util.flatten_dict(tree, sep="/")
    return {key: arrays[key] for key in expected}


def _checkpointer() -> ocp.Checkpointer:
    # One process reads or writes an encoder by itself, whether or not others are there.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"encoder{jax.process_index()}",
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
