"""The results artifact: one JSON file per measurement, written atomically."""

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
_MADE_BY = "evaluate.py"


class Summary(TypedDict):
    """A metric over the splits: mean, sample standard deviation (None for a single split), and the values."""

    mean: float
    std: float | None
    values: list[float]


class SweepRow(TypedDict):
    """A penalty that was tried, with its metric on validation."""

    l2: float
    validation: float
    iterations: int
    converged: bool


class Fit(SweepRow):
    """The selected penalty, and all that were tried."""

    sweep: list[SweepRow]


class SplitResult(Fit):
    """The result of one split: sizes of train, validation and test, and metrics on test by name."""

    seed: int
    sizes: dict[str, int]
    metrics: dict[str, float]


class Selection(TypedDict):
    """How the reported setting was selected.

    Attributes:
        key: config key of the grid.
        split: the part of the data that it was selected on.
        metric: the metric that it was selected by.
        grid: values that were tried.
        selected: the selected value of each split.
    """

    key: str
    split: str
    metric: str
    grid: list[float]
    selected: list[float]


class EncoderId(TypedDict):
    """The encoder that was measured; `preprocessing` is what was used."""

    name: str
    fingerprint: str
    architecture: dict[str, object]
    preprocessing: dict[str, object]
    feature_dim: int
    provenance: dict[str, object]
    license: str


class LeftOut(TypedDict):
    """Images that can't be decoded: how many, and the names of the first."""

    images: int
    names: list[str]


class DataId(TypedDict):
    """The dataset; `images` were used."""

    name: str
    fingerprint: str
    images: int
    left_out: LeftOut
    classes: list[str]
    official_splits: bool


class Result(TypedDict):
    """A measurement. `write` adds `format_version`, `versions` and `device`; `read_all` adds `file`."""

    task: str
    protocol: str
    config: dict[str, object]
    primary: str
    metrics: dict[str, Summary]
    selection: Selection
    splits: list[SplitResult]
    encoder: EncoderId
    data: DataId
    seconds: float
    file: NotRequired[str]


_KINDS: dict[str, type] = {
    "task": str,
    "protocol": str,
    "primary": str,
    "metrics": dict,
    "selection": dict,
    "splits": list,
    "encoder": dict,
    "data": dict,
}


def path_of(directory: Path, task: str, protocol: str, encoder: str, data: str, fingerprint: str) -> Path:
    """Return the path of a measurement. The same measurement has the same name, which tells what was measured."""
    words = [re.sub(r"[^\w.+-]+", "_", word).strip("._") for word in (task, protocol, encoder, data)]
    return directory / f"{'-'.join(word[:60] for word in words)}-{fingerprint[:8]}.json"


def write(path: Path, result: Result) -> None:
    """Write a measurement atomically, with the versions of the software.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    versions = {"vise_jax": vise_jax.__version__, "jax": jax.__version__, "python": platform.python_version()}
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_json(
        path,
        {
            "format_version": FORMAT_VERSION,
            **result,
            "versions": versions,
            "device": jax.devices()[0].device_kind,
        },
    )


def read(path: Path) -> Result:
    """Read a measurement.

    Returns:
        `task`, `protocol`, `config`; `metrics`, for each name its `mean` and `std` over the splits (None for one split)
        and the `values`; `primary`, the metric to report first; `selection`, how the reported setting was selected;
        `splits`, sizes and sweep of each; `encoder`, `data`, `versions`, `device`, `seconds`.

    Raises:
        UserError: not JSON, another format version, or no measurement.
    """
    result = artifact.read_description(path.parent, path.name, version=FORMAT_VERSION, made_by=_MADE_BY)
    for key, kind in _KINDS.items():
        if not isinstance(result.get(key), kind):
            raise UserError(
                f"{path} has no valid {key!r}: make it again with {_MADE_BY}, or take it out of the directory."
            )
    for part in ("encoder", "data"):
        for key in ("name", "fingerprint"):
            if not isinstance(result[part].get(key), str):
                raise UserError(f"{path} has no {part} {key}: make it again with {_MADE_BY}, or take it away.")
    for name in {result["primary"], *result["metrics"]}:
        summary = result["metrics"].get(name)
        if not _is_summary(summary):
            raise UserError(
                f"{path} has no valid metric {name!r}: make it again with {_MADE_BY}, or take it out of the directory."
            )
    return cast(Result, result)


def _is_summary(value: object) -> bool:
    def is_number(number: object) -> bool:
        # Python's JSON parser accepts NaN.
        return isinstance(number, int | float) and math.isfinite(number)

    if not isinstance(value, dict) or not isinstance(value.get("values"), list):
        return False
    numbers = [value.get("mean"), *value["values"]] + ([] if value.get("std") is None else [value["std"]])
    return all(map(is_number, numbers))


def read_all(directory: Path) -> list[Result]:
    """Read all measurements of a directory, sorted by file name, each with its file's name under "file".

    Raises:
        UserError: no such directory, no measurement in it, or a JSON file that is none.
    """
    paths = sorted(path for path in Path(directory).glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{directory} holds no results: give the directory that {_MADE_BY} wrote to with --output.")
    return [{**read(path), "file": path.name} for path in paths]
