"""What benchmarks share."""

import numpy as np


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Return the median of the rounds' ratios, and its 95% interval by bootstrap over rounds."""
    ratios = ours / theirs
    draws = np.random.default_rng(0).integers(0, len(ratios), (10_000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}
