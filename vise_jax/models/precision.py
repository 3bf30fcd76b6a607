"""What is computed in which type, for everything that trains or encodes."""

from typing import NamedTuple

import jax


class Policy(NamedTuple):
    """Types by their names.

    Attributes:
        compute: of activations, and of parameters where they enter a product.
        parameters: of parameters, gradients and the optimizer's state.
        reductions: of batch statistics, features, logits, losses and sums over devices.
    """

    compute: str
    parameters: str = "float32"
    reductions: str = "float32"


def policy(dtype: str) -> Policy:
    """The policy for the config key `model.dtype`.

    Args:
        dtype: "float32", "bfloat16", or "auto": bfloat16 on accelerators and float32 on CPUs, which have no fast
            bfloat16.
    """
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return Policy(dtype)
