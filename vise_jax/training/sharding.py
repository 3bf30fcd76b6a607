"""Where arrays live: the batch split over the devices, everything else on each of them; and how the batch is cut up."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vise_jax.errors import UserError

# The axis of the mesh that the batch is split over.
AXIS = "data"


class Layout(NamedTuple):
    """How the examples of a batch are divided.

    Attributes:
        batch_size: examples over all devices, B.
        devices: how many, D; each has B / D consecutive examples.
        microbatches: parts of a step, M.
        bn_group: consecutive examples that share batch statistics.
    """

    batch_size: int
    devices: int
    microbatches: int
    bn_group: int

    @property
    def local(self) -> bool:
        """Whether each group of batch norm lies within one device's part of a microbatch."""
        return (self.batch_size // self.devices // self.microbatches) % self.bn_group == 0

    @property
    def bn_groups(self) -> int:
        """Groups of batch norm in a microbatch."""
        return self.batch_size // self.microbatches // self.bn_group


def layout(config: ConfigDict, devices: int, bn_group: int | None = None) -> Layout:
    """Divide the batch as the config says.

    Args:
        config: the whole configuration.
        devices: how many there are.
        bn_group: the groups that a run began with; None = as `model.bn_group` says.

    Raises:
        UserError: the batch can't be divided so.
    """
    batch_size, parts = config.training.batch_size, config.training.microbatches
    if batch_size % (devices * parts):
        among = f"{devices} devices" + (f" in {parts} microbatches" if parts > 1 else "")
        raise UserError(
            f"The config key training.batch_size is {batch_size}, which {among} can't share evenly: "
            f"make it a multiple of {devices * parts}."
        )
    group = config.model.bn_group if bn_group is None else bn_group
    if group is None:
        group = batch_size // devices // parts
    group = group or batch_size
    if (batch_size // parts) % group:
        among = f"a microbatch's {batch_size // parts} examples" if parts > 1 else f"training.batch_size, {batch_size}"
        raise UserError(f"The config key model.bn_group makes groups of {group}, but they must divide {among}.")
    return Layout(batch_size, devices, parts, group)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """These devices along one axis; all of all processes if not said."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first dimension split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that lie on this process's devices, sorted: int64 [L]."""
    indices = split(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place this process's rows of a batch on its devices."""
    return {name: jax.make_array_from_process_local_data(split(mesh), array) for name, array in batch.items()}
