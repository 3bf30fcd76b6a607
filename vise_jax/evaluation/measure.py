"""One measurement: an encoder, a task, a protocol → a results file."""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax import config as vise_config
from vise_jax.data import datasets
from vise_jax.data.datasets import ImageSet
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.evaluation import results, splits
from vise_jax.evaluation.protocols import linear
from vise_jax.inference import extract
from vise_jax.preprocessing import Preprocessing
from vise_jax.progress import Progress

# Task → how its data are opened.
TASKS: dict[str, Callable[[Path], ImageSet]] = {"folder": datasets.open_folder}
# Keys that change how fast a measurement is, not what it finds.
_SPEED = ("batch_size", "threads")


def measure(config: ConfigDict, source: str, data: Path, output: Path, name: str = "") -> tuple[dict[str, Any], Path]:
    """Measure an encoder and write the result; what was measured before is read instead.

    Args:
        config: as `vise_jax.config.evaluation()`.
        source: an encoder's folder, `random:NAME` or `random:FOLDER`.
        data: the image set, see `vise_jax.data.downstream.open_folder`.
        output: folder of results; features are kept in its folder `features`.
        name: of the encoder in tables; empty = derived from `source`.

    Returns:
        the result, and the path of its file.

    Raises:
        UserError: a wrong config, a task or protocol that there is not, a wrong encoder or image set.
    """
    vise_config.validate(config)
    _check_choice("task", config.task, TASKS)
    _check_choice("protocol", config.protocol, PROTOCOLS)
    images = TASKS[config.task](data)
    encoder = extract.open_encoder(source, config.seed)
    name = name or name_of(source)
    settings = {key: value for key, value in vise_config.flat(config).items() if key not in _SPEED}
    fingerprint = artifact.fingerprint([settings, encoder.fingerprint, images.fingerprint])
    path = results.path_of(output, config.task, config.protocol, name, images.title, fingerprint)
    if path.is_file():
        print(f"already measured: {path}", file=sys.stderr)
        return results.read(path), path
    start = time.monotonic()
    measured = PROTOCOLS[config.protocol](config, encoder, images, output)
    tests = [split["test"] for split in measured]
    result = {
        "task": config.task,
        "protocol": config.protocol,
        "metric": "accuracy",
        "value": statistics.fmean(tests),
        # Of a sample; one split has none.
        "std": statistics.stdev(tests) if len(tests) > 1 else None,
        "majority": statistics.fmean(split["majority"] for split in measured),
        "splits": measured,
        "encoder": _describe_encoder(name, encoder, encoder.preprocessing.at(config.image_size)),
        "data": {
            "name": images.title,
            "fingerprint": images.fingerprint,
            "images": len(images),
            "classes": list(images.classes),
            "official_splits": images.splits is not None,
        },
        "config": vise_config.flat(config),
        "seconds": round(time.monotonic() - start, 1),
    }
    results.write(path, result)
    return results.read(path), path


def name_of(source: str) -> str:
    """A name for tables: `random:resnet50` is its own; the encoder in `RUN/encoder` is called RUN."""
    if source.startswith("random:"):
        rest = source.removeprefix("random:")
        return f"random:{name_of(rest)}" if Path(rest).is_dir() else source
    path = Path(source).resolve()
    return path.parent.name if path.name == "encoder" else path.name


def _linear(config: ConfigDict, encoder: Encoder, images: ImageSet, output: Path) -> list[dict[str, Any]]:
    made = splits.make(images, config)
    found = extract.cached(
        output / "features",
        encoder,
        images,
        encoder.preprocessing.at(config.image_size),
        batch_size=config.batch_size,
        threads=config.threads,
        max_image_pixels=config.max_image_pixels,
    )
    measured = []
    with Progress("linear classifiers", len(made) * len(config.l2), "fits") as progress:
        for split in made:
            result = linear.evaluate(
                found,
                images.labels,
                len(images.classes),
                split,
                l2=config.l2,
                iterations=config.iterations,
                tolerance=config.tolerance,
                after_each=progress.advance,
            )
            if not result["converged"]:
                progress.print(
                    f"split {split.seed}: L-BFGS has not converged in {result['iterations']} iterations"
                    f" (l2 {result['l2']:g}): --config.iterations allows more"
                )
            measured.append({**_describe_split(split, images), **result})
    return measured


# Protocol → what it measures for each split: a dict with at least "test" and "majority".
PROTOCOLS: dict[str, Callable[[ConfigDict, Encoder, ImageSet, Path], list[dict[str, Any]]]] = {"linear": _linear}


def _describe_split(split: splits.Split, images: ImageSet) -> dict[str, Any]:
    commonest = np.bincount(images.labels[split.train]).argmax()
    return {
        "seed": split.seed,
        "sizes": {part: len(getattr(split, part)) for part in ("train", "validation", "test")},
        # The accuracy of always answering the class that is commonest in train.
        "majority": float(np.mean(images.labels[split.test] == commonest)),
    }


def _describe_encoder(name: str, encoder: Encoder, preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "name": name,
        "fingerprint": encoder.fingerprint,
        "architecture": encoder.architecture,
        "preprocessing": preprocessing.to_json(),
        "feature_dim": encoder.feature_dim,
        "provenance": encoder.provenance,
        "license": encoder.license,
    }


def _check_choice(key: str, value: str, choices: dict[str, Any]) -> None:
    if value not in choices:
        raise UserError(f"There is no {key} {value!r} to evaluate: this version has {', '.join(choices)}.")
