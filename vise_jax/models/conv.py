"""Convolution on NHWC images with torch's padding and torchvision's initial weights."""

import jax
import jax.numpy as jnp
from flax import nnx

# torchvision's ResNets: normal with variance 2 / fan_out (He et al. 2015), not truncated.
initial_kernel = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nnx.Module):
    """A square convolution without bias, `(kernel_size - 1) // 2` zeros on every side as in torch.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd.
        stride: step in both directions.
        dtype: type of the product; the kernel is float32 and is cast.
        rngs: source of the initial kernel, float32 [kernel_size, kernel_size, in_channels, out_channels].
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, dtype: str, rngs: nnx.Rngs
    ):
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(initial_kernel(rngs.params(), shape, jnp.float32))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, in_channels] to `dtype` [B, ceil(H / stride), ceil(W / stride), out_channels]."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        return pointwise(x, kernel, self.stride) if kernel.shape[0] == 1 else convolve(x, kernel, self.stride)


def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1) -> jax.Array:
    """XLA's convolution: x [B, H, W, C], kernel [k, k, C / groups, D] → [B, ceil(H / stride), ceil(W / stride), D]."""
    side = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(side, side), (side, side)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def pointwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 1x1 convolution as a matrix product, which XLA's CPU compiler does not make of it by itself."""
    return jnp.tensordot(x[:, ::stride, ::stride], kernel[0, 0], axes=1)
