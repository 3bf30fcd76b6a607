"""Low-shot classification: ridge regression on the features of a few examples per class."""

from collections.abc import Callable, Sequence

import numpy as np

from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation import metrics, outcomes
from vise_jax.evaluation.encoders import Encoders
from vise_jax.evaluation.results import Selection, SweepRow
from vise_jax.evaluation.splits import Split


def ridge(
    train: np.ndarray, targets: np.ndarray, others: Sequence[np.ndarray], l2: Sequence[float]
) -> list[np.ndarray]:
    """Solve ridge regression for every penalty from one eigendecomposition, and predict.

    Minimizes ‖train · W + b − targets‖² / N + l2 · ‖W‖²; the bias is not penalized. The decomposition is of the smaller
    of the two Gram matrices, [N, N] or [D, D].

    Args:
        train: float [N, D].
        targets: float [N, K].
        others: features to predict, float [M_i, D] each.
        l2: penalties, P of them.

    Returns:
        Predictions, float64 [P, M_i, K] for each of `others`.
    """
    center, offset = train.mean(axis=0, dtype=np.float64), targets.mean(axis=0, dtype=np.float64)
    centered, residual, count = train - center, targets - offset, len(train)
    if count <= train.shape[1]:
        values, basis = np.linalg.eigh(centered @ centered.T / count)
        rotated = basis.T @ residual / count
        # kernel = trainᵀ (Gram + l2)⁻¹ targets / N
        kernels = [centered.T @ (basis @ (rotated / (values[:, None] + strength))) for strength in l2]
    else:
        values, basis = np.linalg.eigh(centered.T @ centered / count)
        rotated = basis.T @ (centered.T @ residual) / count
        kernels = [basis @ (rotated / (values[:, None] + strength)) for strength in l2]
    return [np.stack([(features - center) @ kernel + offset for kernel in kernels]) for features in others]


class LowShotEvaluator:
    """Evaluate an encoder by ridge regression on `shots` examples per class, drawn `draws` times.

    Examples are drawn from train of the first split. The penalty is selected on its validation.

    Args:
        extract: from encoders to their features of the dataset, float32 [N, D], and the dataset.
        divide: from the dataset to its splits.
        primary: name of the metric that selects, one of `metrics.METRICS`.
        shots: numbers of examples per class.
        draws: number of draws.
        l2: the penalties, see `ridge`, for features of mean variance 1.

    Attributes:
        outcomes: of the last run, one per number of shots and draw.
    """

    def __init__(
        self,
        extract: Callable[[Encoders], tuple[np.ndarray, Dataset]],
        divide: Callable[[Dataset], list[Split]],
        *,
        primary: str,
        shots: Sequence[int],
        draws: int,
        l2: Sequence[float],
    ):
        self._extract, self._divide, self._primary = extract, divide, primary
        self._shots, self._draws, self._l2 = sorted(shots), draws, sorted(l2, reverse=True)
        self.outcomes: list[outcomes.Outcome] = []

    def run(self, state: Encoders) -> dict[str, float]:
        """Return the mean of each metric over the draws; names end in `_SHOTSshot`.

        Raises:
            UserError: a class has fewer training examples than the largest number of shots.
        """
        features, dataset = self._extract(state)
        split = self._divide(dataset)[0]
        labels, classes = dataset.labels, len(dataset.classes)
        metric = metrics.METRICS[self._primary]
        counts = np.bincount(labels[split.train], minlength=classes)
        if counts.min() < self._shots[-1]:
            raise UserError(
                f"The class {dataset.classes[counts.argmin()]} of {dataset.title} has {counts.min()} training "
                f"examples, fewer than the {self._shots[-1]} of lowshot.shots: lower it."
            )
        self.outcomes = []
        for shots in self._shots:
            for draw in range(self._draws):
                train = draw_shots(split.train, labels, classes, shots, split.seed + draw)
                # One scale for all features: those of a few examples say little about the scale of each.
                scale = 1 / max(float(np.sqrt(features[train].var(axis=0).mean())), float(np.finfo(np.float32).tiny))
                few, *others = (features[rows] * scale for rows in (train, split.validation, split.test))
                validation, test = ridge(few, 2 * np.eye(classes)[labels[train]] - 1, others, self._l2)
                sweep: list[SweepRow] = [
                    {
                        "settings": {"shots": shots, "l2": l2},
                        "validation": metric(validation[number], labels[split.validation]),
                        "test": metric(test[number], labels[split.test]),
                        "details": {},
                    }
                    for number, l2 in enumerate(self._l2)
                ]
                selected = outcomes.best(sweep)
                drawn = Split(split.seed + draw, train, split.validation, split.test)
                scores = test[selected].astype(np.float32)
                self.outcomes.append(
                    outcomes.Outcome(drawn, scores, sweep, selected, variant=f"_{shots}shot", probabilities=False)
                )
        return outcomes.means(self.outcomes, dataset)

    def selection(self) -> Selection:
        """Describe how the reported penalties were selected."""
        return outcomes.selection(self.outcomes, self._primary)


def draw_shots(rows: np.ndarray, labels: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
    """Draw `shots` rows of each class; fewer shots of the same seed are a subset.

    Args:
        rows: int [N], the training rows.
        labels: int [M], of all rows.
        classes: number of classes.
        shots: number of rows per class.
        seed: of the draw.

    Returns:
        int [classes * shots], sorted.
    """
    shuffled = rows[np.argsort(np.random.Philox(key=seed).random_raw(len(rows)), kind="stable")]
    return np.sort(np.concatenate([shuffled[labels[shuffled] == label][:shots] for label in range(classes)]))
