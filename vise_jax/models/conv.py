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
        size = kernel.shape[0]
        if size == 1:
            return pointwise(x, kernel, self.stride)
        if size == 3 and _small_map_on_cpu(x, self.stride):
            return batched(x, kernel, self.stride, groups=1)
        return convolve(x, kernel, self.stride)


def _small_map_on_cpu(x: jax.Array, stride: int) -> bool:
    # XLA's CPU convolution falls off a cliff there: with 64 images of 2x2 pixels and 256 channels, forward and backward
    # take 300 ms on 2 cores, `batched` 6 ms; the two meet at 7x7.
    return jax.default_backend() == "cpu" and (x.shape[1] // stride) * (x.shape[2] // stride) <= 49


def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1) -> jax.Array:
    """Convolve with XLA: x [B, H, W, C], kernel [k, k, C / groups, D] → [B, ceil(H / stride), ceil(W / stride), D]."""
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
    """Compute a 1x1 convolution as a matrix product, which XLA's CPU compiler does not do by itself."""
    return jnp.tensordot(x[:, ::stride, ::stride], kernel[0, 0], axes=1)


def batched(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Compute a 3x3 convolution as one product of all nine shifted images with the kernel, batched over groups.

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
