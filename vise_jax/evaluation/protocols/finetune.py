"""The fine-tuned protocol: encoders and head train end to end, over a grid of settings (Sec. 4.3)."""

import contextlib
import dataclasses
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vise_jax import artifact
from vise_jax.data import augmented
from vise_jax.data import images as data_images
from vise_jax.data.augmented import Augmentation
from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.evaluation import metrics, outcomes
from vise_jax.evaluation.encoders import Encoders
from vise_jax.evaluation.results import Selection, SweepRow
from vise_jax.evaluation.splits import Split
from vise_jax.inference import extract
from vise_jax.training import finetune
from vise_jax.training.finetune import FineTuner, Settings
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


class FinetuneEvaluator:
    """Evaluate encoders by fine-tuning.

    For each split and seed, the setting and the epoch that are best on validation are reported on test. With `refit`,
    the selected setting is trained once more, on train and validation together and to its last step.

    Args:
        dataset: the dataset.
        accept: from the images that can't be decoded, by name, to the dataset without them.
        divide: from the dataset to its splits.
        work: directory of unfinished runs, deleted after a measurement.
        primary: name of the metric that selects, one of `metrics.METRICS`.
        refit: see above.
        frozen_text: compute the features of texts beforehand.
        keep_weights: keep the reported weights as encoders with a head `class`; needs images alone.
        grid: the settings to try.
        settings: of each run.
        augmentation: of training images.
        cache: directory of cached features.
        batch_size: of predictions.
        threads: see `augmented.batches`.
        max_image_pixels: see `augmented.batches`.

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
        *,
        primary: str,
        refit: bool,
        frozen_text: bool,
        keep_weights: bool,
        grid: Grid,
        settings: Settings,
        augmentation: Augmentation,
        cache: Path,
        batch_size: int,
        threads: int,
        max_image_pixels: int,
    ):
        self._dataset, self._accept, self._divide, self._work = dataset, accept, divide, work
        self._primary, self._refit, self._frozen_text, self._grid = primary, refit, frozen_text, grid
        self.keep_weights, self.kept = keep_weights, dict[int, Encoder]()
        self._settings, self._augmentation, self._cache = settings, augmentation, cache
        self._batch_size, self._threads, self._max_image_pixels = batch_size, threads, max_image_pixels
        self.outcomes: list[outcomes.Outcome] = []

    def run(self, state: Encoders) -> dict[str, float]:
        """Return the mean of each metric over splits and seeds."""
        dataset = self._dataset
        if state.image and state.preprocessing:
            rejected = extract.undecodable(
                self._cache,
                dataset,
                state.preprocessing,
                threads=self._threads,
                max_image_pixels=self._max_image_pixels,
            )
            dataset = self._accept(rejected)
        splits = self._divide(dataset)
        self._work.mkdir(parents=True, exist_ok=True)
        with artifact.lock(self._work / ".lock", f"Another process fine-tunes in {self._work}: wait for it."):
            columns, frozen_dim = self._columns(state, dataset)
            tuner = FineTuner(
                state.image,
                None if self._frozen_text else state.text,
                state.preprocessing,
                frozen_dim=frozen_dim,
                classes=len(dataset.classes),
                settings=self._settings,
            )
            runs = _Runs(self, tuner, state, dataset, columns)
            self.outcomes = []
            for split in splits:
                for seed in range(self._grid.seed, self._grid.seed + self._grid.seeds):
                    outcome, weights = runs.outcome(split, seed)
                    if weights and state.image:
                        self.kept[len(self.outcomes)] = _encoder(state.image, weights, len(dataset.classes))
                    self.outcomes.append(outcome)
        return outcomes.means(self.outcomes, dataset)

    def selection(self) -> Selection:
        """Describe how the reported settings were selected."""
        return outcomes.selection(self.outcomes, self._primary)

    def clear(self) -> None:
        """Delete the unfinished runs. Called after the result is written."""
        shutil.rmtree(self._work, ignore_errors=True)

    def _columns(self, state: Encoders, dataset: Dataset) -> tuple[dict[str, np.ndarray], int]:
        """Return the columns of all examples beside the images, and the number of frozen features."""
        columns: dict[str, np.ndarray] = {"labels": dataset.labels}
        if state.text and self._frozen_text:
            columns["frozen_features"] = state.text_features(dataset, self._cache, self._batch_size)
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


class _Runs:
    """The runs of a measurement."""

    def __init__(
        self,
        evaluator: FinetuneEvaluator,
        tuner: FineTuner,
        encoders: Encoders,
        dataset: Dataset,
        columns: dict[str, np.ndarray],
    ):
        self._of, self._tuner, self._dataset, self._columns = evaluator, tuner, dataset, columns
        self._preprocessing = encoders.preprocessing if encoders.image else None
        self._metric = metrics.METRICS[evaluator._primary]

    def outcome(self, split: Split, seed: int) -> tuple[outcomes.Outcome, finetune.Weights]:
        """Train every setting of the grid, or read what earlier commands trained, and report the best one.

        Returns:
            The outcome, and the reported weights; empty without `keep_weights`.
        """
        grid, work = self._of._grid, self._of._work
        sweep: list[SweepRow] = []
        scores: list[np.ndarray] = []
        for rate, decay in itertools.product(grid.learning_rates, grid.weight_decays):
            name = self._name(split, seed, rate, decay)
            row, of_test = self._cell(work / name, split, seed, rate, decay)
            sweep.append(row)
            scores.append(of_test)
            log.info(f"{name}: {self._of._primary} {row['validation']:.4f} on validation")
        selected = outcomes.best(sweep)
        reported = scores[selected]
        settings = sweep[selected]["settings"]
        name = self._name(split, seed, settings["learning_rate"], settings["weight_decay"])
        if self._of._refit:
            name = f"split{split.seed}-seed{seed}-refit"
            both = Split(split.seed, np.union1d(split.train, split.validation), np.array([], np.int64), split.test)
            _, reported = self._cell(
                work / name,
                both,
                seed,
                settings["learning_rate"],
                settings["weight_decay"],
            )
        weights = finetune.read_weights(work / f"{name}.safetensors") if self._of.keep_weights else {}
        return outcomes.Outcome(split, reported, sweep, selected), weights

    def _name(self, split: Split, seed: int, rate: float, decay: float) -> str:
        return f"split{split.seed}-seed{seed}-rate{rate:g}-decay{decay:g}"

    def _cell(self, workdir: Path, split: Split, seed: int, rate: float, decay: float) -> tuple[SweepRow, np.ndarray]:
        """Return the row of the sweep, and the probabilities of the test examples, float32 [M, K]."""
        # Names have dots.
        path = workdir.with_name(f"{workdir.name}.npz")
        if path.is_file():
            with contextlib.suppress(*data_images.DAMAGE, KeyError, EOFError), np.load(path) as arrays:
                return json.loads(str(arrays["row"])), arrays["scores"]

        def on_validation(predict: Callable[[Batch], np.ndarray]) -> float:
            return self._metric(self._scores(predict, split.validation), self._dataset.labels[split.validation])

        def batches(first_step: int, local_rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            return augmented.batches(
                self._dataset,
                split.train,
                batch_size=self._of._settings.batch_size,
                seed=seed,
                first_step=first_step,
                local_rows=local_rows,
                columns=self._with_ids,
                preprocessing=self._preprocessing,
                augmentation=self._of._augmentation,
                threads=self._of._threads,
                max_image_pixels=self._of._max_image_pixels,
            )

        selects = len(split.validation) > 0
        weights = self._tuner.train(
            batches,
            len(split.train),
            workdir,
            learning_rate=rate,
            weight_decay=decay,
            seed=seed,
            measure=on_validation if selects else None,
        )
        predict = self._tuner.predict(weights)
        scores = self._scores(predict, split.test)
        row: SweepRow = {
            "settings": {"learning_rate": rate, "weight_decay": decay},
            "validation": on_validation(predict) if selects else float("-inf"),
            "test": self._metric(scores, self._dataset.labels[split.test]),
            "details": {"best_step": finetune.best_step(workdir)} if selects else {},
        }
        if self._of.keep_weights:
            finetune.write_weights(workdir.with_name(f"{workdir.name}.safetensors"), weights)
        with artifact.atomic_file(path) as file:
            np.savez(file, row=json.dumps(row), scores=scores)
        shutil.rmtree(workdir)
        return row, scores

    def _scores(self, predict: Callable[[Batch], np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 [N, K]. The last batch is padded; each example counts once."""
        size = min(self._of._batch_size, len(rows))
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

        def decoded(preprocessing: data_images.Preprocessing) -> Iterator[np.ndarray]:
            for image in data_images.decode_each(
                self._dataset, rows, preprocessing, self._of._threads, self._of._max_image_pixels
            ):
                if isinstance(image, UserError):
                    raise image
                yield image

        return decoded(self._preprocessing)

    def _with_ids(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        names = np.array([self._dataset.names[index].encode() for index in indices])
        return {name: column[indices] for name, column in self._columns.items()} | {"example_id": names}
