"""Downstream tasks: how to open a task's data, what to report first, and how to split."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vise_jax.data import datasets
from vise_jax.data.datasets import Dataset
from vise_jax.evaluation import splits
from vise_jax.evaluation.splits import Split, SplitSettings


class Task(NamedTuple):
    """A downstream task.

    Attributes:
        open: opens the dataset at a path; the second argument are directories that links in it may point into.
        metric: the primary metric, a name that the protocols return.
        split: the split policy.
    """

    open: Callable[[Path, Sequence[str]], Dataset]
    metric: str
    split: Callable[[Dataset, SplitSettings], list[Split]]


TASKS: dict[str, Task] = {
    "folder": Task(datasets.open_labeled, "accuracy", splits.official_or_random),
}
