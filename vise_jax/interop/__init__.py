"""Encoders in and out of PyTorch: the only room of the package that imports torch, and only to read its files."""

from vise_jax.interop.conversion import convert, convert_to, export
from vise_jax.interop.sources import SOURCES

__all__ = ["SOURCES", "convert", "convert_to", "export"]
