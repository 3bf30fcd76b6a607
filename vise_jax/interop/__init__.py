"""Convert encoders from and to PyTorch. Only this package imports torch, and only to read its files."""

from vise_jax.interop.conversion import convert, convert_to
from vise_jax.interop.export import export
from vise_jax.interop.sources import SOURCES

__all__ = ["SOURCES", "convert", "convert_to", "export"]
