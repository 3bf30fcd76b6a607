"""The runs of the fine-tuned protocol: every setting of a grid on a split, resumable."""

import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vise_jax import arrays, artifact
from vise_jax.data import augmented
from vise_jax.data import images as data_images
from vise_jax.data.augmented import Augmentation
from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation import metrics, outcomes
from vise_jax.evaluation.results import SweepRow
from vise_jax.evaluation.splits import Split
from vise_jax.preprocessing import Preprocessing
from vise_jax.training import finetune
from vise_jax.training.finetune import FineTuner, Settings
from vise_jax.training.mirror import mirrored
from vise_jax.training.task import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grid:
    """The settings that are tried; the config keys of the same names have the defaults.

    Attributes:
        learning_rates: peak learning rates per 256 examples.
        weight_decays: weight decays.
        seeds: number of seeds.
        seed: the first one.
    """

    learning_rates: Sequence[float]
    weight_decays: Sequence[float]
    seeds: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """Settings of all runs, and how the reported one is selected.

    Attributes:
        grid: the settings to try.
        primary: name of the metric that selects, one of `metrics.METRICS`.
        refit: train the selected setting once more, on train and validation together and to its last step.
        keep_weights: keep the reported weights.
        settings: of each run.
        augmentation: of training images.
        batch_size: of predictions.
        threads: see `augmented.batches`.
        max_image_pixels: see `augmented.batches`.
    """

    grid: Grid
    primary: str
    refit: bool
    keep_weights: bool
    settings: Settings
    augmentation: Augmentation
    batch_size: int
    threads: int
    max_image_pixels: int


class Runs:
    """The runs of a measurement.

    Args:
        plan: what is trained.
        tuner: trains a classifier.
        dataset: the examples.
        columns: of all examples beside the images, with `labels`.
        preprocessing: of the images; None without images.
        work: directory of the runs.
    """

    def __init__(
        self,
        plan: Plan,
        tuner: FineTuner,
        dataset: Dataset,
        columns: dict[str, np.ndarray],
        preprocessing: Preprocessing | None,
        work: Path,
    ):
        self._plan, self._tuner, self._dataset, self._columns = plan, tuner, dataset, columns
        self._preprocessing, self._work = preprocessing, work
        self._metric = metrics.METRICS[plan.primary]

    def outcome(self, split: Split, seed: int) -> tuple[outcomes.Outcome, finetune.Weights]:
        """Train every setting of the grid, or read what earlier commands trained, and report the best one.

        Returns:
            The outcome, and the reported weights; empty without `keep_weights`.
        """
        grid, work = self._plan.grid, self._work
        sweep: list[SweepRow] = []
        scores: list[np.ndarray] = []
        for rate, decay in itertools.product(grid.learning_rates, grid.weight_decays):
            name = self._name(split, seed, rate, decay)
            row, of_test = self._cell(work / name, split, seed, rate, decay)
            sweep.append(row)
            scores.append(of_test)
            log.info(f"{name}: {self._plan.primary} {row['validation']:.4f} on validation")
        selected = outcomes.best(sweep)
        reported = scores[selected]
        settings = sweep[selected]["settings"]
        name = self._name(split, seed, settings["learning_rate"], settings["weight_decay"])
        if self._plan.refit:
            name = f"split{split.seed}-seed{seed}-refit"
            both = Split(split.seed, np.union1d(split.train, split.validation), np.array([], np.int64), split.test)
            _, reported = self._cell(
                work / name,
                both,
                seed,
                settings["learning_rate"],
                settings["weight_decay"],
            )
        weights: finetune.Weights = {}
        if self._plan.keep_weights:
            again = f"delete it and {name}.npz beside it, and run the same command again"
            weights, _ = finetune.read_weights(work / f"{name}.safetensors", again)
        return outcomes.Outcome(split, reported, sweep, selected), weights

    def _name(self, split: Split, seed: int, rate: float, decay: float) -> str:
        return f"split{split.seed}-seed{seed}-rate{rate:g}-decay{decay:g}"

    def _cell(self, workdir: Path, split: Split, seed: int, rate: float, decay: float) -> tuple[SweepRow, np.ndarray]:
        """Return the row of the sweep, and the probabilities of the test examples, float32 [M, K]."""
        # Names have dots.
        path = workdir.with_name(f"{workdir.name}.npz")
        if artifact.is_file(path):
            with contextlib.suppress(ValueError):
                stored = arrays.read_npz(path, ["row", "scores"])
                return artifact.from_json(str(stored["row"])), stored["scores"]

        def on_validation(predict: Callable[[Batch], np.ndarray]) -> float:
            return self._metric(self._scores(predict, split.validation), self._dataset.labels[split.validation])

        def batches(first_step: int, local_rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            return augmented.batches(
                self._dataset,
                split.train,
                batch_size=self._plan.settings.batch_size,
                seed=seed,
                first_step=first_step,
                local_rows=local_rows,
                columns=self._with_ids,
                preprocessing=self._preprocessing,
                augmentation=self._plan.augmentation,
                threads=self._plan.threads,
                max_image_pixels=self._plan.max_image_pixels,
            )

        selects = len(split.validation) > 0
        with mirrored(workdir) as (local, mirror):
            weights = self._tuner.train(
                batches,
                len(split.train),
                local,
                learning_rate=rate,
                weight_decay=decay,
                seed=seed,
                measure=on_validation if selects else None,
                mirror=mirror,
            )
            details: dict[str, float] = {"best_step": finetune.best_step(local)} if selects else {}
        predict = self._tuner.predict(weights)
        scores = self._scores(predict, split.test)
        row: SweepRow = {
            "settings": {"learning_rate": rate, "weight_decay": decay},
            "validation": on_validation(predict) if selects else float("-inf"),
            "test": self._metric(scores, self._dataset.labels[split.test]),
            "details": details,
        }
        if self._plan.keep_weights:
            finetune.write_weights(workdir.with_name(f"{workdir.name}.safetensors"), weights)
        with artifact.atomic_file(path) as file:
            np.savez(file, row=json.dumps(row), scores=scores)
        artifact.remove_tree(workdir)
        return row, scores

    def _scores(self, predict: Callable[[Batch], np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [N, K]. The last batch is padded; each example counts once."""
        size = min(self._plan.batch_size, len(rows))
        images = self._images(rows)
        parts = []
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            filled = np.concatenate([chosen, np.repeat(chosen[:1], size - len(chosen))])
            batch = {name: column[filled] for name, column in self._columns.items() if name != "labels"}
            if images is not None:
                decoded = list(itertools.islice(images, len(chosen)))
                batch["images"] = np.stack(decoded + decoded[:1] * (size - len(chosen)))
            parts.append(predict(batch)[: len(chosen)])
        return np.concatenate(parts)

    def _images(self, rows: np.ndarray) -> Iterator[np.ndarray] | None:
        if self._preprocessing is None:
            return None

        decoded = data_images.decode_each(
            self._dataset, rows, self._preprocessing, self._plan.threads, self._plan.max_image_pixels
        )
        return map(_raised, decoded)

    def _with_ids(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        names = np.array([self._dataset.names[index].encode() for index in indices])
        return {name: column[indices] for name, column in self._columns.items()} | {"example_id": names}


def _raised(image: np.ndarray | UserError) -> np.ndarray:
    if isinstance(image, UserError):
        raise image
    return image
