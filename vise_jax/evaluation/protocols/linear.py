"""The linear protocol: multinomial logistic regression on frozen features (Sec. 4.3)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vise_jax.data.datasets import Dataset
from vise_jax.evaluation import heads, metrics, outcomes
from vise_jax.evaluation.encoders import Encoders
from vise_jax.evaluation.heads import Head
from vise_jax.evaluation.results import Selection, SweepRow
from vise_jax.evaluation.splits import Split
from vise_jax.progress import Progress

# Steps that the L-BFGS approximation of the Hessian looks back.
_MEMORY = 5
# Newton iterations of the line search, which work on logits and cost no product with the features.
_LINE_SEARCH = 4
# Bytes of the training features of the splits that are solved at a time.
_MAX_BYTES = 1 << 30
# Accelerators round float32 products to fewer bits by default.
_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


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


class _Iterate(NamedTuple):
    """State of the solver for P penalties; rows of `weights` are features, the last row is the bias."""

    weights: jax.Array  # float32 [D + 1, P, K]
    logits: jax.Array  # [N, P, K]
    gradient: jax.Array  # [D + 1, P, K]
    direction: jax.Array  # [D + 1, P, K]
    steps: jax.Array  # [M, D + 1, P, K], the last M steps, as a ring
    changes: jax.Array  # [M, D + 1, P, K], of the gradient in these steps
    curvature: jax.Array  # [M, P], their inverse products, 0 for none
    converged: jax.Array  # bool [P]
    iterations: jax.Array  # int32 [P]
    done: jax.Array  # int32 scalar, number of iterations


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
    at uniform probabilities is diagonal and preconditions. Products with the features are shared by all penalties. The
    line search is exact: logits are linear in the step.

    Args:
        features: float32 [S, N, D], training examples of each split.
        labels: int32 [S, N].
        weights: float32 [S, N], 1 for an example, 0 for padding.
        l2: float32 [P].
        classes: number of classes, K.
        iterations: maximum number of L-BFGS iterations.
        tolerance: largest absolute gradient entry at convergence.
    """
    one_split = partial(_solve, l2=l2, classes=classes, iterations=iterations, tolerance=tolerance)
    return jax.vmap(one_split)(features, labels, weights)


def _solve(
    features: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    l2: jax.Array,
    classes: int,
    iterations: int,
    tolerance: float,
) -> Classifiers:
    """Solve one split, see `solve`: features [N, D], labels [N], weights [N]."""
    count, dim, penalties = weights.sum(), features.shape[1], len(l2)
    features = features * weights[:, None]
    moments, basis = jnp.linalg.eigh(_product(features.T, features) / count)
    rotated = _product(features, basis)
    true = jax.nn.one_hot(labels, classes, dtype=jnp.float32)[:, None] * weights[:, None, None]
    # A class's probability p has the curvature p (1 - p), about 1 / K at uniform probabilities.
    inverse = 1 / (jnp.maximum(moments, 0)[:, None] / classes + l2[None] + jnp.finfo(jnp.float32).tiny)
    inverse = jnp.concatenate([inverse, jnp.full((1, penalties), classes, jnp.float32)])[:, :, None]

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a * b).sum((0, 2))

    def logits_of(parameters: jax.Array) -> jax.Array:
        products = _product(rotated, parameters[:-1].reshape(dim, -1)).reshape(-1, penalties, classes)
        return products + parameters[-1][None]

    def gradient_of(logits: jax.Array, parameters: jax.Array) -> jax.Array:
        residual = (jax.nn.softmax(logits, axis=-1) * weights[:, None, None] - true) / count
        of_kernel = _product(rotated.T, residual.reshape(len(residual), -1)).reshape(dim, penalties, classes)
        return jnp.concatenate([of_kernel + l2[None, :, None] * parameters[:-1], residual.sum(0)[None]])

    def line_search(iterate: _Iterate, moved: jax.Array) -> jax.Array:
        """Return the step length [P] that minimizes the objective along the direction."""
        kernel, direction = iterate.weights[:-1], iterate.direction[:-1]
        across, along = dot(kernel, direction), dot(direction, direction)
        of_true = dot(moved, true) / count

        def newton(_: int, length: jax.Array) -> jax.Array:
            probabilities = jax.nn.softmax(iterate.logits + length[None, :, None] * moved, axis=-1)
            probabilities *= weights[:, None, None]
            mean = (probabilities * moved).sum(2)
            slope = mean.sum(0) / count - of_true + l2 * (across + length * along)
            curvature = (dot(probabilities, moved**2) - (mean**2).sum(0)) / count + l2 * along
            return jnp.clip(length - slope / jnp.maximum(curvature, 1e-30), 0, 4 * length + 4)

        return jax.lax.fori_loop(0, _LINE_SEARCH, newton, jnp.zeros(penalties))

    def direction_of(iterate: _Iterate) -> jax.Array:
        """Return the direction of the two-loop recursion; the preconditioned gradient where it doesn't descend."""
        newest_first = [(iterate.done - 1 - back) % _MEMORY for back in range(_MEMORY)]
        remaining, factors = iterate.gradient, []
        for slot in newest_first:
            factors.append(iterate.curvature[slot] * dot(iterate.steps[slot], remaining))
            remaining = remaining - factors[-1][None, :, None] * iterate.changes[slot]
        newest = newest_first[0]
        change, curvature = iterate.changes[newest], iterate.curvature[newest]
        scale = 1 / jnp.maximum(curvature * dot(change, inverse * change), jnp.finfo(jnp.float32).tiny)
        ahead = inverse * remaining * jnp.where(curvature > 0, scale, 1)[None, :, None]
        for slot, factor in reversed(list(zip(newest_first, factors, strict=True))):
            correction = factor - iterate.curvature[slot] * dot(iterate.changes[slot], ahead)
            ahead = ahead + correction[None, :, None] * iterate.steps[slot]
        descends = dot(iterate.gradient, ahead) > 0
        return -jnp.where(descends[None, :, None], ahead, inverse * iterate.gradient)

    def advance(iterate: _Iterate) -> _Iterate:
        moved = logits_of(iterate.direction)
        length = jnp.where(iterate.converged, 0, line_search(iterate, moved))[None, :, None]
        step = length * iterate.direction
        parameters, logits = iterate.weights + step, iterate.logits + length * moved
        gradient = gradient_of(logits, parameters)
        change, slot = gradient - iterate.gradient, iterate.done % _MEMORY
        product = dot(step, change)
        curvature = jnp.where(product > 1e-30, 1 / jnp.maximum(product, 1e-30), 0)
        following = iterate._replace(
            weights=parameters,
            logits=logits,
            gradient=gradient,
            steps=iterate.steps.at[slot].set(step),
            changes=iterate.changes.at[slot].set(change),
            curvature=iterate.curvature.at[slot].set(curvature),
            converged=jnp.abs(gradient).max((0, 2)) <= tolerance,
            iterations=iterate.iterations + (~iterate.converged).astype(jnp.int32),
            done=iterate.done + 1,
        )
        return following._replace(direction=direction_of(following))

    def unfinished(iterate: _Iterate) -> jax.Array:
        return (iterate.done < iterations) & ~iterate.converged.all()

    parameters = jnp.zeros((dim + 1, penalties, classes), jnp.float32)
    logits = logits_of(parameters)
    gradient = gradient_of(logits, parameters)
    history = jnp.zeros((_MEMORY, *parameters.shape), jnp.float32)
    iterate = _Iterate(
        weights=parameters,
        logits=logits,
        gradient=gradient,
        direction=-inverse * gradient,
        steps=history,
        changes=history,
        curvature=jnp.zeros((_MEMORY, penalties), jnp.float32),
        converged=jnp.zeros(penalties, bool),
        iterations=jnp.zeros(penalties, jnp.int32),
        done=jnp.int32(0),
    )
    iterate = jax.lax.while_loop(unfinished, advance, iterate)
    losses = -(jax.nn.log_softmax(iterate.logits, axis=-1) * true).sum((0, 2)) / count
    kernel = _product(basis, iterate.weights[:-1].reshape(dim, -1)).reshape(dim, penalties, classes)
    return Classifiers(
        kernel=kernel.transpose(1, 0, 2),
        bias=iterate.weights[-1],
        loss=losses + l2 / 2 * (iterate.weights[:-1] ** 2).sum((0, 2)),
        iterations=iterate.iterations,
        converged=iterate.converged,
    )


def statistics(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each feature over `rows`, and the inverse deviation; 1 for constant features.

    Standardized features are penalized alike, whatever their scale. The paper's main text does not say how features are
    prepared.

    Args:
        features: float32 [N, D].
        rows: int [M].

    Returns:
        float32 [D] each.
    """
    mean = features[rows].mean(axis=0, dtype=np.float64)
    deviation = features[rows].std(axis=0, dtype=np.float64)
    # Smaller deviations are rounding errors of float32.
    deviation[deviation <= 1e-6 * np.abs(mean)] = 1
    return mean.astype(np.float32), (1 / deviation).astype(np.float32)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    rows: Sequence[np.ndarray],
    *,
    l2: Sequence[float],
    classes: int,
    iterations: int,
    tolerance: float,
) -> tuple[list[list[Head]], list[list[dict[str, float]]]]:
    """Fit a classifier of standardized features for each set of rows and penalty, together as far as memory allows.

    Args:
        features: float32 [N, D].
        labels: int32 [N].
        rows: int [M_s] for each set of training examples.
        l2: the penalties.
        classes: number of classes.
        iterations: see `solve`.
        tolerance: see `solve`.

    Returns:
        For each set of rows and penalty, the classifier; and its `loss`, `iterations` and `converged`.
    """
    length = max(map(len, rows))
    together = max(_MAX_BYTES // (4 * length * features.shape[1]), 1)
    fitted: list[list[Head]] = []
    details: list[list[dict[str, float]]] = []
    with Progress("linear classifiers", len(rows) * len(l2), "fits") as progress:
        for start in range(0, len(rows), together):
            some = rows[start : start + together]
            prepared = np.zeros((len(some), length, features.shape[1]), np.float32)
            classes_of, weights = np.zeros((len(some), length), np.int32), np.zeros((len(some), length), np.float32)
            scales = [statistics(features, chosen) for chosen in some]
            for number, (chosen, (mean, scale)) in enumerate(zip(some, scales, strict=True)):
                prepared[number, : len(chosen)] = (features[chosen] - mean) * scale
                classes_of[number, : len(chosen)], weights[number, : len(chosen)] = labels[chosen], 1
            solved = solve(
                prepared,
                classes_of,
                weights,
                np.array(l2, np.float32),
                classes=classes,
                iterations=iterations,
                tolerance=tolerance,
            )
            solved = Classifiers(*map(np.asarray, solved))  # type: ignore[arg-type]
            for number, (mean, scale) in enumerate(scales):
                pairs = zip(solved.kernel[number], solved.bias[number], strict=True)
                fitted.append([Head(kernel, bias, mean, scale) for kernel, bias in pairs])
                values = zip(solved.loss[number], solved.iterations[number], solved.converged[number], strict=True)
                details.append([_details(*value) for value in values])
            progress.advance(len(some) * len(l2))
    return fitted, details


def _details(loss: np.floating, iterations: np.integer, converged: np.bool_) -> dict[str, float]:
    return {"loss": float(loss), "iterations": int(iterations), "converged": bool(converged)}


class LinearEvaluator:
    """Evaluate an encoder by linear classifiers on its features.

    For each split, the penalty that is best on validation is reported on test; of equal ones the strongest.

    Args:
        extract: from encoders to their features of the dataset, float32 [N, D], and the dataset.
        divide: from the dataset to its splits.
        primary: name of the metric that selects the penalty, one of `metrics.METRICS`.
        refit: fit the selected penalty on train and validation together before the test.
        l2: the penalties.
        iterations: maximum number of L-BFGS iterations per penalty.
        tolerance: see `solve`.

    Attributes:
        outcomes: of the last run, one per split.
    """

    def __init__(
        self,
        extract: Callable[[Encoders], tuple[np.ndarray, Dataset]],
        divide: Callable[[Dataset], list[Split]],
        *,
        primary: str,
        refit: bool,
        l2: Sequence[float],
        iterations: int,
        tolerance: float,
    ):
        self._extract, self._divide, self._primary, self._refit = extract, divide, primary, refit
        self._l2 = sorted(l2, reverse=True)
        self._iterations, self._tolerance = iterations, tolerance
        self.outcomes: list[outcomes.Outcome] = []

    def run(self, state: Encoders) -> dict[str, float]:
        """Return the mean of each metric over the splits."""
        features, dataset = self._extract(state)
        splits = self._divide(dataset)
        labels, classes = dataset.labels, len(dataset.classes)
        fit_all = partial(
            fit, features, labels, classes=classes, iterations=self._iterations, tolerance=self._tolerance
        )
        fitted, details = fit_all([split.train for split in splits], l2=self._l2)
        metric = metrics.METRICS[self._primary]
        sweeps: list[list[SweepRow]] = []
        for split, of_split, described in zip(splits, fitted, details, strict=True):
            on_validation, on_test = (
                [metric(heads.probabilities(head, features[rows]), labels[rows]) for head in of_split]
                for rows in (split.validation, split.test)
            )
            columns = zip(self._l2, on_validation, on_test, described, strict=True)
            sweeps.append(
                [
                    {"settings": {"l2": l2}, "validation": validation, "test": test, "details": detail}
                    for l2, validation, test, detail in columns
                ]
            )
        chosen = [outcomes.best(sweep) for sweep in sweeps]
        reported = [of_split[row] for of_split, row in zip(fitted, chosen, strict=True)]
        if self._refit:
            for number, split in enumerate(splits):
                both = np.union1d(split.train, split.validation)
                reported[number] = fit_all([both], l2=[self._l2[chosen[number]]])[0][0][0]
        self.outcomes = [
            outcomes.Outcome(split, heads.probabilities(head, features[split.test]), sweep, row, head)
            for split, head, sweep, row in zip(splits, reported, sweeps, chosen, strict=True)
        ]
        return outcomes.means(self.outcomes, dataset)

    def selection(self) -> Selection:
        """Describe how the reported penalties were selected."""
        return outcomes.selection(self.outcomes, self._primary)
