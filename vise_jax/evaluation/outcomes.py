"""Outcomes of the splits of a measurement, and their summary in a result."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vise_jax.data.datasets import Dataset
from vise_jax.evaluation import metrics
from vise_jax.evaluation.heads import Head
from vise_jax.evaluation.results import Selection, SplitResult, Summary, SweepRow
from vise_jax.evaluation.splits import Split


@dataclass(frozen=True, eq=False)
class Outcome:
    """Test predictions and sweep of one split.

    Attributes:
        split: the rows.
        scores: float32 [M, K], of the test examples.
        sweep: all settings that were tried.
        selected: index of the reported one.
        head: the linear head on frozen features, if there is one.
        variant: suffix of the names of its metrics, e.g. "_4shot"; metrics are averaged within a variant.
        probabilities: whether `scores` are probabilities.
    """

    split: Split
    scores: np.ndarray
    sweep: list[SweepRow]
    selected: int
    head: Head | None = None
    variant: str = ""
    probabilities: bool = True


def best(sweep: Sequence[SweepRow]) -> int:
    """Return the index of the row that is best on validation, the first of equal ones."""
    return int(np.argmax([row["validation"] for row in sweep]))


def means(outcomes: Sequence[Outcome], dataset: Dataset) -> dict[str, float]:
    """Return the mean of each metric over the splits; see `summaries`."""
    return {name: summary["mean"] for name, summary in summaries(describe(outcomes, dataset)).items()}


def describe(outcomes: Sequence[Outcome], dataset: Dataset) -> list[SplitResult]:
    """Return metrics, confusion matrix and sweep of each split."""
    described: list[SplitResult] = []
    for outcome in outcomes:
        split, labels = outcome.split, dataset.labels[outcome.split.test]
        values = metrics.compute(outcome.scores, labels, probabilities=outcome.probabilities)
        majority = np.bincount(dataset.labels[split.train], minlength=len(dataset.classes)).argmax()
        counts = metrics.confusion(outcome.scores, labels)
        described.append(
            {
                "seed": split.seed,
                "variant": outcome.variant,
                "sizes": {part: len(getattr(split, part)) for part in ("train", "validation", "test")},
                "metrics": values | {"majority_accuracy": float(np.mean(labels == majority))},
                "per_class_accuracy": [row[label] / sum(row) if sum(row) else None for label, row in enumerate(counts)],
                "confusion": counts,
                "selected": outcome.sweep[outcome.selected],
                "sweep": outcome.sweep,
            }
        )
    return described


def summaries(splits: Sequence[SplitResult]) -> dict[str, Summary]:
    """Return mean, sample standard deviation and values of each metric that all splits of a variant have."""
    values: dict[str, Summary] = {}
    for variant in dict.fromkeys(split["variant"] for split in splits):
        alike = [split["metrics"] for split in splits if split["variant"] == variant]
        shared = [name for name in alike[0] if all(name in one for one in alike)]
        values |= {f"{name}{variant}": _summary([one[name] for one in alike]) for name in shared}
    return values


def intervals(outcomes: Sequence[Outcome], dataset: Dataset) -> dict[str, tuple[float, float]]:
    """Return the 95% bootstrap interval of each metric's mean over the splits of a variant.

    A replicate draws the test examples of every split with replacement. The splits themselves are not drawn.
    """
    bounds: dict[str, tuple[float, float]] = {}
    for variant in dict.fromkeys(outcome.variant for outcome in outcomes):
        alike = [
            metrics.bootstrap(outcome.scores, dataset.labels[outcome.split.test], probabilities=outcome.probabilities)
            for outcome in outcomes
            if outcome.variant == variant
        ]
        shared = [name for name in alike[0] if all(name in one for one in alike)]
        means_of = {name: np.mean([one[name] for one in alike], axis=0) for name in shared}
        # A replicate counts if the metric is defined on every split.
        defined = {name: values for name, values in means_of.items() if np.isfinite(values).any()}
        bounds |= {f"{name}{variant}": metrics.interval(values) for name, values in defined.items()}
    return bounds


def selection(outcomes: Sequence[Outcome], primary: str) -> Selection:
    """Describe how the reported settings were selected."""
    tried: dict[str, list[float]] = {}
    for row in itertools.chain.from_iterable(outcome.sweep for outcome in outcomes):
        for key, value in row["settings"].items():
            if value not in tried.setdefault(key, []):
                tried[key].append(value)
    return {
        "split": "validation",
        "metric": primary,
        "grid": tried,
        "selected": [outcome.sweep[outcome.selected]["settings"] for outcome in outcomes],
    }


def _summary(values: list[float]) -> Summary:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}
