"""Sharding: the batch is split over the devices, everything else is replicated."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vise_jax.errors import UserError

# The axis of the mesh that the batch is split over.
AXIS = "data"


class Layout(NamedTuple):
    """How the examples of a batch are divided.

    Attributes:
        batch_size: number of examples over all devices, B.
        devices: number of devices, D; each has B / D consecutive examples.
        microbatches: number of gradient-accumulation steps, M.
        bn_group: number of consecutive examples that share batch statistics.
    """

    batch_size: int
    devices: int
    microbatches: int
    bn_group: int

    @property
    def local(self) -> bool:
        """Whether each batch-norm group lies on one device."""
        return (self.batch_size // self.devices // self.microbatches) % self.bn_group == 0

    @property
    def bn_groups(self) -> int:
        """Number of batch-norm groups in a microbatch."""
        return self.batch_size // self.microbatches // self.bn_group


def layout(
    batch_size: int,
    devices: int,
    *,
    microbatches: int = 1,
    bn_group: int | None = None,
    key: str = "training.batch_size",
) -> Layout:
    """Divide a batch over devices, microbatches and batch-norm groups.

    Args:
        batch_size: number of examples over all devices.
        devices: number of devices.
        microbatches: number of gradient-accumulation steps.
        bn_group: number of examples that share batch statistics; 0 = the whole batch, None = one group per device and
            microbatch.
        key: name of the config key of `batch_size`, for messages.

    Raises:
        UserError: the batch can't be divided evenly.
    """
    if batch_size % (devices * microbatches):
        among = f"{devices} devices" + (f" in {microbatches} microbatches" if microbatches > 1 else "")
        raise UserError(
            f"The config key {key} is {batch_size}, which {among} can't share evenly: "
            f"make it a multiple of {devices * microbatches}."
        )
    group = batch_size // devices // microbatches if bn_group is None else bn_group or batch_size
    if (batch_size // microbatches) % group:
        size = batch_size // microbatches
        among = f"a microbatch's {size} examples" if microbatches > 1 else f"{key}, {batch_size}"
        raise UserError(
            f"The config key model.bn_group makes groups of {group}, which don't divide {among}: choose a divisor."
        )
    return Layout(batch_size, devices, microbatches, group)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of one axis over `devices`; by default all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of replicated arrays."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the first dimension over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return the rows of a batch on this process's devices, sorted: int64 [L]."""
    indices = split(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place this process's rows of a batch on its devices."""
    return {name: jax.make_array_from_process_local_data(split(mesh), array) for name, array in batch.items()}


def addressable(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Return arrays of which each process has the whole. All processes call it alike."""
    parts = {
        name: leaf for name, leaf in leaves.items() if not leaf.is_fully_replicated and not leaf.is_fully_addressable
    }
    if parts:
        everywhere = replicated(next(iter(parts.values())).sharding.mesh)  # type: ignore[attr-defined]
        leaves = {**leaves, **jax.jit(lambda arrays: arrays, out_shardings=everywhere)(parts)}
    return {name: leaf.addressable_data(0) if leaf.is_fully_replicated else leaf for name, leaf in leaves.items()}
