"""Grouped 3x3 convolution (ResNeXt)."""

import jax
from flax import nnx

from vise_jax.models import conv, initial


class GroupedConv(nnx.Module):
    """A 3x3 convolution whose channels only mix within `groups` equal groups; no bias, one zero on every side.

    Args:
        channels: channels of input and output, a multiple of `groups`.
        groups: number of groups.
        stride: step in both directions.
        dtype: type of the product; the kernel is float32 and is cast.
        rngs: source of the initial kernel, float32 [3, 3, channels / groups, channels].
    """

    def __init__(self, channels: int, groups: int, *, stride: int = 1, dtype: str, rngs: nnx.Rngs):
        self.kernel = nnx.Param(initial.he_fan_out(rngs.params(), (3, 3, channels // groups, channels)))
        self.groups = groups
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, channels] to `dtype` [B, ceil(H / stride), ceil(W / stride), channels]."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        return conv.convolve(x, kernel, self.stride, self.groups)
