"""One measurement: an encoder, a task and a protocol give a result."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax import config as vise_config
from vise_jax.data import images as data_images
from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.evaluation import results
from vise_jax.evaluation.protocols.linear import LinearEvaluator
from vise_jax.evaluation.results import EncoderId, Result, Summary
from vise_jax.evaluation.splits import SplitSettings
from vise_jax.evaluation.tasks import TASKS, Task
from vise_jax.inference import extract
from vise_jax.preprocessing import Preprocessing

log = logging.getLogger(__name__)

# Keys that don't change what is measured: they set the speed, or say where files are.
_FREE_KEYS = ("batch_size", "threads", "link_roots", "max_corrupt_fraction")
# Keys that are not published.
_PRIVATE_KEYS = ("link_roots",)
# Number of images that can't be decoded and are listed by name.
_MAX_NAMED = 10


def measure(config: ConfigDict, source: str, data: Path, output: Path, name: str = "") -> tuple[Result, Path]:
    """Measure an encoder and write the result, or read the result of the same measurement.

    Args:
        config: as `vise_jax.config.evaluation()`.
        source: an encoder's directory, `random:NAME` or `random:DIRECTORY`.
        data: the dataset, see `vise_jax.data.datasets.open_labeled`.
        output: directory of results; features are cached in its subdirectory `features`.
        name: of the encoder in tables; "" = derived from `source`.

    Returns:
        The result, see `results.read`, and the path of its file.

    Raises:
        UserError: an invalid config, an unknown task or protocol, an invalid encoder or dataset, or too many images
            that can't be decoded.
    """
    vise_config.validate(config)
    _check_choice("task", config.task, TASKS)
    _check_choice("protocol", config.protocol, PROTOCOLS)
    task = TASKS[config.task]
    dataset = task.open(data, config.link_roots)
    encoder = extract.open_encoder(source, config.seed)
    name = name or name_of(source)
    preprocessing = encoder.preprocessing.at(config.image_size)
    start = time.monotonic()

    settings = {key: value for key, value in vise_config.flat(config).items() if key not in _FREE_KEYS}
    fingerprint = artifact.fingerprint([results.FORMAT_VERSION, settings, encoder.fingerprint, dataset.fingerprint])
    path = results.path_of(output, config.task, config.protocol, name, dataset.title, fingerprint)
    if path.is_file():
        earlier = results.read(path)
        if earlier["data"]["left_out"]["images"] <= config.max_corrupt_fraction * len(dataset):
            log.info(f"already measured: {path}")
            return earlier, path
    # A dataset that can't be divided is an error before features are computed.
    task.split(dataset, SplitSettings.of(config))

    left_out: dict[str, str] = {}

    def features_of(encoder: Encoder) -> tuple[np.ndarray, Dataset]:
        features, indices, rejected = extract.cached(
            output / "features",
            encoder,
            dataset,
            preprocessing,
            batch_size=config.batch_size,
            threads=config.threads,
            max_image_pixels=config.max_image_pixels,
        )
        _check_rejected(dataset, rejected, config.max_corrupt_fraction)
        left_out.update(rejected)
        return features, dataset.subset(indices) if rejected else dataset

    evaluator = PROTOCOLS[config.protocol](config, task, features_of)
    means = evaluator.run(encoder)
    result: Result = {
        "task": config.task,
        "protocol": config.protocol,
        "primary": task.primary,
        "metrics": {name: _summary([split["metrics"][name] for split in evaluator.splits]) for name in means},
        "selection": evaluator.selection(),
        "splits": evaluator.splits,
        "encoder": _describe_encoder(name, encoder, preprocessing),
        "data": {
            "name": dataset.title,
            "fingerprint": dataset.fingerprint,
            "images": len(dataset) - len(left_out),
            "left_out": {"images": len(left_out), "names": sorted(left_out)[:_MAX_NAMED]},
            "classes": list(dataset.classes),
            "official_splits": dataset.splits is not None,
        },
        "config": {key: value for key, value in vise_config.flat(config).items() if key not in _PRIVATE_KEYS},
        "seconds": round(time.monotonic() - start, 1),
    }
    results.write(path, result)
    return results.read(path), path


def name_of(source: str) -> str:
    """Return a name for tables: `random:resnet50` is its own; the encoder in `RUN/encoder` is called RUN."""
    if source.startswith("random:"):
        rest = source.removeprefix("random:")
        return f"random:{name_of(rest)}" if Path(rest).is_dir() else source
    path = Path(source).resolve()
    return path.parent.name if path.name == "encoder" else path.name


def _linear(
    config: ConfigDict, task: Task, features_of: Callable[[Encoder], tuple[np.ndarray, Dataset]]
) -> LinearEvaluator:
    return LinearEvaluator(
        features_of,
        lambda dataset: task.split(dataset, SplitSettings.of(config)),
        primary=task.primary,
        l2=config.l2,
        iterations=config.iterations,
        tolerance=config.tolerance,
    )


# From the config, the task and a feature function to an evaluator of encoders.
PROTOCOLS = {"linear": _linear}


def _check_rejected(dataset: Dataset, rejected: Mapping[str, str], max_fraction: float) -> None:
    if len(rejected) > max_fraction * len(dataset):
        raise UserError(
            f"{data_images.describe_corrupt(dataset, rejected).removesuffix('.')}, or leave them out with a larger "
            f"--config.max_corrupt_fraction than {max_fraction:g} (the other features are kept)."
        )


def _summary(values: list[float]) -> Summary:
    """Return mean, sample standard deviation (None for a single value) and values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}


def _describe_encoder(name: str, encoder: Encoder, preprocessing: Preprocessing) -> EncoderId:
    return {
        "name": name,
        "fingerprint": encoder.fingerprint,
        "architecture": encoder.architecture,
        "preprocessing": preprocessing.to_json(),
        "feature_dim": encoder.feature_dim,
        "provenance": encoder.provenance,
        "license": encoder.license,
    }


def _check_choice(key: str, value: str, choices: Mapping[str, object]) -> None:
    if value not in choices:
        raise UserError(f"There is no {key} {value!r} to evaluate: this version has {', '.join(choices)}.")
