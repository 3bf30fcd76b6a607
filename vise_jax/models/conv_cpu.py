"""Convolutions and sums on CPUs: XLA's where they are fast, matrix products and slices elsewhere.

All convolutions take images [B, H, W, C] and kernels [k, k, C / groups, D], and pad `(k - 1) // 2` zeros on every side.
docs/performance.md has the measurements behind each choice, made with `COMPILER_OPTIONS`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vise_jax.models import conv_xla

# Without YNNPACK, to which XLA gives convolutions, matrix products and sums by default; and with barriers, which XLA
# drops before it fuses: without them, each user of an activation computes it again, from the convolutions of all blocks
# before.
COMPILER_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "cse_barrier_expander"}
# Channels from which the images' gradient of a strided convolution is computed by parity: of fewer, putting its parts
# in order takes longer than the products that it saves.
_CHANNELS = 64
# Slices that are summed at a time: as many again take longer to compile, and are no faster.
_SLICES = 8
# Rows that XLA sums in one loop; of more it makes windows first.
_ROWS = 32


def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Convolve: [B, ceil(H / stride), ceil(W / stride), D]."""
    return _convolution(x, kernel)(x, kernel, stride, groups)


def _convolution(x: jax.Array, kernel: jax.Array) -> Callable[..., jax.Array]:
    """Return the faster function for images as large as `x`: XLA is slow where they are smaller than the kernel."""
    return _batched if len(kernel) == 3 and min(x.shape[1:3]) < 3 else conv_xla.convolve


def gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of `convolve` with respect to images and kernel."""
    # Computed once for both.
    cotangent = jax.lax.optimization_barrier(cotangent)
    if len(kernel) == 1:
        return _pointwise_gradients(x, kernel, cotangent, stride)
    # The gradient of the images is a convolution of the cotangent.
    of_images = _convolution(cotangent, kernel)
    if of_images is conv_xla.convolve and len(kernel) == 3 and stride == 2 and x.shape[-1] >= _CHANNELS:
        dx = _images_gradient(x.shape[1:3], kernel, cotangent, groups)
    else:
        (dx,) = jax.vjp(lambda x: of_images(x, kernel, stride, groups), x)[1](cotangent)
    if groups > 1:
        return dx, _grouped_kernel_gradient(x, cotangent, stride, groups)
    (dkernel,) = jax.vjp(lambda kernel: conv_xla.convolve(x, kernel, stride), kernel)[1](cotangent)
    return dx, dkernel


def _images_gradient(shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array, groups: int) -> jax.Array:
    """Return the images' gradient of a 3x3 convolution of stride 2: [B, H, W, C].

    Rows and columns of even number see one element of the kernel, those of odd number two: four convolutions of the
    cotangent, and nine products a position of it. XLA fills in zeros between its positions, for 36 products.

    Args:
        shape: H and W.
        kernel: [3, 3, C / groups, D].
        cotangent: [B, ceil(H / 2), ceil(W / 2), D].
        groups: number of groups.
    """
    by_group = kernel.reshape(*kernel.shape[:3], groups, -1)
    turned = by_group[::-1, ::-1].swapaxes(2, 4).reshape(3, 3, -1, kernel.shape[2] * groups)
    parts = [[_from_corner(cotangent, turned[1 - i :: 2, 1 - j :: 2], groups) for j in range(2)] for i in range(2)]
    rows = jnp.stack([jnp.stack(part, axis=3) for part in parts], axis=2)
    batch, height, _, width, _, channels = rows.shape
    return rows.reshape(batch, 2 * height, 2 * width, channels)[:, : shape[0], : shape[1]]


def _from_corner(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Convolve by a kernel whose first element is at the position: zeros are only behind the images."""
    behind = [(0, side - 1) for side in kernel.shape[:2]]
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), behind, dimension_numbers=layout, feature_group_count=groups)


def _grouped_kernel_gradient(x: jax.Array, cotangent: jax.Array, stride: int, groups: int) -> jax.Array:
    """Return the kernel's gradient of a grouped 3x3 convolution, [3, 3, C / groups, D].

    It is one product per group, of all nine shifted images and the cotangent, in a loop: what a group takes stays in
    the cache. XLA's own gradient, by `batch_group_count`, takes 100 times as long.
    """
    shape, rows = cotangent.shape[1:3], cotangent.size // cotangent.shape[-1]
    cotangents = cotangent.reshape(rows, groups, -1).transpose(1, 0, 2)

    def of_group(_: None, operands: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        images, cotangent = operands
        patches = _patches(images, shape, stride).reshape(rows, -1)
        return None, jax.lax.optimization_barrier(patches).T @ cotangent

    inputs = jax.lax.optimization_barrier((_padded_groups(x, groups), cotangents))
    _, of_kernel = jax.lax.scan(of_group, None, inputs)  # [G, 9 * C / G, D / G]
    return of_kernel.transpose(1, 0, 2).reshape(3, 3, x.shape[-1] // groups, -1)


def _pointwise_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of a 1x1 convolution.

    The kernel's is one product over all positions, or one per image, summed over the batch: the first transposes the
    activations in memory, the second writes a gradient per image. Its rows are the fewer channels.
    """
    batch, channels, out = len(x), x.shape[-1], cotangent.shape[-1]
    seen, flat = x[:, ::stride, ::stride].reshape(batch, -1, channels), cotangent.reshape(batch, -1, out)
    if seen.shape[1] * (channels + out) > channels * out:
        of_kernel = _product_sum(seen, flat) if channels <= out else _product_sum(flat, seen).T
    else:
        of_kernel = seen.reshape(-1, channels).T @ flat.reshape(-1, out)
    of_images = cotangent @ kernel[0, 0].T
    if stride > 1:
        ends = [side - (size - 1) * stride - 1 for side, size in zip(x.shape[1:3], cotangent.shape[1:3], strict=True)]
        dilation = [(0, 0, 0), (0, ends[0], stride - 1), (0, ends[1], stride - 1), (0, 0, 0)]
        of_images = jax.lax.pad(of_images, jnp.zeros((), of_images.dtype), dilation)
    return of_images, of_kernel[None, None]


def _product_sum(x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum products over positions and examples: x [B, N, C], y [B, N, D] → [C, D]."""
    return jnp.einsum("bnc,bnd->bcd", x, y).sum(0)


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
    patches = _patches(_padded_groups(x, groups), (rows, columns), stride)
    patches = patches.reshape(groups, batch * rows * columns, 9 * size)
    matrices = jnp.moveaxis(kernel.reshape(9 * size, groups, out // groups), 1, 0)
    products = jax.lax.dot_general(patches, matrices, (((2,), (1,)), ((0,), (0,))))
    products = products.reshape(groups, batch, rows, columns, out // groups)
    return jnp.moveaxis(products, 0, 3).reshape(batch, rows, columns, out)


def _padded_groups(x: jax.Array, groups: int) -> jax.Array:
    """Return the channels of each group, with a zero on every side: [B, H, W, C] → [G, B, H + 2, W + 2, C / G]."""
    major = jnp.moveaxis(x.reshape(*x.shape[:3], groups, -1), 3, 0)
    return jnp.pad(major, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))


def _patches(padded: jax.Array, shape: tuple[int, ...], stride: int) -> jax.Array:
    """Return what the nine elements of a 3x3 kernel see of padded images, side by side: [..., *shape, 9 * S]."""
    ends = [(size - 1) * stride + 1 for size in shape]
    taps = [padded[..., i : i + ends[0] : stride, j : j + ends[1] : stride, :] for i in range(3) for j in range(3)]
    return jnp.concatenate(taps, axis=-1)


def sums(terms: Callable[..., tuple[jax.Array, ...]], *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Sum what `terms` computes from arrays [G, ..., C] over the dimensions between: a [G, C] of each.

    XLA sums one channel after the other, in strides of C. The sum of a few slices is a loop over channels. The terms
    are computed from each slice: those of whole arrays XLA would write to memory first.
    """
    parts = zip(*map(_slices, arrays), strict=True)
    return tuple(
        _sum(functools.reduce(jnp.add, slices)) for slices in zip(*(terms(*part) for part in parts), strict=True)
    )


def _slices(x: jax.Array) -> list[jax.Array]:
    """Cut [G, ..., C] into a few slices [G, N, C] of equal size."""
    groups, channels = x.shape[0], x.shape[-1]
    rows = x.size // (groups * channels)
    count = max(count for count in range(1, _SLICES + 1) if rows % count == 0)
    x = x.reshape(groups, count, rows // count, channels)
    return [x[:, index] for index in range(count)]


def _sum(x: jax.Array) -> jax.Array:
    """Sum [G, N, C] over N."""
    # Without the barriers, what is summed would be computed again for each slice, and sums for each of their users.
    while x.shape[1] > _ROWS and len(slices := _slices(jax.lax.optimization_barrier(x))) > 1:
        x = functools.reduce(jnp.add, slices)
    return jax.lax.optimization_barrier(x.sum(1))


def sum_of_squares(*arrays: jax.Array) -> jax.Array:
    """Sum the squares of all arrays."""
    rows = [array.reshape(1, -1, array.shape[-1] if array.ndim else 1) for array in arrays]
    return jnp.stack([sums(lambda part: (part * part,), row)[0].sum() for row in rows]).sum()
