"""Downstream tasks: how their data are opened and divided, and which metric is reported first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vise_jax.data import datasets
from vise_jax.data.datasets import Dataset
from vise_jax.evaluation import splits
from vise_jax.evaluation.splits import Split, SplitSettings


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks.

    Attributes:
        open: from a path and the roots of allowed links to the dataset.
        split: divides the dataset.
        primary: name of the metric that selects settings and is reported first, one of `metrics.METRICS`.
    """

    open: Callable[[Path, Sequence[str]], Dataset]
    split: Callable[[Dataset, SplitSettings], list[Split]]
    primary: str


TASKS = {"folder": Task(open=datasets.open_labeled, split=splits.official_or_random, primary="accuracy")}
