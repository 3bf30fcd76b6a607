"""Checkpoints of a run: Orbax behind two verbs, save and restore."""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from vise_jax.errors import UserError
from vise_jax.training.state import named_leaves


class Checkpoints:
    """The folder `checkpoints` of a run, one subfolder a step, written asynchronously and each whole or absent."""

    def __init__(self, workdir: Path, keep: int):
        self._folder = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def wait(self) -> None:
        """Return when all that was saved is on the disk."""
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """The newest step whose checkpoint is complete, as the disk says, or None."""
        self._manager.reload()
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Start to save `state`, any pytree of arrays."""
        leaves = named_leaves(state)
        if jax.default_backend() == "cpu":
            # There, the arrays that Orbax writes in the background are views of buffers that the next step donates.
            leaves = {name: jnp.copy(leaf) for name, leaf in leaves.items()}
        self._manager.save(step, args=ocp.args.StandardSave(leaves))

    def restore(self, step: int, like: Any) -> Any:
        """Read a checkpoint into a pytree of the structure, types and shardings of `like`.

        Raises:
            UserError: the checkpoint's arrays are others than those of `like`; names the first ten.
        """
        wanted = {name: _signature(leaf) for name, leaf in named_leaves(like).items()}
        metadata = self._manager.item_metadata(step)
        found = {name: _signature(leaf) for name, leaf in metadata.items()}
        if wanted != found:
            differing = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
            raise UserError(
                f"The checkpoint {self._folder / str(step)} is of another model: {', '.join(differing[:10])} differ: "
                "use a new --workdir."
            )
        abstract = {name: ocp.utils.to_shape_dtype_struct(leaf) for name, leaf in named_leaves(like).items()}
        leaves = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])


def _signature(leaf: Any) -> tuple[tuple[int, ...], str]:
    return tuple(leaf.shape), str(leaf.dtype)
