"""Multinomial logistic regression with an L2 penalty, for many splits and penalties in one program."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Steps that the L-BFGS approximation of the Hessian looks back.
_MEMORY = 10
# Newton iterations of the line search, which work on logits and cost no product with the features.
_LINE_SEARCH = 5
# Accelerators round float32 products to fewer bits by default.
_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_tiny = jnp.finfo(jnp.float32).tiny


class Classifiers(NamedTuple):
    """Linear maps from D features to K logits, one per split and penalty.

    Attributes:
        kernel: float32 [S, P, D, K].
        bias: float32 [S, P, K].
        loss: float32 [S, P], the objective.
        iterations: int32 [S, P].
        converged: bool [S, P].
    """

    kernel: jax.Array
    bias: jax.Array
    loss: jax.Array
    iterations: jax.Array
    converged: jax.Array


class _Curvature(NamedTuple):
    """The last M steps as a ring, from which L-BFGS approximates the Hessian."""

    steps: jax.Array  # float32 [M, D + 1, K]
    changes: jax.Array  # [M, D + 1, K], of the gradient in these steps
    inverse: jax.Array  # [M], 1 / (step · change), 0 for none
    total: jax.Array  # int32 scalar, number of steps so far


class _Iterate(NamedTuple):
    """State of the solver; rows of `weights` are features, the last row is the bias."""

    weights: jax.Array  # float32 [D + 1, K]
    logits: jax.Array  # [N, K]
    gradient: jax.Array  # [D + 1, K]
    direction: jax.Array  # [D + 1, K]
    curvature: _Curvature
    loss: jax.Array
    converged: jax.Array
    iterations: jax.Array


@partial(jax.jit, static_argnames="classes")
def solve(
    features: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    l2: jax.Array,
    *,
    classes: int,
    iterations: int,
    tolerance: float,
) -> Classifiers:
    """Fit a classifier for each split and penalty, all in one program.

    Minimizes the mean cross-entropy + l2 / 2 · ‖kernel‖²; the bias is not penalized. This is scikit-learn's
    `LogisticRegression(C=1 / (l2 * N))` divided by N.

    L-BFGS (Nocedal & Wright 2006, Algorithm 7.4) in the eigenbasis of the features' second moments, where the Hessian
    at uniform probabilities is diagonal and preconditions. The line search is exact: logits are linear in the step.
    Penalties are solved from the strongest to the weakest. Each starts at the minimum of the one before with its
    approximation of the Hessian, of which a penalty only changes the diagonal.

    Args:
        features: float32 [S, N, D], training examples of each split.
        labels: int32 [S, N].
        weights: float32 [S, N], 1 for an example, 0 for padding.
        l2: float32 [P].
        classes: number of classes, K.
        iterations: maximum number of L-BFGS iterations per penalty.
        tolerance: a fit has converged when the next step is expected to reduce the objective by at most this fraction
            (half the squared Newton decrement; Boyd & Vandenberghe 2004, Sec. 9.5).
    """
    order = jnp.argsort(-l2)
    one_split = partial(_solve_path, l2=l2[order], classes=classes, iterations=iterations, tolerance=tolerance)
    solved = jax.vmap(one_split)(features, labels, weights)
    return jax.tree.map(lambda leaf: leaf[:, jnp.argsort(order)], solved)


def _solve_path(
    features: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    l2: jax.Array,
    classes: int,
    iterations: int,
    tolerance: float,
) -> Classifiers:
    """Solve the penalties of one split in the order of `l2`."""
    count, dim = weights.sum(), features.shape[1]
    features = features * weights[:, None]
    moments, basis = jnp.linalg.eigh(_product(features.T, features) / count)
    rotated = _product(features, basis)
    true = jax.nn.one_hot(labels, classes, dtype=jnp.float32) * weights[:, None]
    # The bias, the last row, is not penalized.
    is_kernel = jnp.append(jnp.ones(dim, jnp.float32), 0)[:, None]

    def logits_of(parameters: jax.Array) -> jax.Array:
        return _product(rotated, parameters[:-1]) + parameters[-1:]

    def solve_one(start: _Iterate, penalty: jax.Array) -> _Iterate:
        diagonal = penalty * is_kernel
        # A class's probability p has the curvature p (1 - p), about 1 / K at uniform probabilities.
        uniform = jnp.append(jnp.maximum(moments, 0), 1)[:, None] / classes
        preconditioner = 1 / (uniform + diagonal + _tiny)

        def evaluated(iterate: _Iterate) -> _Iterate:
            """Return the iterate with loss, gradient and direction of its weights."""
            log_probabilities = jax.nn.log_softmax(iterate.logits)
            residual = (jnp.exp(log_probabilities) * weights[:, None] - true) / count
            gradient = jnp.append(_product(rotated.T, residual), residual.sum(0)[None], axis=0)
            gradient += diagonal * iterate.weights
            penalties = (diagonal * iterate.weights**2).sum() / 2
            loss = penalties - (log_probabilities * true).sum() / count
            return iterate._replace(gradient=gradient, loss=loss)

        def directed(iterate: _Iterate) -> _Iterate:
            direction = _direction(iterate.gradient, iterate.curvature, preconditioner)
            decrease = -(iterate.gradient * direction).sum() / 2
            return iterate._replace(direction=direction, converged=decrease <= tolerance * iterate.loss)

        def length_of(iterate: _Iterate, moved: jax.Array) -> jax.Array:
            """Return the step length that minimizes the objective along the direction."""
            across = (diagonal * iterate.weights * iterate.direction).sum()
            along = (diagonal * iterate.direction**2).sum()
            of_true = (moved * true).sum() / count

            def newton(_: int, length: jax.Array) -> jax.Array:
                probabilities = jax.nn.softmax(iterate.logits + length * moved) * weights[:, None]
                mean = (probabilities * moved).sum(1)
                slope = mean.sum() / count - of_true + across + length * along
                curvature = ((probabilities * moved**2).sum() - (mean**2).sum()) / count + along
                return jnp.clip(length - slope / jnp.maximum(curvature, 1e-30), 0, 4 * length + 4)

            return jax.lax.fori_loop(0, _LINE_SEARCH, newton, jnp.float32(0))

        def advance(iterate: _Iterate) -> _Iterate:
            moved = logits_of(iterate.direction)
            length = length_of(iterate, moved)
            step = length * iterate.direction
            following = evaluated(
                iterate._replace(
                    weights=iterate.weights + step,
                    logits=iterate.logits + length * moved,
                    iterations=iterate.iterations + 1,
                )
            )
            curvature = _remember(iterate.curvature, step, following.gradient - iterate.gradient)
            return directed(following._replace(curvature=curvature))

        def unfinished(iterate: _Iterate) -> jax.Array:
            return (iterate.iterations < iterations) & ~iterate.converged

        start = directed(evaluated(start._replace(iterations=jnp.int32(0))))
        return jax.lax.while_loop(unfinished, advance, start)

    def follow(
        path: tuple[_Iterate, jax.Array], penalty: jax.Array
    ) -> tuple[tuple[_Iterate, jax.Array], tuple[jax.Array, ...]]:
        iterate, before = path
        curvature = _with_diagonal(iterate.curvature, (penalty - before) * is_kernel)
        iterate = solve_one(iterate._replace(curvature=curvature), penalty)
        kernel = _product(basis, iterate.weights[:-1])
        reported = kernel, iterate.weights[-1], iterate.loss, iterate.iterations, iterate.converged
        return (iterate, penalty), reported

    parameters = jnp.zeros((dim + 1, classes), jnp.float32)
    history = jnp.zeros((_MEMORY, *parameters.shape), jnp.float32)
    start = _Iterate(
        weights=parameters,
        logits=logits_of(parameters),
        gradient=parameters,
        direction=parameters,
        curvature=_Curvature(history, history, jnp.zeros(_MEMORY, jnp.float32), jnp.int32(0)),
        loss=jnp.float32(0),
        converged=jnp.bool_(False),
        iterations=jnp.int32(0),
    )
    return Classifiers(*jax.lax.scan(follow, (start, l2[0]), l2)[1])


def _remember(curvature: _Curvature, step: jax.Array, change: jax.Array) -> _Curvature:
    slot = curvature.total % _MEMORY
    return _Curvature(
        curvature.steps.at[slot].set(step),
        curvature.changes.at[slot].set(change),
        curvature.inverse.at[slot].set(_inverse((step * change).sum())),
        curvature.total + 1,
    )


def _with_diagonal(curvature: _Curvature, added: jax.Array) -> _Curvature:
    """Return the curvature after the Hessian's diagonal has increased by `added`, [D + 1, 1]."""
    changes = curvature.changes + added[None] * curvature.steps
    return curvature._replace(changes=changes, inverse=_inverse((curvature.steps * changes).sum((1, 2))))


def _inverse(product: jax.Array) -> jax.Array:
    return jnp.where(product > 1e-30, 1 / jnp.maximum(product, 1e-30), 0)


def _direction(gradient: jax.Array, curvature: _Curvature, preconditioner: jax.Array) -> jax.Array:
    """Return the direction of the two-loop recursion; the preconditioned gradient where it doesn't descend."""
    newest_first = [(curvature.total - 1 - back) % _MEMORY for back in range(_MEMORY)]
    remaining, factors = gradient, []
    for slot in newest_first:
        factors.append(curvature.inverse[slot] * (curvature.steps[slot] * remaining).sum())
        remaining = remaining - factors[-1] * curvature.changes[slot]
    newest = newest_first[0]
    change, inverse = curvature.changes[newest], curvature.inverse[newest]
    scale = 1 / jnp.maximum(inverse * (change * preconditioner * change).sum(), _tiny)
    ahead = preconditioner * remaining * jnp.where(inverse > 0, scale, 1)
    for slot, factor in reversed(list(zip(newest_first, factors, strict=True))):
        correction = factor - curvature.inverse[slot] * (curvature.changes[slot] * ahead).sum()
        ahead = ahead + correction * curvature.steps[slot]
    return -jnp.where((gradient * ahead).sum() > 0, ahead, preconditioner * gradient)
