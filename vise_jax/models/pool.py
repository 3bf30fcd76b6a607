"""Max-pooling whose gradient needs no scatter."""

import jax
import jax.numpy as jnp
from flax import nnx

# Offsets of a window's nine pixels, in the order in which the first of equal maxima is found.
_WINDOW = [(i, j) for i in range(3) for j in range(3)]


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Return the maxima of 3x3 windows, stride 2, one pixel of padding (torch's, of -inf) on every side.

    The gradient of a window goes to the first of its maxima, as in torch. It is computed by comparing nine shifted
    images, where XLA's own finds maxima by int32 indices and scatters. TPUs have an operation for the latter.

    Args:
        x: [B, H, W, C].

    Returns:
        [B, ceil(H / 2), ceil(W / 2), C].
    """
    return _forward(x)[0]


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    maxima = _pool(x)
    return maxima, (x, maxima)


def _pool(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.platform_dependent(*residuals, cotangent, tpu=_by_xla, default=_by_comparison),)


def _by_xla(x: jax.Array, _: jax.Array, cotangent: jax.Array) -> jax.Array:
    return jax.vjp(_pool, x)[1](cotangent)[0]


def _by_comparison(x: jax.Array, maxima: jax.Array, cotangent: jax.Array) -> jax.Array:
    height, width = x.shape[1:3]
    rows, columns = cotangent.shape[1:3]
    taken, firsts = jnp.zeros(maxima.shape, bool), []
    for pixel in _shifted(x):
        firsts.append((pixel == maxima) & ~taken)
        taken |= firsts[-1]
    # Gradients of the padded image's pixels by parity of row and column: pixel (2 r + i, 2 c + j) is in quarter (i, j).
    quarters = {(i, j): jnp.zeros((), cotangent.dtype) for i in range(2) for j in range(2)}
    # Backwards, so that a pixel sums up the gradients of its windows in the order of the windows.
    for (i, j), first in reversed(list(zip(_WINDOW, firsts, strict=True))):
        edges = (0, 0), (i // 2, 1 - i // 2), (j // 2, 1 - j // 2), (0, 0)
        quarters[i % 2, j % 2] += jnp.pad(jnp.where(first, cotangent, 0), edges)
    split = [jnp.stack([quarters[i, 0], quarters[i, 1]], axis=3) for i in range(2)]
    padded = jnp.stack(split, axis=2).reshape(len(x), 2 * (rows + 1), 2 * (columns + 1), x.shape[-1])
    return padded[:, 1 : 1 + height, 1 : 1 + width]


def _shifted(x: jax.Array) -> list[jax.Array]:
    """Return for each offset in `_WINDOW` the pixel of every window: nine of [B, ceil(H / 2), ceil(W / 2), C]."""
    _, height, width, _ = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    edges = (0, 0), (1, 2 * rows - height + 1), (1, 2 * columns - width + 1), (0, 0)
    padded = jnp.pad(x, edges, constant_values=-jnp.inf)
    return [padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i, j in _WINDOW]


max_pool.defvjp(_forward, _backward)
