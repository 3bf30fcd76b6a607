"""phi_R: reaction counts as vectors (Sec. 3.2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vise_jax.errors import UserError
from vise_jax.posts import Buttons
from vise_jax.similarity import unit_rows


def buttons(labels: Mapping[str, Any]) -> Buttons:
    """Return the buttons that the `labels` section of a config names.

    Raises:
        UserError: two names of one button.
    """
    names = tuple(map(Buttons.normalized, labels["reactions"]))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"labels.reactions has two names of the button {twice!r}: leave one of them out.")
    return Buttons(names, labels["other_reactions"])


def encode(reactions: Sequence[Sequence[int] | None], dimensions: int, minimum: int = 1) -> np.ndarray:
    """Compute phi_R: L2-normalized counts.

    Args:
        reactions: counts of each post, in the order of the buttons, or None.
        dimensions: number of buttons, B.
        minimum: posts with fewer reactions have no phi_R: a profile of a handful of clicks is mostly chance.

    Returns:
        float32 [N, B]; a row of zeros for a post without phi_R.
    """
    none = (0,) * dimensions
    counts = np.array([counts or none for counts in reactions], np.float64).reshape(-1, dimensions)
    counts[counts.sum(axis=1) < minimum] = 0
    return unit_rows(counts).astype(np.float32)
