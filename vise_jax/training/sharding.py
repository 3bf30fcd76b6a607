"""Where arrays live: the batch split over the devices, everything else on each of them."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vise_jax.errors import UserError


def data_mesh(batch_size: int) -> Mesh:
    """All devices along one axis, `data`.

    Raises:
        UserError: the batch can't be split evenly.
    """
    devices = jax.device_count()
    if batch_size % devices:
        raise UserError(
            f"The config key training.batch_size is {batch_size}, which {devices} devices can't share evenly: "
            f"make it a multiple of {devices}."
        )
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first dimension split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place this process's part of a batch on its devices."""
    return {name: jax.make_array_from_process_local_data(split(mesh), array) for name, array in batch.items()}
