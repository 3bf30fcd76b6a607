"""The evaluators of the protocols, made from a config."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from vise_jax.data.augmented import Augmentation
from vise_jax.data.datasets import Dataset
from vise_jax.evaluation.encoders import Encoders
from vise_jax.evaluation.finetune_runs import Grid, Plan
from vise_jax.evaluation.outcomes import Outcome
from vise_jax.evaluation.protocols.finetune import FinetuneEvaluator
from vise_jax.evaluation.protocols.knn import KNNEvaluator
from vise_jax.evaluation.protocols.linear import LinearEvaluator
from vise_jax.evaluation.protocols.lowshot import LowShotEvaluator
from vise_jax.evaluation.results import Selection
from vise_jax.evaluation.splits import Split, SplitSettings
from vise_jax.evaluation.tasks import Setting, Task
from vise_jax.training.finetune import Settings


class Evaluator(Protocol):
    """Measures encoders by a protocol.

    Attributes:
        outcomes: of the last run.
    """

    outcomes: list[Outcome]

    def run(self, state: Encoders) -> dict[str, float]:
        """Return the mean of each metric."""

    def selection(self) -> Selection:
        """Describe how the reported settings were selected."""


# From the images that can't be decoded, by name, to the dataset without them.
Accept = Callable[[Mapping[str, str]], Dataset]


class Context(NamedTuple):
    """Arguments of a protocol's evaluator.

    Attributes:
        config: the whole config.
        task: the task.
        setting: the modalities.
        dataset: the dataset.
        accept: from the images that can't be decoded, by name, to the dataset without them.
        output: directory of results.
        path: of the result.
    """

    config: ConfigDict
    task: Task
    setting: Setting
    dataset: Dataset
    accept: Accept
    output: Path
    path: Path

    def divide(self, dataset: Dataset) -> list[Split]:
        return self.task.divide(dataset, SplitSettings.of(self.config))

    def extract(self, encoders: Encoders) -> tuple[np.ndarray, Dataset]:
        """Return cached features of the dataset, and the dataset that they are of."""
        config = self.config
        features, rejected = encoders.features(
            self.dataset,
            self.output / "features",
            batch_size=config.batch_size,
            threads=config.threads,
            max_image_pixels=config.max_image_pixels,
        )
        return features, self.accept(rejected)


def _linear(context: Context) -> LinearEvaluator:
    task = context.task
    return LinearEvaluator(
        context.extract, context.divide, primary=task.primary, refit=task.refit, **context.config.linear
    )


def _knn(context: Context) -> KNNEvaluator:
    return KNNEvaluator(context.extract, context.divide, primary=context.task.primary, **context.config.knn)


def _lowshot(context: Context) -> LowShotEvaluator:
    return LowShotEvaluator(context.extract, context.divide, primary=context.task.primary, **context.config.lowshot)


def _finetune(context: Context) -> FinetuneEvaluator:
    config, section = context.config, context.config.finetune
    return FinetuneEvaluator(
        context.dataset,
        context.accept,
        context.divide,
        context.path.with_name(f".{context.path.stem}.runs"),
        Plan(
            Grid(section.learning_rates, section.weight_decays, section.seeds, config.seed),
            primary=context.task.primary,
            refit=context.task.refit,
            keep_weights=section.keep_weights and not context.setting.text,
            settings=Settings(*(section[field.name] for field in dataclasses.fields(Settings))),
            augmentation=Augmentation(section.augment, tuple(section.crop_area), tuple(section.crop_ratio)),
            batch_size=config.batch_size,
            threads=config.threads,
            max_image_pixels=config.max_image_pixels,
        ),
        frozen_text=context.setting.frozen_text,
        cache=context.output / "features",
    )


PROTOCOLS: Mapping[str, Callable[[Context], Evaluator]] = {
    "linear": _linear,
    "finetune": _finetune,
    "knn": _knn,
    "lowshot": _lowshot,
}
