"""The processes of a run: joining them, barriers, SIGTERM."""

import contextlib
import importlib.util
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from vise_jax import config
from vise_jax.errors import UserError

T = TypeVar("T")

# Errors of collectives and of JAX's coordination of processes.
_LOST = re.compile("gloo|nccl|coordination|barrier|socket closed|connection (reset|refused|closed)", re.IGNORECASE)


def initialize(distributed: str, heartbeat_seconds: int, environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of a run, if there are any. Call it before JAX looks for devices.

    Args:
        distributed: "auto", "off" or "HOST:PORT,PROCESSES,INDEX".
        heartbeat_seconds: timeout after which a silent process counts as dead.
        environment: environment variables of the process.

    Raises:
        UserError: the processes can't be joined.
    """
    if jax.distributed.is_initialized():
        return
    where: dict[str, str | int] = {}
    if distributed == "off" or (distributed == "auto" and not _one_of_several(environment)):
        return
    if distributed != "auto":
        if not config.DISTRIBUTED[0](distributed):
            raise UserError(f"distributed is {distributed!r}: give auto, off or HOST:PORT,PROCESSES,INDEX.")
        address, count, index = distributed.split(",")
        where = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    # SIGTERM is ours: JAX's own notice of it would be a second one, and exists with several processes only.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**where, heartbeat_timeout_seconds=heartbeat_seconds)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:300]
        raise UserError(
            f"The processes of this run can't be joined ({reason}): see docs/pods.md, or set "
            "--config.training.distributed=off for a single process."
        ) from error


def _one_of_several(environment: Mapping[str, str]) -> bool:
    """Return whether Slurm, Open MPI, Kubernetes or Cloud TPU started this process as one of several."""

    def more_than_one(key: str) -> bool:
        return environment.get(key, "1").isdigit() and int(environment.get(key, "1")) > 1

    # Inside `salloc` or `sbatch`, but outside `srun`, there is no process id.
    slurm = more_than_one("SLURM_NTASKS") and {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys()
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    tpu = importlib.util.find_spec("libtpu") is not None and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return slurm or more_than_one("OMPI_COMM_WORLD_SIZE") or kubernetes or tpu


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the error of a process that can't reach another one any more into one sentence.

    Where the other is only silent, JAX's coordination service ends this process instead, after `heartbeat_seconds`.

    Raises:
        UserError: another process has ended, or can't be reached.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
        raise UserError(
            f"Another process of this run has ended or can't be reached ({reason}): look for the first error in the "
            "logs of the others, and start all of them again; they resume."
        ) from error


def on_first(action: Callable[[], T]) -> T | None:
    """Run an action on the first process; the others wait for it, and stop where it fails.

    Returns:
        What the action returns, on the first process; None on the others.

    Raises:
        UserError: the action's, on the first process; on the others, one that refers to it.
    """
    error: UserError | None = None
    result: T | None = None
    if jax.process_index() == 0:
        try:
            result = action()
        except UserError as failure:
            error = failure
    failed = from_first(int(error is not None))
    if error is not None:
        raise error
    if failed:
        raise UserError("The first process has stopped: see its log.")
    return result


def from_first(value: int) -> int:
    """Return the value that the first process has."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else value


def send_from_first(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays that the first process has, on all; those of the others give names, shapes and dtypes."""
    if jax.process_count() == 1:
        return arrays
    # As bytes: JAX would convert 64-bit numbers, and sums, which turn -0.0 into 0.0.
    sent = {name: np.frombuffer(array.tobytes(), np.uint8) for name, array in arrays.items()}
    received = multihost_utils.broadcast_one_to_all(sent)
    return {
        name: np.frombuffer(np.asarray(received[name]).tobytes(), array.dtype).reshape(array.shape)
        for name, array in arrays.items()
    }


def gather(array: np.ndarray) -> list[np.ndarray]:
    """Return the array of each process, by index. Shapes and dtypes have to be the same on all."""
    if jax.process_count() == 1:
        return [array]
    # As bytes: JAX would convert 64-bit numbers to 32 bits.
    sent = np.frombuffer(array.tobytes(), np.uint8)
    received = np.asarray(multihost_utils.process_allgather(sent))
    return [np.frombuffer(row.tobytes(), array.dtype).reshape(array.shape) for row in received]


def of_process(name: str) -> str:
    """Return a file name of this process: that of the first one is `name`, others insert their index."""
    index = jax.process_index()
    return name.replace(".", f"-{index}.") if index else name


def barrier(name: str) -> None:
    """Wait until every process has called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM was received. The signal doesn't end the process meanwhile."""
    received = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)
