"""The linear protocol: multinomial logistic regression on frozen features (Sec. 4.3)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vise_jax.evaluation import metrics
from vise_jax.evaluation.splits import Split


class Classifier(NamedTuple):
    """A linear map from features to logits.

    Attributes:
        kernel: float32 [D, K].
        bias: float32 [K].
    """

    kernel: jax.Array
    bias: jax.Array


def logits(classifier: Classifier, features: jax.Array) -> jax.Array:
    """Return unnormalized log-probabilities, float32 [N, K], of features, float32 [N, D]."""
    # Accelerators round float32 products to fewer bits by default.
    product = jnp.matmul(features, classifier.kernel, precision=jax.lax.Precision.HIGHEST)
    return product + classifier.bias[None, :]


def objective(classifier: Classifier, features: jax.Array, labels: jax.Array, l2: jax.Array) -> jax.Array:
    """Return the mean cross-entropy + l2 / 2 · ‖kernel‖². The bias is not penalized.

    Scikit-learn's `LogisticRegression(C=1 / (l2 * N))` minimizes N times this objective.

    Args:
        classifier: the parameters.
        features: float32 [N, D].
        labels: int32 [N].
        l2: float32 scalar.

    Returns:
        float32 scalar.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(classifier, features), labels)
    return losses.mean() + l2 / 2 * jnp.sum(classifier.kernel**2)


@jax.jit
def minimize(
    start: Classifier, features: jax.Array, labels: jax.Array, l2: jax.Array, iterations: int, tolerance: float
) -> tuple[Classifier, jax.Array, jax.Array]:
    """Minimize `objective` with L-BFGS on all examples at once.

    Args:
        start: initial parameters.
        features: float32 [N, D].
        labels: int32 [N].
        l2: float32 scalar.
        iterations: maximum number of iterations.
        tolerance: largest absolute gradient entry at which it has converged.

    Returns:
        The classifier, the number of iterations (int32 scalar), and True if it converged (bool scalar).
    """

    def loss(classifier: Classifier) -> jax.Array:
        return objective(classifier, features, labels, l2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def steepest(state: optax.OptState) -> jax.Array:
        gradient = optax.tree.get(state, "grad")
        return jnp.maximum(jnp.abs(gradient.kernel).max(), jnp.abs(gradient.bias).max())

    def step(carry: tuple[Classifier, optax.OptState]) -> tuple[Classifier, optax.OptState]:
        classifier, state = carry
        value, gradient = value_and_grad(classifier, state=state)
        updates, state = solver.update(gradient, state, classifier, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(classifier, updates), state

    def unfinished(carry: tuple[Classifier, optax.OptState]) -> jax.Array:
        done = optax.tree.get(carry[1], "count")
        return (done == 0) | ((done < iterations) & (steepest(carry[1]) > tolerance))

    classifier, state = jax.lax.while_loop(unfinished, step, (start, solver.init(start)))
    return classifier, optax.tree.get(state, "count"), steepest(state) <= tolerance


def standardize(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Shift and scale each feature to mean 0 and variance 1 over the rows `train`. Constant features are only shifted.

    The penalty then weighs features of every scale alike. Not in the paper's main text.

    Args:
        features: float32 [N, D].
        train: int [M], rows.

    Returns:
        float32 [N, D].
    """
    mean = features[train].mean(axis=0, dtype=np.float64)
    deviation = features[train].std(axis=0, dtype=np.float64)
    # Smaller deviations are rounding errors of float32.
    deviation[deviation <= 1e-6 * np.abs(mean)] = 1
    return ((features - mean.astype(np.float32)) / deviation.astype(np.float32)).astype(np.float32)


def predict(classifier: Classifier, features: np.ndarray) -> np.ndarray:
    """Return the most probable class, int [N], of features, float32 [N, D]."""
    return np.asarray(logits(classifier, jnp.asarray(features)).argmax(axis=1))


class LinearEvaluator:
    """Fit a classifier per penalty on train, select one on validation, and measure it on test.

    Penalties are tried from the strongest to the weakest, each starting from the previous solution. Among penalties
    with equal validation accuracy the strongest wins.

    Args:
        labels: int32 [N], the classes of all examples.
        classes: number of classes.
        split: the rows of train, validation and test.
        l2: the penalties.
        iterations: maximum number of L-BFGS iterations per penalty.
        tolerance: see `minimize`.
        after_each: called after each penalty.

    Attributes:
        sweep: after `run`, a row per penalty: `l2`, `validation_accuracy`, `iterations` (of L-BFGS), and `converged`,
            which is False if L-BFGS stopped at the maximum number of iterations.
    """

    def __init__(
        self,
        labels: np.ndarray,
        classes: int,
        split: Split,
        *,
        l2: Sequence[float],
        iterations: int,
        tolerance: float,
        after_each: Callable[[], None] = lambda: None,
    ):
        self._labels, self._classes, self._split = labels, classes, split
        self._l2, self._iterations, self._tolerance = l2, iterations, tolerance
        self._after_each = after_each
        self.sweep: list[dict[str, float]] = []

    @property
    def chosen(self) -> dict[str, float]:
        """The row of the selected penalty."""
        return max(self.sweep, key=lambda row: (row["validation_accuracy"], row["l2"]))

    def run(self, state: np.ndarray) -> dict[str, float]:
        """Return `accuracy` (on test) and `validation_accuracy` of the selected classifier.

        Args:
            state: features of all examples, float32 [N, D].
        """
        features, labels, split = standardize(state, self._split.train), self._labels, self._split
        train, train_labels = jnp.asarray(features[split.train]), jnp.asarray(labels[split.train])
        kernel = jnp.zeros((features.shape[1], self._classes), jnp.float32)
        classifier = best = Classifier(kernel, jnp.zeros(self._classes, jnp.float32))
        self.sweep = []
        for penalty in sorted(self._l2, reverse=True):
            classifier, count, converged = minimize(
                classifier, train, train_labels, jnp.float32(penalty), self._iterations, self._tolerance
            )
            reached = metrics.accuracy(predict(classifier, features[split.validation]), labels[split.validation])
            row = {
                "l2": penalty,
                "validation_accuracy": reached,
                "iterations": int(count),
                "converged": bool(converged),
            }
            self.sweep.append(row)
            if self.chosen is row:
                best = classifier
            self._after_each()
        accuracy = metrics.accuracy(predict(best, features[split.test]), labels[split.test])
        return {"accuracy": accuracy, "validation_accuracy": self.chosen["validation_accuracy"]}
