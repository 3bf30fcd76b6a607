"""Downstream tasks: how their data are opened and divided, and which metric is reported first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vise_jax.data import datasets, paper_datasets
from vise_jax.data.datasets import Dataset
from vise_jax.data.listing import Limits
from vise_jax.errors import UserError
from vise_jax.evaluation import splits
from vise_jax.evaluation.splits import Split, SplitSettings


@dataclass(frozen=True)
class Setting:
    """Modalities of a measurement. Features of several are concatenated before the head (Sec. 4.2).

    Attributes:
        image: whether images are used.
        text: whether texts are used.
        frozen_text: in the fine-tuned protocol, whether the text encoder is frozen.
    """

    image: bool
    text: bool
    frozen_text: bool = False


# With the protocols "finetune" and "linear" these are the seven settings of Sec. 5.2.
SETTINGS = {
    "image": Setting(image=True, text=False),
    "text": Setting(image=False, text=True),
    "image_text": Setting(image=True, text=True),
    "image_frozen_text": Setting(image=True, text=True, frozen_text=True),
}


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks.

    Attributes:
        open: from a path, the roots of allowed links and the bounds of what is read to the dataset.
        primary: name of the metric that selects settings and is reported first, one of `metrics.METRICS`.
        refit: fit the selected setting on train and validation together before the test.
        setting: default setting by protocol; "image" for others.
        examples: number of examples by split in the paper (Sec. 4.2), "all" without official splits.
        classes: number of classes in the paper.
        split: divides the dataset.
    """

    open: Callable[[Path, Sequence[str], Limits], Dataset]
    primary: str = "accuracy"
    refit: bool = False
    setting: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)
    classes: int | None = None
    split: Callable[[Dataset, SplitSettings], list[Split]] = splits.official_or_random

    def divide(self, dataset: Dataset, settings: SplitSettings) -> list[Split]:
        """Divide a dataset by `split`.

        Raises:
            UserError: as `split`; or validation examples of a single class, by which `primary` can't select.
        """
        divided = self.split(dataset, settings)
        for split in divided:
            if self.primary != "accuracy" and len(np.unique(dataset.labels[split.validation])) < 2:
                raise UserError(
                    f"The validation examples of {dataset.title} are all of one class, so that {self.primary} can't "
                    "select by them: add examples, or raise held_out_fraction or validation_fraction."
                )
        return divided


TASKS = {
    "unbiased_emotion": Task(open=paper_datasets.open_unbiased_emotion, examples={"all": 3045}, classes=6),
    "politics": Task(open=paper_datasets.open_politics, examples={"all": 749_932}, classes=2),
    "hateful_memes": Task(
        open=paper_datasets.open_hateful_memes,
        primary="roc_auc",
        refit=True,
        # Sec. 4 fine-tunes with a frozen text encoder.
        setting={"finetune": "image_frozen_text", "linear": "image_text", "knn": "image_text", "lowshot": "image_text"},
        examples={"train": 8500, "test": 500},
        classes=2,
    ),
    "cub": Task(open=paper_datasets.open_cub, refit=True, examples={"all": 11_788}, classes=200),
    "folder": Task(open=datasets.open_labeled),
}


def describe_counts(task: Task, dataset: Dataset) -> str:
    """Return a sentence with both counts where a dataset doesn't have the paper's number of examples; else ""."""
    parts = ["all"] * len(dataset) if "all" in task.examples else list(dataset.splits or ())
    counts = {name: parts.count(name) for name in task.examples}
    if counts == dict(task.examples) and task.classes in (None, len(dataset.classes)):
        return ""

    def words(numbers: Mapping[str, int], classes: int | None) -> str:
        of_splits = " and ".join(f"{number:,}{'' if name == 'all' else f' {name}'}" for name, number in numbers.items())
        return f"{of_splits} examples of {classes} classes"

    return (
        f"{dataset.title} has {words(counts, len(dataset.classes))}; the paper's has "
        f"{words(task.examples, task.classes)}."
    )
