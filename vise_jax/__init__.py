"""VisE in JAX: image representations learned from how people react to images (Jia et al., ICCV 2021)."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vise_jax import engagement, models
    from vise_jax.encoder import Encoder
    from vise_jax.engagement import Labeler
    from vise_jax.text_encoder import TextEncoder

__version__ = "0.1.0"
__all__ = ["Encoder", "Labeler", "TextEncoder", "engagement", "load_encoder", "models"]

_MODULES = {"Encoder": "vise_jax.encoder", "Labeler": "vise_jax.engagement", "TextEncoder": "vise_jax.text_encoder"}


def load_encoder(directory: str | Path) -> "Encoder":
    """Read an encoder artifact; the same as `Encoder.load`.

    Raises:
        UserError: no encoder there, or a damaged one.
    """
    return importlib.import_module("vise_jax.encoder").Encoder.load(directory)


def __getattr__(name: str) -> Any:
    """Import on first use, so that a program pays only for what it needs."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in ("models", "engagement"):
        return importlib.import_module(f"vise_jax.{name}")
    raise AttributeError(f"module 'vise_jax' has no attribute {name!r}")
