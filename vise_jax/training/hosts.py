"""Several processes, and what they tell each other."""

import contextlib
import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vise_jax.errors import UserError


def initialize(config: ConfigDict, environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of a run, where there are any; before anything else asks JAX for devices.

    Args:
        config: the `training` section; `distributed` and `heartbeat_seconds` are looked at.
        environment: the process' environment.

    Raises:
        UserError: the processes can't be joined.
    """
    if jax.distributed.is_initialized():
        return
    where: dict[str, str | int] = {}
    if config.distributed == "off" or (config.distributed == "auto" and not _one_of_several(environment)):
        return
    if config.distributed != "auto":
        address, count, index = config.distributed.split(",")
        where = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    # SIGTERM is ours: JAX's own notice of it would be a second one, and exists with several processes only.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**where, heartbeat_timeout_seconds=config.heartbeat_seconds)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:300]
        raise UserError(
            f"The processes of this run can't be joined ({reason}): see docs/pods.md, or say "
            "--config.training.distributed=off for one process alone."
        ) from error


def _one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether Slurm, Open MPI, Kubernetes or Cloud TPU started this process as one of several."""

    def more_than_one(key: str) -> bool:
        return environment.get(key, "1").isdigit() and int(environment.get(key, "1")) > 1

    # Inside `salloc` or `sbatch`, but outside `srun`, there is no process id.
    slurm = more_than_one("SLURM_NTASKS") and {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys()
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    tpu = importlib.util.find_spec("libtpu") is not None and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return slurm or more_than_one("OMPI_COMM_WORLD_SIZE") or kubernetes or tpu


def barrier(name: str) -> None:
    """Return when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has come; it no longer ends the process at once."""
    asked = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)
