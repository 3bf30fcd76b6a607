"""The linear protocol: multinomial logistic regression on frozen features (Sec. 4.3)."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.evaluation import metrics
from vise_jax.evaluation.results import Fit, Selection, SplitResult, SweepRow
from vise_jax.evaluation.splits import Split
from vise_jax.progress import Progress

Metric = Callable[[np.ndarray, np.ndarray], float]


class Classifier(NamedTuple):
    """A linear map from D features to K logits: kernel float32 [D, K], bias float32 [K]."""

    kernel: jax.Array
    bias: jax.Array


def logits(classifier: Classifier, features: jax.Array) -> jax.Array:
    """Return unnormalized log-probabilities, float32 [N, K], of features float32 [N, D]."""
    # Accelerators round float32 products to fewer bits by default.
    product = jnp.matmul(features, classifier.kernel, precision=jax.lax.Precision.HIGHEST)
    return product + classifier.bias[None, :]


def objective(classifier: Classifier, features: jax.Array, labels: jax.Array, l2: jax.Array) -> jax.Array:
    """Return the mean cross-entropy + l2 / 2 · ‖kernel‖²; the bias is not penalized.

    This is scikit-learn's `LogisticRegression(C=1 / (l2 * N))` divided by N.

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
        tolerance: largest absolute gradient entry at convergence.

    Returns:
        The classifier, the number of iterations (int32 scalar), and whether it converged (bool scalar).
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
    """Shift and scale each feature to mean 0 and variance 1 over the rows `train`; constant features are only shifted.

    The penalty then treats features of every scale alike. The paper's main text does not say how features are prepared.

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


def fit_and_select(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    split: Split,
    *,
    l2: Sequence[float],
    iterations: int,
    tolerance: float,
    metric: Metric = metrics.accuracy,
    after_each: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, Fit]:
    """Fit a classifier for each penalty on train, select one on validation, and predict test with it.

    Penalties are fitted from the strongest to the weakest, each from the solution of the previous one. Of those that
    are equal on validation the strongest is selected.

    Args:
        features: float32 [N, D], of the whole dataset.
        labels: int32 [N].
        classes: number of classes, K.
        split: rows to train, select and test on.
        l2: the penalties.
        iterations: maximum number of L-BFGS iterations per penalty.
        tolerance: see `minimize`.
        metric: from predicted and true classes to what selects.
        after_each: called after each penalty.

    Returns:
        The predicted classes of test, int [M]; and the selected `l2` with its `validation` metric, `iterations` and
        `converged`, and `sweep`, the same for every penalty.
    """
    prepared = standardize(features, split.train)
    train, train_labels = jnp.asarray(prepared[split.train]), jnp.asarray(labels[split.train])
    classifier = Classifier(jnp.zeros((features.shape[1], classes), jnp.float32), jnp.zeros(classes, jnp.float32))
    sweep: list[SweepRow] = []
    best, selected = classifier, -1
    for strength in sorted(l2, reverse=True):
        classifier, count, converged = minimize(
            classifier, train, train_labels, jnp.float32(strength), iterations, tolerance
        )
        value = metric(predict(classifier, prepared[split.validation]), labels[split.validation])
        sweep.append({"l2": strength, "validation": value, "iterations": int(count), "converged": bool(converged)})
        if selected < 0 or value > sweep[selected]["validation"]:
            best, selected = classifier, len(sweep) - 1
        after_each()
    return predict(best, prepared[split.test]), {**sweep[selected], "sweep": sweep}


def predict(classifier: Classifier, features: np.ndarray) -> np.ndarray:
    """Return the most probable class, int [N], for features float32 [N, D]."""
    return np.asarray(logits(classifier, jnp.asarray(features)).argmax(axis=1))


class LinearEvaluator:
    """Evaluate an encoder by linear classifiers on its features.

    Args:
        extract: from an encoder to its features of the dataset, float32 [N, D], and the dataset.
        divide: from the dataset to its splits.
        primary: name of the metric that selects the penalty, one of `metrics.METRICS`.
        l2: the penalties.
        iterations: maximum number of L-BFGS iterations per penalty.
        tolerance: see `minimize`.

    Attributes:
        splits: of the last run, for each split: its `seed` and `sizes`, the value of each metric (`metrics`), and what
            `fit_and_select` returns.
    """

    def __init__(
        self,
        extract: Callable[[Encoder], tuple[np.ndarray, Dataset]],
        divide: Callable[[Dataset], list[Split]],
        *,
        primary: str,
        l2: Sequence[float],
        iterations: int,
        tolerance: float,
    ):
        self._extract, self._divide, self._primary = extract, divide, primary
        self._fit = partial(
            fit_and_select, l2=l2, iterations=iterations, tolerance=tolerance, metric=metrics.METRICS[primary]
        )
        self._l2 = l2
        self.splits: list[SplitResult] = []

    def run(self, encoder: Encoder) -> dict[str, float]:
        """Return the mean of each metric over the splits, and `majority_accuracy`, that of train's majority class."""
        features, dataset = self._extract(encoder)
        divided = self._divide(dataset)
        self.splits = []
        with Progress("linear classifiers", len(divided) * len(self._l2), "fits") as progress:
            for split in divided:
                predicted, fitted = self._fit(
                    features, dataset.labels, len(dataset.classes), split, after_each=progress.advance
                )
                if not fitted["converged"]:
                    progress.print(
                        f"split {split.seed}: L-BFGS has not converged in {fitted['iterations']} iterations "
                        f"(l2 {fitted['l2']:g}): --config.iterations allows more"
                    )
                labels = dataset.labels[split.test]
                majority = np.bincount(dataset.labels[split.train]).argmax()
                values = {name: metric(predicted, labels) for name, metric in metrics.METRICS.items()}
                values["majority_accuracy"] = metrics.accuracy(np.full_like(labels, majority), labels)
                sizes = {part: len(getattr(split, part)) for part in ("train", "validation", "test")}
                self.splits.append({"seed": split.seed, "sizes": sizes, "metrics": values, **fitted})
        names = self.splits[0]["metrics"]
        return {name: statistics.fmean(split["metrics"][name] for split in self.splits) for name in names}

    def selection(self) -> Selection:
        """Describe how the reported settings were selected."""
        return {
            "key": "l2",
            "split": "validation",
            "metric": self._primary,
            "grid": list(self._l2),
            "selected": [split["l2"] for split in self.splits],
        }
