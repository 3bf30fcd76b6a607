"""Convolutions by XLA, on accelerators."""

import jax
import jax.numpy as jnp


def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1) -> jax.Array:
    """Convolve: x [B, H, W, C], kernel [k, k, C / groups, D] → [B, ceil(H / stride), ceil(W / stride), D].

    A 1x1 convolution is written as a matrix product.
    """
    if len(kernel) == 1:
        return jnp.tensordot(x[:, ::stride, ::stride], kernel[0, 0], axes=1)
    side = (len(kernel) - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(side, side), (side, side)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of `convolve` with respect to images and kernel."""
    _, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, groups), x, kernel)
    return pull(cotangent)
