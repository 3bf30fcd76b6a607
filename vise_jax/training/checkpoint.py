"""Checkpoints of a run: Orbax behind a few verbs."""

import contextlib
import logging as python_logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from vise_jax.errors import UserError
from vise_jax.training.state import named_leaves

_METRIC = "validation_loss"


class Checkpoints:
    """The folders `checkpoints` and `best` of a run, a subfolder a step, written asynchronously, each whole or absent.

    A save that fails, on a full disk for instance, is no reason to end a run: `problem` says so, and another save can
    be started at any time.

    Args:
        workdir: the run folder.
        keep: how many of the newest are kept in `checkpoints`.
    """

    def __init__(self, workdir: Path, keep: int):
        self._folder = Path(workdir).absolute() / "checkpoints"
        self._manager = _manager(self._folder, max_to_keep=keep)
        best = {"max_to_keep": 1, "best_fn": lambda metrics: metrics[_METRIC], "best_mode": "min"}
        self._best = _manager(Path(workdir).absolute() / "best", **best)
        self._problem = ""

    def __enter__(self) -> "Checkpoints":
        # Of a failed save, all that the error passed through is logged; `problem` says it in a line.
        logging.get_absl_logger().addFilter(_not_of_orbax)
        python_logging.getLogger("asyncio").addFilter(_not_of_a_task)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._tolerant():
            self._manager.close()
            self._best.close()
        logging.get_absl_logger().removeFilter(_not_of_orbax)
        python_logging.getLogger("asyncio").removeFilter(_not_of_a_task)

    def latest(self) -> int | None:
        """The newest step whose checkpoint is complete, as the disk says, or None."""
        self._manager.reload()
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Start to save `state`, any pytree of arrays, when the save before is done."""
        with self._tolerant():
            self._manager.wait_until_finished()
        with self._tolerant():
            # A second SIGTERM, or a minute that ends at a step that is saved anyhow, asks for what is there.
            if step not in self._manager.all_steps() and self._has_room(state):
                self._manager.save(step, args=ocp.args.StandardSave(_leaves(state)))

    def save_best(self, step: int, state: Any, loss: float) -> None:
        """Start to save `state` in `best`, if its validation loss is lower than that of the one there."""
        with self._tolerant():
            self._best.wait_until_finished()
        found = self._best.latest_step()
        if found is None or (step > found and loss < self._best.metrics(found)[_METRIC]):
            with self._tolerant():
                if not self._has_room(state):
                    return
                self._best.save(step, args=ocp.args.StandardSave(_leaves(state)), metrics={_METRIC: loss})

    def wait(self) -> None:
        """Return when all that was saved is on the disk, or has failed."""
        for manager in (self._manager, self._best):
            with self._tolerant():
                manager.wait_until_finished()

    def problem(self) -> str:
        """Why a save has failed since this was last asked, in a few words; "" where none has."""
        for manager in (self._manager, self._best):
            if not manager.is_saving_in_progress():
                with self._tolerant():
                    manager.wait_until_finished()
        problem, self._problem = self._problem, ""
        return problem

    def _has_room(self, state: Any) -> bool:
        """Whether the disk has room for a state; a save that fails half-way would say so in many tracebacks."""
        usage = shutil.disk_usage(self._folder)
        # Several processes have to decide alike, and some file systems don't tell.
        if jax.process_count() == 1 and usage.total > 0 and usage.free < sum(x.nbytes for x in jax.tree.leaves(state)):
            self._problem = "the disk is full"
            return False
        return True

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise whatever the failure leads to
            full = "No space left" in str(error) or "quota" in str(error)
            self._problem = "the disk is full" if full else (str(error).strip().splitlines() or [repr(error)])[0][:300]
            if jax.process_index() == 0:
                # What was begun only takes room, above all from the save that comes next.
                for manager in (self._manager, self._best):
                    for leftover in Path(manager.directory).glob("*.orbax-checkpoint-tmp*"):
                        shutil.rmtree(leftover, ignore_errors=True)

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Read the newest checkpoint that can be read into a pytree of the structure, types and shardings of `like`.

        A damaged one is moved to `damaged` in the run folder.

        Returns:
            its step and the state; None where there is no checkpoint.

        Raises:
            UserError: there are checkpoints but none can be read, or it is another model's; names the first ten arrays.
        """
        reasons = []
        while (step := self.latest()) is not None:
            try:
                return step, self._read(step, like)
            except UserError:
                raise
            except Exception as error:
                reasons.append(f"step {step:,}: {(str(error).strip().splitlines() or [repr(error)])[0][:200]}")
                self._set_aside(step)
        if reasons:
            raise UserError(
                f"No checkpoint in {self._folder} can be read ({'; '.join(reasons)}): they were moved to "
                f"{self._folder.parent / 'damaged'}; put a good copy back, or delete that folder to begin again."
            )
        aside = self._folder.parent / "damaged"
        if aside.exists():
            raise UserError(
                f"{self._folder} holds no checkpoint, but {aside} some that can't be read: put a good copy back, or "
                "delete that folder to begin again."
            )
        return None

    def _read(self, step: int, like: Any) -> Any:
        wanted = {name: _signature(leaf) for name, leaf in named_leaves(like).items()}
        found = {name: _signature(leaf) for name, leaf in self._manager.item_metadata(step).items()}
        if wanted != found:
            differing = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
            raise UserError(
                f"The checkpoint {self._folder / str(step)} is of another model: {', '.join(differing[:10])} differ: "
                "use a new --workdir."
            )
        abstract = {name: ocp.utils.to_shape_dtype_struct(leaf) for name, leaf in named_leaves(like).items()}
        leaves = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = self._folder.parent / "damaged"
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / str(step), ignore_errors=True)
            (self._folder / str(step)).rename(aside / str(step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    settings = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, **options)
    return ocp.CheckpointManager(folder, options=settings, item_handlers=ocp.StandardCheckpointHandler())


def _leaves(state: Any) -> dict[str, jax.Array]:
    leaves = named_leaves(state)
    if jax.default_backend() == "cpu":
        # There, the arrays that Orbax writes in the background are views of buffers that the next step donates.
        leaves = {name: jnp.copy(leaf) for name, leaf in leaves.items()}
    return leaves


def _signature(leaf: Any) -> tuple[tuple[int, ...], str]:
    return tuple(leaf.shape), str(leaf.dtype)


def _not_of_orbax(record: python_logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _not_of_a_task(record: python_logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()
