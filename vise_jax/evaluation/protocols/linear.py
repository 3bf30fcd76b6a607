"""The linear protocol: multinomial logistic regression on frozen features (Sec. 4.3)."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from vise_jax.data.datasets import Dataset
from vise_jax.evaluation import heads, metrics, outcomes
from vise_jax.evaluation.encoders import Encoders
from vise_jax.evaluation.heads import Head
from vise_jax.evaluation.logistic_regression import Classifiers, solve
from vise_jax.evaluation.results import Selection, SweepRow
from vise_jax.evaluation.splits import Split
from vise_jax.progress import Progress

# Bytes of the training features of the splits that are solved at a time.
_MAX_BYTES = 1 << 30


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
