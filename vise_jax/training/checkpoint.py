"""Checkpoints of a run, on Orbax's `CheckpointManager`.

Beside the arrays, a checkpoint holds their CRC-32: TensorStore would not notice a bit that flipped in a large array.
"""

import contextlib
import json
import logging as python_logging
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from vise_jax import hosts
from vise_jax.errors import UserError
from vise_jax.training import sharding
from vise_jax.training.state import named_leaves

# The name of the checksums among those of the arrays.
_CHECKSUMS = "checksums"

# Orbax and TensorStore report errors of the file system and damaged files as OSError, or as ValueError and RuntimeError
# with a status code of TensorStore or the operation that failed.
_STORAGE = re.compile(
    r"RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|DATA_LOSS|FAILED_PRECONDITION|NOT_FOUND|OUT_OF_RANGE"
    r"|PERMISSION_DENIED|No space left|Error (reading|writing|opening|decoding)"
)


class DiskCheckpoints:
    """The directory `checkpoints` of a run, one subdirectory per step, written asynchronously and atomically.

    One process of a run uses it. A failed save, on a full disk for instance, doesn't end a run: `problem` returns the
    reason, and another save can be started at any time.

    Args:
        workdir: the run directory.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, workdir: Path, keep: int):
        self._folder = Path(workdir).absolute() / "checkpoints"
        # Orbax doesn't make it where not all processes take part.
        self._folder.mkdir(parents=True, exist_ok=True)
        who = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:
            who = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="first")
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True, max_to_keep=keep, multiprocessing_options=who, create=False
            ),
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=who),
        )
        self._problem = ""

    def __enter__(self) -> "DiskCheckpoints":
        # The traceback of a failed save is not logged; `problem` says it in a line.
        logging.get_absl_logger().addFilter(_not_of_orbax)
        python_logging.getLogger("asyncio").addFilter(_not_of_a_task)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._tolerant():
            self._manager.close()
        logging.get_absl_logger().removeFilter(_not_of_orbax)
        python_logging.getLogger("asyncio").removeFilter(_not_of_a_task)

    def latest(self) -> int | None:
        """Return the newest committed step on the disk, or None."""
        self._manager.reload()
        return self._manager.latest_step()

    def save(self, step: int, leaves: dict[str, np.ndarray]) -> None:
        """Start to save arrays, which nobody changes any more, after the previous save has ended."""
        with self._tolerant():
            self._manager.wait_until_finished()
        # A second SIGTERM, or a save that is due by the clock at a step of `checkpoint_every`, repeats a step.
        if step not in self._manager.all_steps() and self._has_room(leaves):
            with self._tolerant():
                self._manager.save(step, args=ocp.args.StandardSave({**leaves, _CHECKSUMS: _checksums(leaves)}))

    def is_saving(self) -> bool:
        """Return whether a save is under way."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Wait until all saves are committed or have failed."""
        with self._tolerant():
            self._manager.wait_until_finished()

    def problem(self) -> str:
        """Return why a save has failed since the last call, in a few words; "" if none has."""
        if not self.is_saving():
            with self._tolerant():
                self._manager.wait_until_finished()
        problem, self._problem = self._problem, ""
        return problem

    def _has_room(self, leaves: dict[str, np.ndarray]) -> bool:
        """Return whether the disk has room for arrays."""
        usage = shutil.disk_usage(self._folder)
        # Some file systems don't report it.
        if usage.total > 0 and usage.free < sum(leaf.nbytes for leaf in leaves.values()):
            self._problem = "the disk is full"
            return False
        return True

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Turn a failed write into a `problem`; let every other exception through."""
        try:
            yield
        except Exception as error:
            if (cause := _of_storage(error)) is None:
                raise
            full = "No space left" in str(cause) or "quota" in str(cause)
            self._problem = "the disk is full" if full else _first_line(cause)
            # A partial checkpoint takes the room of the next save.
            for leftover in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def restore(self, like: dict[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]] | None:
        """Read the newest checkpoint that can be read, of arrays with the names, shapes and types of `like`.

        A damaged one is moved to `damaged` in the run directory.

        Returns:
            its step and the arrays; None where there is no checkpoint.

        Raises:
            UserError: there are checkpoints but none can be read, this user may not read one, or it is another model's;
                names the first ten arrays.
        """
        reasons = []
        while (step := self.latest()) is not None:
            leaves, reason = self.read(step, like)
            if not reason:
                return step, leaves
            reasons.append(reason)
            self._set_aside(step)
        if reasons:
            raise UserError(
                f"No checkpoint in {self._folder} can be read ({'; '.join(reasons)}): they were moved to "
                f"{self._folder.parent / 'damaged'}; put a good copy back, or delete that directory to begin again."
            )
        aside = self._folder.parent / "damaged"
        if aside.exists():
            raise UserError(
                f"{self._folder} holds no checkpoint, but {aside} some that can't be read: put a good copy back, or "
                "delete that directory to begin again."
            )
        return None

    def read(self, step: int, like: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
        """Read a checkpoint; return the arrays, and why it can't be read, "" if it can.

        Raises:
            UserError: see `restore`.
        """
        try:
            return self._read(step, like), ""
        except UserError:
            raise
        except Exception as error:
            if (cause := _of_storage(error)) is None:
                raise
            # It isn't damaged.
            if isinstance(cause, PermissionError) or "PERMISSION_DENIED" in str(cause):
                raise UserError(
                    f"The checkpoint {self._folder / str(step)} can't be read (permission denied): give this user the "
                    "right to read its files."
                ) from error
            return {}, f"step {step:,}: {_first_line(cause)}"

    def _read(self, step: int, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not (self._folder / str(step) / "default" / "_METADATA").exists():
            raise OSError("its files are missing")
        wanted = {name: _signature(leaf) for name, leaf in like.items()}
        stored = {name: _signature(leaf) for name, leaf in self._manager.item_metadata(step).items()}
        if stored.pop(_CHECKSUMS, None) is None:
            raise OSError("it holds no checksums")
        if wanted != stored:
            differing = sorted(name for name in wanted | stored if wanted.get(name) != stored.get(name))
            raise UserError(
                f"The checkpoint {self._folder / str(step)} is of another model: {', '.join(differing[:10])} differ: "
                "use a new --workdir."
            )
        expected = {**like, _CHECKSUMS: np.zeros(len(like), np.uint32)}
        leaves = dict(self._manager.restore(step, args=ocp.args.StandardRestore(expected)))
        same = leaves.pop(_CHECKSUMS) == _checksums(leaves)
        if changed := [name for name, is_same in zip(sorted(leaves), same, strict=True) if not is_same]:
            raise OSError(f"{', '.join(changed[:3])} changed after they were saved")
        return leaves

    def _set_aside(self, step: int) -> None:
        aside = self._folder.parent / "damaged"
        aside.mkdir(exist_ok=True)
        shutil.rmtree(aside / str(step), ignore_errors=True)
        (self._folder / str(step)).rename(aside / str(step))


class Checkpoints:
    """The checkpoints of a run on a disk. The first process writes them, and sends to the others what it reads.

    Args:
        workdir: the run directory.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, workdir: Path, keep: int):
        self._folder = Path(workdir) / "checkpoints"
        self._disk = DiskCheckpoints(workdir, keep) if jax.process_index() == 0 else None

    def __enter__(self) -> Self:
        if self._disk:
            self._disk.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._disk:
            self._disk.__exit__(kind, error, trace)

    def latest(self) -> int | None:
        """Return the newest committed step on the disk, or None."""
        return max((int(path.name) for path in self._folder.glob("*") if path.name.isdigit()), default=None)

    def save(self, step: int, state: Any) -> None:
        """Start to save `state`, any pytree of arrays, after the previous save. All processes call it alike."""
        leaves = copied(state)
        if self._disk:
            self._disk.save(step, leaves)

    def wait(self) -> None:
        """Wait until all saves are committed or have failed."""
        if self._disk:
            self._disk.wait()

    def problem(self) -> str:
        """Return why a save has failed since the last call, in a few words; "" if none has."""
        return self._disk.problem() if self._disk else ""

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Read the newest checkpoint that can be read into a pytree of the structure, types and shardings of `like`.

        Returns:
            its step and the state; None where there is no checkpoint.

        Raises:
            UserError: see `DiskCheckpoints.restore`.
        """
        leaves = named_leaves(like)
        empty = {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for name, leaf in leaves.items()}
        found = hosts.on_first(lambda: self._read(empty))
        step = hosts.from_first(found[0] if found else -1)
        if step < 0:
            return None
        values = hosts.send_from_first(found[1] if found else empty)
        placed = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, values[name].__getitem__)
            for name, leaf in leaves.items()
        ]
        return step, jax.tree.unflatten(jax.tree.structure(like), placed)

    def _read(self, like: dict[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]] | None:
        """Read the newest checkpoint that can be read, on the first process."""
        return self._disk.restore(like) if self._disk else None


def copied(state: Any) -> dict[str, np.ndarray]:
    """Return copies of the arrays of a pytree by name, on the first process; {} on the others. All call it alike."""
    leaves = sharding.addressable(named_leaves(state))
    # Copies: on the CPU, an array is a view of a buffer that the next step donates.
    return {name: np.array(leaf) for name, leaf in leaves.items()} if jax.process_index() == 0 else {}


def _of_storage(error: BaseException | None) -> BaseException | None:
    """Return the error, or the one it was raised from, that says that storage failed or a file is damaged.

    Any other exception is an error of this program: None. Orbax wraps those of TensorStore.
    """
    while error is not None:
        of_file = isinstance(error, (OSError, json.JSONDecodeError, UnicodeDecodeError))
        if of_file or _STORAGE.search(str(error)):
            return error
        error = error.__cause__
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:200]


def _checksums(leaves: dict[str, np.ndarray]) -> np.ndarray:
    """Return the CRC-32 of the bytes of each array, uint32 [N], by order of their names."""
    contents = (np.ascontiguousarray(leaves[name]).reshape(-1).view(np.uint8) for name in sorted(leaves))
    return np.array([zlib.crc32(content.data) for content in contents], np.uint32)


def _signature(leaf: Any) -> tuple[tuple[int, ...], str]:
    return tuple(leaf.shape), str(leaf.dtype)


def _not_of_orbax(record: python_logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _not_of_a_task(record: python_logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()
