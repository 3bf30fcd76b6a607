"""Convert encoders from and to PyTorch. Only this package imports torch, and only to read its files."""

from vise_jax.interop.conversion import convert
from vise_jax.interop.export import export
from vise_jax.interop.saving import convert_to
from vise_jax.interop.sources import SOURCES
from vise_jax.interop.text import TEXT_SOURCES, convert_text

__all__ = ["SOURCES", "TEXT_SOURCES", "convert", "convert_text", "convert_to", "export"]
