"""Grouped 3x3 convolution (ResNeXt), with a path for where XLA's own is slow."""

import jax
import jax.numpy as jnp
from flax import nnx

from vise_jax.models import conv


class GroupedConv(nnx.Module):
    """A 3x3 convolution whose channels only mix within `groups` equal groups; no bias, one zero on every side.

    Args:
        channels: channels of input and output, a multiple of `groups`.
        groups: how many groups.
        stride: step in both directions.
        dtype: type of the product; the kernel is float32 and is cast.
        rngs: source of the initial kernel, float32 [3, 3, channels / groups, channels].
        method: "xla" (`feature_group_count`), "batched" (one matrix product a group) or "auto".
    """

    def __init__(
        self, channels: int, groups: int, *, stride: int = 1, dtype: str, rngs: nnx.Rngs, method: str = "auto"
    ):
        self.kernel = nnx.Param(conv.initial_kernel(rngs.params(), (3, 3, channels // groups, channels), jnp.float32))
        self.groups = groups
        self.stride = stride
        self.dtype = dtype
        self.method = method

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, channels] to `dtype` [B, ceil(H / stride), ceil(W / stride), channels]."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        method = _method_here() if self.method == "auto" else self.method
        if method == "xla":
            return conv.convolve(x, kernel, self.stride, self.groups)
        return batched(x, kernel, self.stride, self.groups)


def _method_here() -> str:
    # 512 channels in 32 groups at 56x56, batch 2, on 2 CPU cores: XLA's gradient takes 50 times as long as `batched`.
    return "batched" if jax.default_backend() == "cpu" else "xla"


def batched(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """The grouped convolution as one product of all nine shifted images with the kernel, batched over groups.

    Args:
        x: [B, H, W, C].
        kernel: [3, 3, C / groups, D].
        stride: step in both directions.
        groups: how many groups.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), D].
    """
    batch, height, width, channels = x.shape
    size, out = channels // groups, kernel.shape[-1]
    rows, columns = -(-height // stride), -(-width // stride)
    major = jnp.moveaxis(x.reshape(batch, height, width, groups, size), 3, 0)
    padded = jnp.pad(major, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [
        padded[:, :, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)
    ]  # each [G, B, rows, columns, size]
    patches = jnp.concatenate(taps, axis=-1).reshape(groups, batch * rows * columns, 9 * size)
    matrices = jnp.moveaxis(kernel.reshape(9 * size, groups, out // groups), 1, 0)
    products = jax.lax.dot_general(patches, matrices, (((2,), (1,)), ((0,), (0,))))
    products = products.reshape(groups, batch, rows, columns, out // groups)
    return jnp.moveaxis(products, 0, 3).reshape(batch, rows, columns, out)
