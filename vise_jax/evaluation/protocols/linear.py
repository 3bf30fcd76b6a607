"""The linear protocol: multinomial logistic regression on frozen features (Sec. 4.3)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vise_jax.evaluation import metrics
from vise_jax.evaluation.splits import Split


class Classifier(NamedTuple):
    """A linear map from features to logits: kernel float32 [D, K], bias float32 [K]."""

    kernel: jax.Array
    bias: jax.Array


def logits(classifier: Classifier, features: jax.Array) -> jax.Array:
    """Unnormalized log-probabilities, float32 [N, K], of features, float32 [N, D]."""
    # Accelerators round float32 products to fewer bits unless they are told not to.
    product = jnp.matmul(features, classifier.kernel, precision=jax.lax.Precision.HIGHEST)
    return product + classifier.bias[None, :]


def objective(classifier: Classifier, features: jax.Array, labels: jax.Array, l2: jax.Array) -> jax.Array:
    """Mean cross-entropy + l2 / 2 · ‖kernel‖²; the bias is not penalised.

    Scikit-learn's `LogisticRegression(C=1 / (l2 * N))` minimizes N times the same.

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
        start: where to begin.
        features: float32 [N, D].
        labels: int32 [N].
        l2: float32 scalar.
        iterations: how many at most.
        tolerance: it has converged when no entry of the gradient is larger.

    Returns:
        the classifier, the number of iterations (int32 scalar), whether it converged (bool scalar).
    """

    def loss(classifier: Classifier) -> jax.Array:
        return objective(classifier, features, labels, l2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def steepest(state: Any) -> jax.Array:
        gradient = optax.tree.get(state, "grad")
        return jnp.maximum(jnp.abs(gradient.kernel).max(), jnp.abs(gradient.bias).max())

    def step(carry: tuple[Classifier, Any]) -> tuple[Classifier, Any]:
        classifier, state = carry
        value, gradient = value_and_grad(classifier, state=state)
        updates, state = solver.update(gradient, state, classifier, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(classifier, updates), state

    def unfinished(carry: tuple[Classifier, Any]) -> jax.Array:
        done = optax.tree.get(carry[1], "count")
        return (done == 0) | ((done < iterations) & (steepest(carry[1]) > tolerance))

    classifier, state = jax.lax.while_loop(unfinished, step, (start, solver.init(start)))
    return classifier, optax.tree.get(state, "count"), steepest(state) <= tolerance


def standardize(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Shift and scale each feature to mean 0 and variance 1 over the rows `train`; constant ones are only shifted.

    The penalty then weighs features of every scale alike. The paper's main text does not say how it prepares them.

    Args:
        features: float32 [N, D].
        train: int [M], rows.

    Returns:
        float32 [N, D].
    """
    mean = features[train].mean(axis=0, dtype=np.float64)
    deviation = features[train].std(axis=0, dtype=np.float64)
    # Less than this is float32's rounding.
    deviation[deviation <= 1e-6 * np.abs(mean)] = 1
    return ((features - mean.astype(np.float32)) / deviation.astype(np.float32)).astype(np.float32)


def evaluate(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    split: Split,
    *,
    l2: Sequence[float],
    iterations: int,
    tolerance: float,
    after_each: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Fit a classifier for each penalty on train, choose one on validation, and test that one.

    Penalties are tried from the strongest to the weakest, each starting from the solution before; among those that are
    equal on validation the strongest wins. Test is looked at once.

    Args:
        features: float32 [N, D], of the whole set.
        labels: int32 [N].
        classes: how many there are.
        split: rows to train, choose and test on.
        l2: the penalties.
        iterations: of L-BFGS, at most, for each.
        tolerance: see `minimize`.
        after_each: called after each penalty.

    Returns:
        JSON: "test" and "validation" (accuracies), "l2" (the chosen one), "converged" and "iterations" (its), and
        "sweep": a list of the same for every penalty, without "test".
    """
    prepared = standardize(features, split.train)
    train, train_labels = jnp.asarray(prepared[split.train]), jnp.asarray(labels[split.train])
    classifier = Classifier(jnp.zeros((features.shape[1], classes), jnp.float32), jnp.zeros(classes, jnp.float32))
    sweep: list[dict[str, Any]] = []
    best, chosen = classifier, -1
    for strength in sorted(l2, reverse=True):
        classifier, count, converged = minimize(
            classifier, train, train_labels, jnp.float32(strength), iterations, tolerance
        )
        reached = metrics.accuracy(predict(classifier, prepared[split.validation]), labels[split.validation])
        sweep.append({"l2": strength, "validation": reached, "iterations": int(count), "converged": bool(converged)})
        if chosen < 0 or reached > sweep[chosen]["validation"]:
            best, chosen = classifier, len(sweep) - 1
        after_each()
    test = metrics.accuracy(predict(best, prepared[split.test]), labels[split.test])
    return {"test": test, **sweep[chosen], "sweep": sweep}


def predict(classifier: Classifier, features: np.ndarray) -> np.ndarray:
    """The most probable class, int [N], of features, float32 [N, D]."""
    return np.asarray(logits(classifier, jnp.asarray(features)).argmax(axis=1))
