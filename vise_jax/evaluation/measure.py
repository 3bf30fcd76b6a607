"""One measurement: encoders, a task and a protocol give a result."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import vise_jax
from vise_jax import artifact
from vise_jax import config as vise_config
from vise_jax.data import images as data_images
from vise_jax.data import shards
from vise_jax.data.datasets import Dataset
from vise_jax.data.listing import Limits
from vise_jax.errors import UserError
from vise_jax.evaluation import heads, leak_check, outcomes, predictions, results
from vise_jax.evaluation.encoders import Encoders
from vise_jax.evaluation.evaluators import PROTOCOLS, Context
from vise_jax.evaluation.protocols.finetune import FinetuneEvaluator
from vise_jax.evaluation.results import LeakReport, Result
from vise_jax.evaluation.splits import SplitSettings
from vise_jax.evaluation.tasks import SETTINGS, TASKS, describe_counts

log = logging.getLogger(__name__)

# Keys that don't change what is measured: they set the speed, or say where files are.
_FREE_KEYS = (
    "batch_size",
    "threads",
    "link_roots",
    "max_archive_entries",
    "max_corrupt_fraction",
    "finetune.checkpoint_every",
)
# Keys that are not published.
_PRIVATE_KEYS = ("link_roots",)
# Number of images that can't be decoded and are listed by name.
_MAX_NAMED = 10


def measure(
    config: ConfigDict,
    source: str,
    data: Path,
    output: Path,
    name: str = "",
    text_source: str = "",
    leak_shards: Path | None = None,
) -> tuple[Result, Path]:
    """Measure encoders and write the result, or read the result of the same measurement.

    Test predictions are written to `NAME.predictions.npz` beside the result `NAME.json`, and the linear head of each
    split to `NAME.head-SEED.safetensors`. With `finetune.keep_weights`, the encoder of each outcome is written to
    `NAME.finetuned-NUMBER`.

    Args:
        config: as `vise_jax.config.evaluation()`.
        source: an image encoder's directory, `random:NAME` or `random:DIRECTORY`; "" in the setting "text".
        data: the dataset, see the task.
        output: directory of results; features are cached in its subdirectory `features`.
        name: of the encoder in tables; "" = derived from `source`.
        text_source: a text encoder's directory; "" in the setting "image".
        leak_shards: engagement shards to compare the images with, see `leak_check.find`; None = no comparison.

    Returns:
        The result, see `results.read`, and the path of its file.

    Raises:
        UserError: an invalid config, an unknown task, protocol or setting, an invalid encoder or dataset, or too many
            images that can't be decoded.
    """
    vise_config.validate(config, vise_config.evaluation)
    _check_choice("task", config.task, TASKS)
    _check_choice("protocol", config.protocol, PROTOCOLS)
    task = TASKS[config.task]
    setting_name = config.setting or task.setting.get(config.protocol, "image")
    _check_choice("setting", setting_name, SETTINGS)
    setting = SETTINGS[setting_name]
    if setting.frozen_text and config.protocol != "finetune":
        raise UserError(
            f"The setting {setting_name} is of the protocol finetune, not {config.protocol}: use image_text."
        )
    if config.leave_out_leaks and not leak_shards:
        raise UserError("leave_out_leaks needs shards to compare with: give --leak-check=SHARDS, or leave the key out.")
    limits = Limits(config.max_image_bytes, config.max_archive_entries)
    dataset = task.open(data, config.link_roots, limits)
    if setting.text:
        _check_texts(dataset)
    encoders = Encoders.open(source, text_source, setting, config.seed, config.image_size, config.max_tokens)
    name = name or name_of(source if setting.image else text_source)
    start = time.monotonic()

    chosen = {
        key: value
        for key, value in vise_config.flat(config).items()
        if "." not in key or key.startswith(f"{config.protocol}.")
    }
    settings = {key: value for key, value in chosen.items() if key not in _FREE_KEYS} | {"setting": setting_name}
    compared = shards.read_manifest(leak_shards)["fingerprint"] if leak_shards else None
    parts = [results.FORMAT_VERSION, settings, encoders.fingerprint, dataset.fingerprint, compared]
    fingerprint = artifact.fingerprint(parts)
    what = config.protocol if setting_name == "image" else f"{config.protocol}-{setting_name}"
    path = results.path_of(output, config.task, what, name, dataset.title, fingerprint)
    if artifact.is_file(path):
        earlier = results.read(path)
        if earlier["data"]["left_out"]["images"] <= config.max_corrupt_fraction * len(dataset):
            log.info(f"already measured: {path}")
            return earlier, path
    leaks = None
    if leak_shards:
        dataset, leaks = _check_leaks(config, dataset, leak_shards, str(compared))
    if counts := describe_counts(task, dataset) if task.examples else "":
        log.warning(counts)
    # A dataset that can't be divided is an error before features are computed.
    task.divide(dataset, SplitSettings.of(config))

    used, left_out = dataset, dict[str, str]()

    def accept(rejected: Mapping[str, str]) -> Dataset:
        """Return the dataset without images that can't be decoded."""
        nonlocal used
        _check_rejected(dataset, rejected, config.max_corrupt_fraction)
        left_out.update(rejected)
        used = dataset
        if rejected:
            used = dataset.subset(np.flatnonzero([name not in rejected for name in dataset.names]))
        return used

    evaluator = PROTOCOLS[config.protocol](Context(config, task, setting, dataset, accept, output, path))
    evaluator.run(encoders)
    summaries, described = {}, outcomes.describe(evaluator.outcomes, used)
    intervals = outcomes.intervals(evaluator.outcomes, used)
    for metric, summary in outcomes.summaries(described).items():
        summaries[metric] = summary | ({"interval": intervals[metric]} if metric in intervals else {})
    encoder_id, text_encoder_id = encoders.describe(name, name_of(text_source))
    result: Result = {
        "task": config.task,
        "protocol": config.protocol,
        "setting": setting_name,
        # Of several variants, the last one is reported first.
        "primary": f"{task.primary}{described[-1]['variant']}",
        "metrics": summaries,
        "selection": evaluator.selection(),
        "splits": described,
        "encoder": encoder_id,
        "text_encoder": text_encoder_id,
        "data": {
            "name": dataset.title,
            "fingerprint": dataset.fingerprint,
            "images": len(used),
            "left_out": {"images": len(left_out), "names": sorted(left_out)[:_MAX_NAMED]},
            "truncated_texts": encoders.count_truncated(used) if setting.text else 0,
            "leaks": leaks,
            "classes": list(dataset.classes),
            "official_splits": dataset.splits is not None,
        },
        "config": {key: value for key, value in chosen.items() if key not in _PRIVATE_KEYS},
        "seconds": round(time.monotonic() - start, 1),
    }
    artifact.make_directory(output)
    predictions.write(predictions.path_of(path), evaluator.outcomes, used)
    for outcome in evaluator.outcomes:
        if outcome.head:
            heads.write(heads.path_of(path, outcome.split.seed), outcome.head)
    if isinstance(evaluator, FinetuneEvaluator) and evaluator.kept:
        for number, encoder in evaluator.kept.items():
            directory = path.with_suffix(f".finetuned-{number}")
            artifact.remove_tree(directory)
            about = {"result": path.name, "of": encoders.fingerprint, "vise_jax": vise_jax.__version__}
            dataclasses.replace(encoder, provenance={"fine_tuned": about, "from": encoder.provenance}).save(directory)
    results.write(path, result)
    if isinstance(evaluator, FinetuneEvaluator):
        evaluator.clear()
    return results.read(path), path


def name_of(source: str) -> str:
    """Return a name for tables: `random:resnet50` is its own; the encoder in `RUN/encoder` is called RUN."""
    if source.startswith("random:"):
        rest = source.removeprefix("random:")
        return f"random:{name_of(rest)}" if artifact.location(rest).is_dir() else source
    path = artifact.location(source).resolve()
    return path.parent.name if path.name == "encoder" else path.name


def _check_leaks(config: ConfigDict, dataset: Dataset, directory: Path, fingerprint: str) -> tuple[Dataset, LeakReport]:
    """Return the dataset, without leaks if these are to be left out, and the report."""
    found = leak_check.find(
        dataset,
        directory,
        max_distance=config.leak_distance,
        threads=config.threads,
        max_image_pixels=config.max_image_pixels,
    )
    names = [dataset.names[index] for index in found.indices]
    report: LeakReport = {
        "images": len(names),
        "names": names[:_MAX_NAMED],
        "left_out": config.leave_out_leaks,
        "compared": found.compared,
        "examples": found.examples,
        "shards": fingerprint,
        "max_distance": config.leak_distance,
    }
    left_out = ", and left out" if config.leave_out_leaks and names else ""
    log.warning(
        f"{len(names):,} of {found.compared:,} images of {dataset.title} are near-duplicates of training examples"
        f"{left_out}{': ' + ', '.join(names[:_MAX_NAMED]) if names else ''}"
    )
    if config.leave_out_leaks and names:
        dataset = dataset.subset(np.setdiff1d(np.arange(len(dataset)), found.indices))
    return dataset, report


def _check_texts(dataset: Dataset) -> None:
    if dataset.texts is None:
        raise UserError(
            f"{dataset.title} has no texts: choose the setting image, or give a dataset with a column 'text'."
        )
    missing = [name for name, text in zip(dataset.names, dataset.texts, strict=True) if not text.strip()]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(dataset):,} examples of {dataset.title} have no text ({missing[0]} is the "
            "first): fill it in or drop them."
        )


def _check_rejected(dataset: Dataset, rejected: Mapping[str, str], max_fraction: float) -> None:
    if len(rejected) > max_fraction * len(dataset):
        raise UserError(
            f"{data_images.describe_corrupt(dataset, rejected).removesuffix('.')}, or leave them out with a larger "
            f"--config.max_corrupt_fraction than {max_fraction:g} (the other features are kept)."
        )


def _check_choice(key: str, value: str, choices: Mapping[str, object]) -> None:
    if value not in choices:
        raise UserError(f"There is no {key} {value!r} to evaluate: choose from {', '.join(choices)}.")
