"""Test predictions beside a result, from which metrics can be recomputed and two encoders be compared."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vise_jax import arrays, artifact
from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation import metrics
from vise_jax.evaluation.outcomes import Outcome


class Predictions(NamedTuple):
    """Scores of the test examples of one split.

    Attributes:
        seed: of the split.
        variant: see `Outcome.variant`.
        names: of the examples, [M].
        labels: int32 [M], the true classes.
        scores: float32 [M, K].
        probabilities: whether `scores` are probabilities.
    """

    seed: int
    variant: str
    names: list[str]
    labels: np.ndarray
    scores: np.ndarray
    probabilities: bool


class Comparison(NamedTuple):
    """Difference of a metric between two results, the first minus the second.

    Attributes:
        difference: of the means over the splits.
        low: lower end of the 95% interval, by a paired bootstrap over the test examples.
        high: upper end.
    """

    difference: float
    low: float
    high: float


def path_of(result: Path) -> Path:
    """Return the path of the predictions of a result's file."""
    return result.with_suffix(".predictions.npz")


def write(path: Path, outcomes: list[Outcome], dataset: Dataset) -> None:
    """Write the predictions of all splits atomically, as a .npz file of arrays without pickles."""
    arrays: dict[str, np.ndarray] = {"names": np.array(dataset.names), "labels": dataset.labels}
    for number, outcome in enumerate(outcomes):
        arrays[f"test_{number}"], arrays[f"scores_{number}"] = outcome.split.test, outcome.scores
    arrays["seeds"] = np.array([outcome.split.seed for outcome in outcomes])
    arrays["variants"] = np.array([outcome.variant for outcome in outcomes])
    arrays["probabilities"] = np.array([outcome.probabilities for outcome in outcomes])
    with artifact.atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read(path: Path) -> list[Predictions]:
    """Read the predictions of each split.

    Raises:
        UserError: no such file, or a damaged one.
    """
    try:
        stored = arrays.read_npz(path)
        names, labels = stored["names"], stored["labels"]
        splits = zip(stored["seeds"].tolist(), stored["variants"].tolist(), stored["probabilities"], strict=True)
        return [
            _checked(
                Predictions(
                    seed,
                    variant,
                    names[stored[f"test_{number}"]].tolist(),
                    labels[stored[f"test_{number}"]],
                    stored[f"scores_{number}"],
                    bool(probabilities),
                )
            )
            for number, (seed, variant, probabilities) in enumerate(splits)
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} holds no predictions: measure again with evaluate.py.") from error


def _checked(split: Predictions) -> Predictions:
    """Raise `ValueError` unless each example has a name, a class and the scores of all classes."""
    examples, classes = split.scores.shape
    if not len(split.names) == len(split.labels) == examples > 0 or split.scores.dtype.kind != "f":
        raise ValueError("no scores of each example")
    if split.labels.dtype.kind != "i" or not ((split.labels >= 0) & (split.labels < classes)).all():
        raise ValueError("a class without scores")
    return split


def compare(first: Path, second: Path, metric: str, replicates: int = 1000) -> Comparison:
    """Compare two results on the same test examples by a paired bootstrap.

    Args:
        first: file of predictions.
        second: file of predictions of the same splits.
        metric: name of a metric that both have.
        replicates: number of bootstrap replicates.

    Raises:
        UserError: other splits or examples, or a metric that one of them doesn't have.
    """
    ours, theirs = (sorted(read(path), key=lambda one: (one.variant, one.seed)) for path in (first, second))
    if [one[:2] for one in ours] != [one[:2] for one in theirs]:
        raise UserError(f"{first} and {second} have different splits: measure both with the same config.")
    differences, values = [], []
    for one, other in zip(ours, theirs, strict=True):
        if one.names != other.names or not np.array_equal(one.labels, other.labels):
            raise UserError(f"{first} and {second} have different test examples: measure both on the same data.")
        computed = [
            metrics.compute(split.scores, split.labels, probabilities=split.probabilities) for split in (one, other)
        ]
        if not all(metric in of_split for of_split in computed):
            raise UserError(f"{first} and {second} don't both have the metric {metric!r}: choose another one.")
        values.append(computed[0][metric] - computed[1][metric])
        drawn = [
            metrics.bootstrap(split.scores, split.labels, probabilities=split.probabilities, replicates=replicates)[
                metric
            ]
            for split in (one, other)
        ]
        differences.append(drawn[0] - drawn[1])
    return Comparison(float(np.mean(values)), *metrics.interval(np.mean(differences, axis=0)))
