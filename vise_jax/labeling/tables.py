"""Tables of the labels of a shard, beside its record."""

from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np

from vise_jax import arrays, artifact
from vise_jax.errors import UserError

# Columns that each table has; those with a row for each example.
_OF_EXAMPLES = frozenset({"post_ids", "comment_counts", "reaction_labels", "lengths"})
_COLUMNS = _OF_EXAMPLES | {"comment_labels"}


def write_table(path: Path, table: dict[str, np.ndarray]) -> None:
    """Write a table for `read_table`."""
    with artifact.atomic_file(path) as file:
        file.write(arrays.to_safetensors(table))


def read_table(path: Path, needed: Set[str] = _COLUMNS) -> dict[str, np.ndarray]:
    """Read the labels of a shard without its images.

    Args:
        path: the file.
        needed: columns that it has to have.

    Returns:
        `post_ids` uint8 [N, 16] (the salted hashes), `comment_labels` int32 [M] (of all examples, concatenated),
        `comment_counts` int32 [N] (number of labels of each example), `reaction_labels` int32 [N], `lengths`
        uint32 [N] (bytes of each record's data), `image_hashes` uint64 [N] (perceptual; not in tables of version
        0.1.0). Where duplicates were dropped or merged, `copies` uint32 [N] (number of posts that each example stands
        for, itself among them) and `duplicate_ids` uint8 [sum(copies - 1), 16] (the salted hashes of the others).
    """
    try:
        with artifact.explained(path):
            content = path.read_bytes()
        # Tables of version 0.1.0 state no SHA-256.
        table, _ = arrays.from_safetensors(content)
        if missing := needed - table.keys():
            raise ValueError(f"it has no column {min(missing)}")
        ids: dict[str, np.ndarray] = {
            name: table[name].reshape(-1, 16) for name in ("post_ids", "duplicate_ids") if name in table
        }
        if len({len(({**table, **ids})[name]) for name in _OF_EXAMPLES & needed}) > 1:
            raise ValueError("its columns differ in length")
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it and its record (.json), and run `label.py run` again, which "
            "writes its shards again."
        ) from error
    return {**table, **ids}


def select_rows(table: Mapping[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows of some examples of a table.

    Args:
        table: as `read_table` returns it.
        keep: bool [N].
    """
    of_rows = {"comment_labels": "comment_counts", "comment_weights": "comment_counts", "duplicate_ids": "copies"}
    selected = {}
    for name, column in table.items():
        rows = keep
        if name in of_rows:
            counts = table[of_rows[name]].astype(np.int64)
            rows = np.repeat(keep, counts - 1 if name == "duplicate_ids" else counts)
        selected[name] = column[rows]
    return selected
