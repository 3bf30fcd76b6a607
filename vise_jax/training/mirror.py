"""The copy of a run directory in an object store that a run works in, and its checkpoints.

Orbax, TensorBoard and log files need a file system. A run in an object store therefore works in a copy on its own disk,
one for each process, and uploads what has changed with each checkpoint: the checkpoint's files, then logs and metrics,
and the file that makes the checkpoint complete last.
"""

import contextlib
import logging
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import jax
import numpy as np

from vise_jax import artifact, hosts
from vise_jax.errors import UserError
from vise_jax.training.checkpoint import Checkpoints, copied

# Directories of a run that are not copied as a whole.
_LEFT_OUT = frozenset({"checkpoints", "damaged", "encoder"})
# What Orbax writes last into a checkpoint.
_LAST = "_CHECKPOINT_METADATA"

log = logging.getLogger(__name__)


class Mirror:
    """A run directory in an object store, and the copy of it on this disk that one process works in.

    On entering, the copy is made anew, without checkpoints. On leaving, what has changed is uploaded and the copy
    removed.

    Attributes:
        remote: the run directory.
        local: the copy.
        damaged: steps whose checkpoint can't be read, and may be replaced.
    """

    def __init__(self, remote: Path):
        self.remote, self.local = remote, artifact.scratch(remote, f"run-{jax.process_index()}")
        self.damaged: set[int] = set()
        self._sent: dict[str, tuple[int, int]] = {}
        self._uploading = threading.Lock()

    def __enter__(self) -> "Mirror":
        # A process that was killed has left its copy.
        for path in self.local.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        names = [name for name in artifact.tree(self.remote) if _is_copied(name)]
        artifact.download(self.remote, names, self.local)
        self._sent = self._state()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.upload()
        except UserError as failure:
            if error is None:
                raise
            log.warning(str(failure))
        finally:
            shutil.rmtree(self.local, ignore_errors=True)

    def upload(self) -> None:
        """Upload the files that have changed, without checkpoints.

        Raises:
            UserError: see `artifact.upload`.
        """
        with self._uploading:
            now = self._state()
            artifact.upload(
                self.local, (name for name, state in now.items() if self._sent.get(name) != state), self.remote
            )
            self._sent = now

    def exchange(self, name: str) -> None:
        """Copy the files of a name that the other processes have written to the first. All processes call it alike.

        Args:
            name: of the first process's file, see `hosts.of_process`.
        """
        self.upload()
        hosts.barrier(f"{name} is uploaded")
        if jax.process_index() == 0:
            stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
            others = [entry for entry in artifact.entries(self.remote) if re.fullmatch(rf"{stem}-\d+\{suffix}", entry)]
            with self._uploading:
                artifact.download(self.remote, others, self.local)
                # They are the other processes': a later upload must not replace what these have added since.
                state = self._state()
                self._sent |= {name: state[name] for name in others if name in state}

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints in the store, rising."""
        return complete_steps(self.remote)

    def download_checkpoint(self, step: int) -> None:
        """Copy a checkpoint to this disk."""
        directory = self.remote / "checkpoints" / str(step)
        artifact.download(directory, artifact.tree(directory), self.local / "checkpoints" / str(step))

    def upload_checkpoint(self, step: int, keep: int) -> None:
        """Upload a checkpoint and all that has changed, and remove older ones, see `remove_checkpoints`."""
        here, there = self.local / "checkpoints" / str(step), self.remote / "checkpoints"
        if step in self.steps() and step not in self.damaged:
            return
        # A process that was killed may have left a part of it.
        self._remove_checkpoint(step)
        files = [path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()]
        artifact.upload(here, (name for name in files if name != _LAST), there / str(step))
        self.upload()
        artifact.upload(here, [_LAST], there / str(step))
        self.damaged.discard(step)
        self.remove_checkpoints(keep)

    def remove_checkpoints(self, keep: int) -> None:
        """Remove all checkpoints in the store but damaged ones and the newest `keep` that are complete."""
        newest = [step for step in self.steps() if step not in self.damaged][-keep:]
        for old in sorted(int(name) for name in artifact.entries(self.remote / "checkpoints") if name.isdigit()):
            if old not in newest and old not in self.damaged:
                self._remove_checkpoint(old)

    def _remove_checkpoint(self, step: int) -> None:
        directory = self.remote / "checkpoints" / str(step)
        # From here on it is not complete.
        artifact.remove_tree(directory / _LAST)
        artifact.remove_tree(directory)

    def _state(self) -> dict[str, tuple[int, int]]:
        """Return size and modification time of the copied files."""
        states = {}
        for path in self.local.rglob("*"):
            name = path.relative_to(self.local).as_posix()
            with contextlib.suppress(FileNotFoundError):  # a temporary file that was renamed
                if _is_copied(name) and path.is_file():
                    states[name] = path.stat().st_size, path.stat().st_mtime_ns
        return states


def _is_copied(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[0] not in _LEFT_OUT and not any(part.startswith(".") for part in parts)


class MirroredCheckpoints(Checkpoints):
    """The checkpoints of a run in an object store: those in the copy on the first process's disk are uploaded.

    Args:
        mirror: the run directory.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, mirror: Mirror, keep: int):
        super().__init__(mirror.local, keep=1)
        self._mirror, self._keep = mirror, keep
        self._uploads = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None
        # A step whose upload has not begun.
        self._waiting: int | None = None
        self._problem = ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._uploads.shutdown()

    def latest(self) -> int | None:
        """Return the newest complete step in the store, or None."""
        return next(reversed(self._mirror.steps()), None)

    def save(self, step: int, state: Any) -> None:
        """Start to save `state`, any pytree of arrays, after the previous save. All processes call it alike."""
        leaves = copied(state)
        # The one before goes from this disk with the next.
        self.wait()
        if self._disk is None:
            self._upload = self._uploads.submit(self._mirror.upload)
            return
        self._disk.save(step, leaves)
        self._waiting = step

    def wait(self) -> None:
        """Wait until all saves are complete in the store or have failed."""
        if self._disk:
            self._disk.wait()
            self._begin_upload()
        if self._upload is not None:
            self._upload.exception()
            self._end_upload()

    def problem(self) -> str:
        """Return why a save has failed since the last call, in a few words; "" if none has."""
        if self._disk and not self._disk.is_saving():
            self._begin_upload()
        if self._upload is not None and self._upload.done():
            self._end_upload()
        problem, self._problem = self._problem, ""
        return problem

    def _read(self, like: dict[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]] | None:
        """Read the newest checkpoint that can be read, on the first process."""
        steps, reasons = self._mirror.steps(), list[str]()
        for step in reversed(steps):
            self._mirror.download_checkpoint(step)
            values, reason = self._disk.read(step, like) if self._disk else ({}, "")
            if not reason:
                # A process that was killed may have left more.
                self._mirror.remove_checkpoints(self._keep)
                return step, values
            reasons.append(reason)
            self._mirror.damaged.add(step)
            log.warning(f"The checkpoint of {reason}: it is left out.")
            shutil.rmtree(self._mirror.local / "checkpoints" / str(step))
        if reasons:
            raise UserError(
                f"No checkpoint in {self._mirror.remote / 'checkpoints'} can be read ({'; '.join(reasons)}): put a "
                "good copy there, or delete that directory to begin again."
            )
        return None

    def _begin_upload(self) -> None:
        """Begin to upload a checkpoint that is complete on this disk."""
        if self._disk is None or self._waiting is None:
            return
        step, self._waiting = self._waiting, None
        if problem := self._disk.problem():
            self._problem = problem
        else:
            self._upload = self._uploads.submit(self._mirror.upload_checkpoint, step, self._keep)

    def _end_upload(self) -> None:
        failure = self._upload.exception() if self._upload else None
        self._upload = None
        if failure is not None and not isinstance(failure, UserError):
            raise failure
        self._problem = str(failure or self._problem).rstrip(".")


def complete_steps(remote: Path) -> list[int]:
    """Return the steps of the complete checkpoints of a run in an object store, rising."""
    directory = remote / "checkpoints"
    steps = sorted(int(name) for name in artifact.entries(directory) if name.isdigit())
    return [step for step in steps if artifact.is_file(directory / str(step) / _LAST)]


@contextlib.contextmanager
def mirrored(workdir: Path) -> Iterator[tuple[Path, Mirror | None]]:
    """Yield the directory on this disk that a run works in, and its mirror if the run directory is not that one."""
    if not artifact.is_remote(workdir):
        yield workdir, None
        return
    with Mirror(workdir) as mirror:
        yield mirror.local, mirror
