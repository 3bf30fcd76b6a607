"""phi_R: reaction counts as vectors (Sec. 3.2)."""

from collections.abc import Sequence

import numpy as np

from vise_jax.posts import REACTIONS
from vise_jax.similarity import unit_rows


def encode(reactions: Sequence[Sequence[int] | None]) -> np.ndarray:
    """Compute phi_R: L2-normalized counts, in the order of `posts.REACTIONS`.

    Returns:
        float32 [N, 5]; a row of zeros for a post without reactions.
    """
    counts = np.array([counts or (0,) * len(REACTIONS) for counts in reactions], np.float64)
    return unit_rows(counts.reshape(-1, len(REACTIONS))).astype(np.float32)
