"""One measurement: an encoder, a task and a protocol → a results file."""

import logging
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax import config as vise_config
from vise_jax.data import images as data_images
from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation import metrics, results, splits
from vise_jax.evaluation.protocols.linear import LinearEvaluator
from vise_jax.evaluation.results import Metric, Result
from vise_jax.evaluation.splits import Split, SplitSettings
from vise_jax.evaluation.tasks import TASKS
from vise_jax.inference import extract
from vise_jax.progress import Progress

_LOGGER = logging.getLogger(__name__)
# Keys that don't change what a measurement finds.
_FREE_KEYS = ("batch_size", "threads", "link_roots")
# Keys that are paths of this machine.
_PRIVATE_KEYS = ("link_roots",)


class Evaluator(Protocol):
    """Measures a state, as `vise_jax.training.task.Evaluator` does. The state is the features of all examples.

    Attributes:
        sweep: after `run`, a row per setting that was tried, with its validation metrics.
    """

    sweep: list[dict[str, float]]

    @property
    def chosen(self) -> dict[str, float]:
        """The row of the selected setting."""

    def run(self, state: np.ndarray) -> dict[str, float]:
        """Return metrics by name of features, float32 [N, D]."""


def _linear(dataset: Dataset, split: Split, config: ConfigDict, after_each: Callable[[], None]) -> Evaluator:
    return LinearEvaluator(
        dataset.labels,
        len(dataset.classes),
        split,
        l2=config.l2,
        iterations=config.iterations,
        tolerance=config.tolerance,
        after_each=after_each,
    )


class EvaluationProtocol(NamedTuple):
    """How a task is solved on top of features.

    Attributes:
        evaluator: from a dataset, a split, the config and a function to call after each fit to the evaluator of the
            split.
        setting: config key of the grid that the evaluator searches, and the name of the setting in its `sweep`.
        selected_by: the validation metric that selects the setting.
    """

    evaluator: Callable[[Dataset, Split, ConfigDict, Callable[[], None]], Evaluator]
    setting: str
    selected_by: str


PROTOCOLS: dict[str, EvaluationProtocol] = {"linear": EvaluationProtocol(_linear, "l2", "accuracy")}


def measure(config: ConfigDict, source: str, data: Path, output: Path, name: str = "") -> tuple[Result, Path]:
    """Measure an encoder and write the result, or read the result of an earlier, equal measurement.

    Args:
        config: as `vise_jax.config.evaluation()`.
        source: directory of an encoder, `random:NAME` or `random:DIRECTORY`.
        data: the dataset, see the task's `open`.
        output: directory of results. Features are kept in its directory `features`.
        name: the encoder's name in tables; empty = derived from `source`.

    Returns:
        The result, and the path of its file.

    Raises:
        UserError: a wrong config, an unknown task or protocol, a wrong encoder or dataset, or too many corrupt images.
    """
    vise_config.validate(config)
    _check_choice("task", config.task, TASKS)
    _check_choice("protocol", config.protocol, PROTOCOLS)
    task, protocol = TASKS[config.task], PROTOCOLS[config.protocol]
    dataset = task.open(data, config.link_roots)
    encoder = extract.open_encoder(source, config.seed)
    name = name or name_of(source)
    settings = {key: value for key, value in vise_config.flat(config).items() if key not in _FREE_KEYS}
    fingerprint = artifact.fingerprint([results.FORMAT_VERSION, settings, encoder.fingerprint, dataset.fingerprint])
    path = results.path_of(output, config.task, config.protocol, name, dataset.title, fingerprint)
    if path.is_file():
        _LOGGER.info("already measured: %s", path)
        return results.read(path), path
    start = time.monotonic()
    # A dataset that can't be split is an error before features are computed.
    divisions = task.split(dataset, SplitSettings.of(config))
    preprocessing = extract.preprocessing_at(encoder.preprocessing, config.image_size)
    features, corrupt = extract.cached(
        output / "features",
        encoder,
        dataset,
        preprocessing,
        batch_size=config.batch_size,
        threads=config.threads,
        max_image_pixels=config.max_image_pixels,
    )
    divisions = _without_corrupt(dataset, divisions, corrupt, config.max_corrupt_fraction)
    values, evaluators = _evaluate(protocol, config, dataset, divisions, features)
    result: Result = {
        "task": config.task,
        "protocol": config.protocol,
        "config": {key: value for key, value in vise_config.flat(config).items() if key not in _PRIVATE_KEYS},
        "metrics": {metric: _summarize([row[metric] for row in values]) for metric in values[0]},
        "primary": task.metric,
        "selection": {
            "split": "validation",
            "metric": protocol.selected_by,
            "setting": protocol.setting,
            "grid": list(config[protocol.setting]),
            "chosen": [evaluator.chosen[protocol.setting] for evaluator in evaluators],
        },
        "sweep": [
            {"seed": split.seed, **row}
            for split, evaluator in zip(divisions, evaluators, strict=True)
            for row in evaluator.sweep
        ],
        "splits": [{"seed": split.seed, "sizes": split.sizes()} for split in divisions],
        "encoder": {
            "name": name,
            "fingerprint": encoder.fingerprint,
            "architecture": encoder.architecture,
            "preprocessing": preprocessing,
            "feature_dim": encoder.feature_dim,
            "provenance": encoder.provenance,
            "license": encoder.license,
        },
        "data": {
            "name": dataset.title,
            "fingerprint": dataset.fingerprint,
            "images": len(dataset),
            "corrupt_images": len(corrupt),
            "classes": list(dataset.classes),
            "official_splits": dataset.splits is not None,
        },
        "seconds": round(time.monotonic() - start, 1),
    }
    results.write(path, result)
    return results.read(path), path


def name_of(source: str) -> str:
    """Return an encoder's name for tables.

    The encoder in `RUN/encoder` is called RUN, another one like its directory; `random:resnet50` is its own name.
    """
    if source.startswith("random:"):
        rest = source.removeprefix("random:")
        return f"random:{name_of(rest)}" if Path(rest).is_dir() else source
    path = Path(source).resolve()
    return path.parent.name if path.name == "encoder" else path.name


def _evaluate(
    protocol: EvaluationProtocol, config: ConfigDict, dataset: Dataset, divisions: Sequence[Split], features: np.ndarray
) -> tuple[list[dict[str, float]], list[Evaluator]]:
    """Run the protocol on each split; return the metrics by name, and the evaluators."""
    values, evaluators = [], []
    with Progress(config.protocol, len(divisions) * len(config[protocol.setting]), "fits") as progress:
        for split in divisions:
            evaluator = protocol.evaluator(dataset, split, config, progress.advance)
            values.append(evaluator.run(features) | {"majority_accuracy": _majority_accuracy(dataset, split)})
            evaluators.append(evaluator)
            if not evaluator.chosen.get("converged", True):
                _LOGGER.warning(
                    "split %d: not converged after %d iterations (%s %g): --config.iterations allows more",
                    split.seed,
                    evaluator.chosen["iterations"],
                    protocol.setting,
                    evaluator.chosen[protocol.setting],
                )
    return values, evaluators


def _majority_accuracy(dataset: Dataset, split: Split) -> float:
    """Return the test accuracy of always predicting the majority class of train."""
    majority = np.bincount(dataset.labels[split.train]).argmax()
    labels = dataset.labels[split.test]
    return metrics.accuracy(np.full_like(labels, majority), labels)


def _without_corrupt(
    dataset: Dataset, divisions: list[Split], corrupt: Mapping[str, str], max_corrupt_fraction: float
) -> list[Split]:
    if not corrupt:
        return divisions
    if len(corrupt) > max_corrupt_fraction * len(dataset):
        raise UserError(
            f"{data_images.describe_corrupt(dataset, corrupt).removesuffix('.')}, or leave them out with a larger "
            f"--config.max_corrupt_fraction than {max_corrupt_fraction:g} (the other features are kept)."
        )
    _LOGGER.warning("%s They are left out.", data_images.describe_corrupt(dataset, corrupt))
    indices = np.flatnonzero([name in corrupt for name in dataset.names])
    divisions = [split.without(indices) for split in divisions]
    for split in divisions:
        splits.check(dataset, split)
    return divisions


def _summarize(values: list[float]) -> Metric:
    return {
        "mean": statistics.fmean(values),
        # The standard deviation of a sample; a single value has none.
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def _check_choice(key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(f"There is no {key} {value!r} to evaluate: this version has {', '.join(choices)}.")
