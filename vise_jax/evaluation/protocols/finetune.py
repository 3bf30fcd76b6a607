"""The fine-tuned protocol: encoders and head train end to end, over a grid of settings (Sec. 4.3)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vise_jax import artifact
from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.evaluation import outcomes
from vise_jax.evaluation.encoders import Encoders
from vise_jax.evaluation.finetune_runs import Plan, Runs
from vise_jax.evaluation.results import Selection
from vise_jax.evaluation.splits import Split
from vise_jax.inference import feature_cache
from vise_jax.training import finetune
from vise_jax.training.finetune import FineTuner


class FinetuneEvaluator:
    """Evaluate encoders by fine-tuning.

    For each split and seed, the setting and the epoch that are best on validation are reported on test.

    Args:
        dataset: the dataset.
        accept: from the images that can't be decoded, by name, to the dataset without them.
        divide: from the dataset to its splits.
        work: directory of unfinished runs, deleted after a measurement.
        plan: what is trained and how it is selected; weights are kept as encoders with a head `class`, of images alone.
        frozen_text: compute the features of texts beforehand.
        cache: directory of cached features.

    Attributes:
        outcomes: of the last run, one per split and seed.
        kept: encoders with the reported weights, by the number of the outcome; empty without `keep_weights`.
    """

    def __init__(
        self,
        dataset: Dataset,
        accept: Callable[[Mapping[str, str]], Dataset],
        divide: Callable[[Dataset], list[Split]],
        work: Path,
        plan: Plan,
        *,
        frozen_text: bool,
        cache: Path,
    ):
        self._dataset, self._accept, self._divide, self._work = dataset, accept, divide, work
        self._plan, self._frozen_text, self._cache = plan, frozen_text, cache
        self.kept: dict[int, Encoder] = {}
        self.outcomes: list[outcomes.Outcome] = []

    def run(self, state: Encoders) -> dict[str, float]:
        """Return the mean of each metric over splits and seeds."""
        dataset = self._dataset
        if state.image and state.preprocessing:
            rejected = feature_cache.undecodable(
                self._cache,
                dataset,
                state.preprocessing,
                threads=self._plan.threads,
                max_image_pixels=self._plan.max_image_pixels,
            )
            dataset = self._accept(rejected)
        splits = self._divide(dataset)
        artifact.make_directory(self._work)
        artifact.refuse_links(self._work)
        with artifact.lock(self._work / ".lock", f"Another process fine-tunes in {self._work}: wait for it."):
            columns, frozen_dim = self._columns(state, dataset)
            tuner = FineTuner(
                state.image,
                None if self._frozen_text else state.text,
                state.preprocessing,
                frozen_dim=frozen_dim,
                classes=len(dataset.classes),
                settings=self._plan.settings,
            )
            preprocessing = state.preprocessing if state.image else None
            runs = Runs(self._plan, tuner, dataset, columns, preprocessing, self._work)
            grid = self._plan.grid
            self.outcomes = []
            for split in splits:
                for seed in range(grid.seed, grid.seed + grid.seeds):
                    outcome, weights = runs.outcome(split, seed)
                    if weights and state.image and state.preprocessing:
                        # The weights are those for this preprocessing.
                        start = dataclasses.replace(state.image, preprocessing=state.preprocessing)
                        self.kept[len(self.outcomes)] = _encoder(start, weights, len(dataset.classes))
                    self.outcomes.append(outcome)
        return outcomes.means(self.outcomes, dataset)

    def selection(self) -> Selection:
        """Describe how the reported settings were selected."""
        return outcomes.selection(self.outcomes, self._plan.primary)

    def clear(self) -> None:
        """Delete the unfinished runs. Called after the result is written."""
        artifact.remove_tree(self._work)

    def _columns(self, state: Encoders, dataset: Dataset) -> tuple[dict[str, np.ndarray], int]:
        """Return the columns of all examples beside the images, and the number of frozen features."""
        columns: dict[str, np.ndarray] = {"labels": dataset.labels}
        if state.text and self._frozen_text:
            columns["frozen_features"] = state.text_features(dataset, self._cache, self._plan.batch_size)
            return columns, state.text.feature_dim
        if state.text and dataset.texts:
            tokenizer = state.text.at(state.max_tokens)
            # One length, so that the program is compiled once.
            columns["tokens"], columns["mask"] = tokenizer.pad(tokenizer.encode(dataset.texts))
        return columns, 0


def _encoder(start: Encoder, weights: finetune.Weights, classes: int) -> Encoder:
    """Return an encoder with the weights of a classifier, and its head as the head `class`."""
    parts = {"image/": "encoder/", "head/": "heads/class/"}
    renamed = {
        name.replace(ours, theirs, 1): jnp.asarray(value)
        for name, value in weights.items()
        for ours, theirs in parts.items()
        if name.startswith(ours)
    }
    return dataclasses.replace(start, architecture={**start.architecture, "heads": {"class": classes}}, weights=renamed)
