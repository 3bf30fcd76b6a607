"""The dtype of activations and matrix products."""

import jax


def compute_dtype(dtype: str) -> str:
    """Return the dtype for the config key `model.dtype`.

    Parameters, gradients, statistics, reductions and losses are float32 in any case.

    Args:
        dtype: "float32", "bfloat16", or "auto": bfloat16 on accelerators and float32 on CPUs, which have no fast
            bfloat16.
    """
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return dtype
