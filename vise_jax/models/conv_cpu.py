"""Convolutions on CPUs, where XLA's own are slow: as matrix products, chosen by the size of the map.

All functions take images [B, H, W, C] and kernels [k, k, C / groups, D], and pad `(k - 1) // 2` zeros on every side.
"""

import jax
import jax.numpy as jnp

from vise_jax.models import conv_xla


def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Convolve: [B, ceil(H / stride), ceil(W / stride), D].

    XLA's gradient of a grouped convolution takes 50 times as long as `_batched` (2 cores, 512 channels, 32 groups,
    56x56, batch 2), and small maps 50 times, too (64 images of 2x2 pixels, 256 channels); the two meet at 7x7.
    """
    if len(kernel) == 3 and (groups > 1 or (x.shape[1] // stride) * (x.shape[2] // stride) <= 49):
        return _batched(x, kernel, stride, groups)
    return conv_xla.convolve(x, kernel, stride, groups)


def gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of `convolve` with respect to images and kernel."""
    if len(kernel) == 1:
        return _pointwise_gradients(x, kernel, cotangent, stride)
    _, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, groups), x, kernel)
    return pull(cotangent)


def _pointwise_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of a 1x1 convolution.

    The kernel's is one product over all positions, or one per image, summed over the batch: the first transposes the
    activations in memory, the second writes a gradient per image.
    """
    batch, channels, out = len(x), x.shape[-1], cotangent.shape[-1]
    seen, flat = x[:, ::stride, ::stride].reshape(batch, -1, channels), cotangent.reshape(batch, -1, out)
    if seen.shape[1] * (channels + out) > channels * out:
        of_kernel = jnp.einsum("bnc,bnd->bcd", seen, flat).sum(0)
    else:
        of_kernel = seen.reshape(-1, channels).T @ flat.reshape(-1, out)
    of_images = cotangent @ kernel[0, 0].T
    if stride > 1:
        ends = [side - (size - 1) * stride - 1 for side, size in zip(x.shape[1:3], cotangent.shape[1:3], strict=True)]
        dilation = [(0, 0, 0), (0, ends[0], stride - 1), (0, ends[1], stride - 1), (0, 0, 0)]
        of_images = jax.lax.pad(of_images, jnp.zeros((), of_images.dtype), dilation)
    return of_images, of_kernel[None, None]


def _batched(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Compute a 3x3 convolution as one product of all nine shifted images with the kernel, batched over groups.

    Args:
        x: [B, H, W, C].
        kernel: [3, 3, C / groups, D].
        stride: step in both directions.
        groups: number of groups.

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
