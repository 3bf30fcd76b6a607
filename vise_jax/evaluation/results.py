"""Results: one JSON file per measurement, written atomically."""

import json
import math
import platform
import re
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import jax

import vise_jax
from vise_jax import artifact
from vise_jax.errors import UserError

FORMAT_VERSION = 2
_COMMAND = "python scripts/evaluate.py"


class Metric(TypedDict):
    """A metric over the splits.

    Attributes:
        mean: mean of `values`.
        std: sample standard deviation of `values`; None for a single value.
        values: one value per split.
    """

    mean: float
    std: float | None
    values: list[float]


class Selection(TypedDict):
    """How the reported setting was selected.

    Attributes:
        split: the part that it was selected on.
        metric: the metric that it was selected by; the highest value wins.
        setting: config key of the setting.
        grid: values that were tried.
        chosen: the selected value of each split.
    """

    split: str
    metric: str
    setting: str
    grid: list[float]
    chosen: list[float]


class SplitSizes(TypedDict):
    """Seed of a split and the number of examples in `train`, `validation` and `test`."""

    seed: int
    sizes: dict[str, int]


class EncoderId(TypedDict):
    """The encoder that was measured, see `vise_jax.encoder.Encoder`; `preprocessing` is what was used."""

    name: str
    fingerprint: str
    architecture: dict[str, object]
    preprocessing: dict[str, object]
    feature_dim: int
    provenance: dict[str, object]
    license: str


class DataId(TypedDict):
    """The dataset; `images` includes the `corrupt_images`, which are left out of the splits."""

    name: str
    fingerprint: str
    images: int
    corrupt_images: int
    classes: list[str]
    official_splits: bool


class Result(TypedDict):
    """A measurement. It holds no local paths and no host names.

    Attributes:
        task: a key of `tasks.TASKS`.
        protocol: a key of `measure.PROTOCOLS`.
        config: all config keys except `link_roots`.
        metrics: metrics by name.
        primary: name of the primary metric.
        selection: how the reported setting was selected.
        sweep: a row per split and setting that was tried.
        splits: sizes of the splits.
        encoder: the encoder.
        data: the dataset.
        seconds: wall time.
        file: name of the result's file; not in the file itself.
    """

    task: str
    protocol: str
    config: dict[str, object]
    metrics: dict[str, Metric]
    primary: str
    selection: Selection
    sweep: list[dict[str, float | int | bool]]
    splits: list[SplitSizes]
    encoder: EncoderId
    data: DataId
    seconds: float
    file: NotRequired[str]


_TYPES: dict[str, type] = {
    "task": str,
    "protocol": str,
    "metrics": dict,
    "primary": str,
    "selection": dict,
    "sweep": list,
    "splits": list,
    "encoder": dict,
    "data": dict,
}


def path_of(directory: Path, task: str, protocol: str, encoder: str, data: str, fingerprint: str) -> Path:
    """Return the path of a measurement's file. Equal measurements have equal paths.

    Args:
        directory: directory of the results.
        task: name of the task.
        protocol: name of the protocol.
        encoder: the encoder's name in tables.
        data: the dataset's title.
        fingerprint: SHA-256 (hex) of everything that decides the result.
    """
    words = [re.sub(r"[^\w.+-]+", "_", word).strip("._") for word in (task, protocol, encoder, data)]
    return directory / f"{'-'.join(word[:60] for word in words)}-{fingerprint[:8]}.json"


def write(path: Path, result: Result) -> None:
    """Write a measurement atomically, with the format version, the versions of the software and the device kind.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    versions = {"vise_jax": vise_jax.__version__, "jax": jax.__version__, "python": platform.python_version()}
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_json(
        path,
        {"format_version": FORMAT_VERSION, **result, "versions": versions, "device": jax.devices()[0].device_kind},
    )


def read(path: Path) -> Result:
    """Read a measurement.

    Raises:
        UserError: invalid JSON, another format version, or a missing or invalid field.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}): measure again with `{_COMMAND}`, or delete it."
        ) from error
    if not isinstance(result, dict):
        result = {}
    version = result.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, not {FORMAT_VERSION}: {_again(result)} and delete it.")
    for key, kind in _TYPES.items():
        if not isinstance(result.get(key), kind):
            raise UserError(f"{path} has no valid {key!r}: {_again(result)} and delete it.")
    for part in ("encoder", "data"):
        for key in ("name", "fingerprint"):
            if not isinstance(result[part].get(key), str):
                raise UserError(f"{path} has no valid {part} {key}: {_again(result)} and delete it.")
    if not all(map(_is_metric, result["metrics"].values())) or result["primary"] not in result["metrics"]:
        raise UserError(f"{path} has no valid metric {result['primary']!r}: {_again(result)} and delete it.")
    return cast(Result, result)


def read_all(directory: Path) -> list[Result]:
    """Read all measurements of a directory, sorted by file name.

    Raises:
        UserError: no such directory, no measurement in it, or a JSON file that is none.
    """
    paths = sorted(path for path in Path(directory).glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{directory} holds no results: give the directory that evaluate.py wrote to with --output.")
    return [{**read(path), "file": path.name} for path in paths]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _is_metric(value: object) -> bool:
    def is_number(number: object) -> bool:
        return isinstance(number, int | float) and math.isfinite(number)

    return (
        isinstance(value, dict)
        and is_number(value.get("mean"))
        and (value.get("std") is None or is_number(value["std"]))
        and isinstance(value.get("values"), list)
        and all(map(is_number, value["values"]))
    )


def _again(result: dict[str, object]) -> str:
    task, protocol = (
        result.get(key) if isinstance(result.get(key), str) else key.upper() for key in ("task", "protocol")
    )
    return f"measure again with `{_COMMAND} --config configs/eval.py:{task},{protocol}`"
