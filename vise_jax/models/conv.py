"""Convolution on NHWC images with torch's padding and torchvision's initial weights."""

import functools

import jax
from flax import nnx

from vise_jax.models import conv_cpu, conv_xla, initial


def compiler_options(platform: str) -> dict[str, str]:
    """Return the options of `jax.jit` with which encoders are fast on a platform, as "cpu" or "gpu"."""
    return conv_cpu.COMPILER_OPTIONS if platform == "cpu" else {}


def kept(x: jax.Array) -> jax.Array:
    """Return an activation that is computed once: on CPUs, XLA would do so again for each of its users."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


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
        self.kernel = nnx.Param(initial.he_fan_out(rngs.params(), shape))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, in_channels] to `dtype` [B, ceil(H / stride), ceil(W / stride), out_channels]."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        return convolve(x, kernel, self.stride, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Convolve by the functions of the platform that is compiled for.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C / groups, D].
        stride: step in both directions.
        groups: number of groups.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), D].
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(conv_cpu.convolve, stride=stride, groups=groups),
        default=functools.partial(conv_xla.convolve, stride=stride, groups=groups),
    )


# Images and kernel are the only residuals on every platform: differentiated branches would keep those of all platforms.
def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride, groups), (x, kernel)


def _backward(
    stride: int, groups: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.lax.platform_dependent(
        *residuals,
        cotangent,
        cpu=functools.partial(conv_cpu.gradients, stride=stride, groups=groups),
        default=functools.partial(conv_xla.gradients, stride=stride, groups=groups),
    )


convolve.defvjp(_forward, _backward)
