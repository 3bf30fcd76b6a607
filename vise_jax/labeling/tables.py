"""Tables of the labels of a shard, beside its record."""

from pathlib import Path

import numpy as np
import safetensors.numpy

from vise_jax import artifact


def write_table(path: Path, table: dict[str, np.ndarray]) -> None:
    """Write a table for `read_table`."""
    with artifact.atomic_file(path) as file:
        file.write(safetensors.numpy.save(table))


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Read the labels of a shard without its images.

    Returns:
        `post_ids` uint8 [N, 16] (the salted hashes), `comment_labels` int32 [M] (of all examples, concatenated),
        `comment_counts` int32 [N] (number of labels of each example), `reaction_labels` int32 [N], `lengths`
        uint32 [N] (bytes of each record's data), `image_hashes` uint64 [N] (perceptual; not in tables of version
        0.1.0).
    """
    table = safetensors.numpy.load(path.read_bytes())
    return {**table, "post_ids": table["post_ids"].reshape(-1, 16)}
