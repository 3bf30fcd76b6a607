"""VisE in JAX: image representations learned from how people react to images (Jia et al., ICCV 2021)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vise_jax import engagement, models
    from vise_jax.encoder import Encoder

__version__ = "0.1.0"
__all__ = ["Encoder", "engagement", "models"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that what needs only one room doesn't pay for the others."""
    if name == "Encoder":
        return importlib.import_module("vise_jax.encoder").Encoder
    if name in ("models", "engagement"):
        return importlib.import_module(f"vise_jax.{name}")
    raise AttributeError(f"module 'vise_jax' has no attribute {name!r}")
