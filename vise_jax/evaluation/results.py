"""The results artifact: one JSON file per measurement, written atomically."""

import platform
import re
from pathlib import Path
from typing import Annotated, NotRequired, cast

import jax
from annotated_types import MinLen
from pydantic import FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

import vise_jax
from vise_jax import artifact
from vise_jax.errors import UserError

FORMAT_VERSION = 3
_MADE_BY = "evaluate.py"


class Summary(TypedDict):
    """A metric over the splits: mean, sample standard deviation (None for a single split), and the values.

    `interval` is the 95% bootstrap interval of the mean, over the test examples.
    """

    mean: FiniteFloat
    std: FiniteFloat | None
    values: list[FiniteFloat]
    interval: NotRequired[tuple[FiniteFloat, FiniteFloat]]


class SweepRow(TypedDict):
    """A setting that was tried.

    Attributes:
        settings: value by config key.
        validation: primary metric on validation, which selects.
        test: primary metric on test, for sensitivity; selects nothing.
        details: of the fit, e.g. `iterations` and `converged`.
    """

    settings: Annotated[dict[str, FiniteFloat], MinLen(1)]
    validation: FiniteFloat
    test: FiniteFloat
    details: dict[str, FiniteFloat | bool]


class SplitResult(TypedDict):
    """The result of one split.

    Attributes:
        seed: of the split.
        variant: suffix of the names of its metrics in the result, e.g. "_4shot".
        sizes: number of examples of train, validation and test.
        metrics: on test, by name.
        per_class_accuracy: of the classes on test; None for a class without an example.
        confusion: number of test examples by true (row) and predicted class (column).
        selected: the reported row of the sweep.
        sweep: all settings that were tried.
    """

    seed: int
    variant: str
    sizes: dict[str, int]
    metrics: dict[str, float]
    per_class_accuracy: list[float | None]
    confusion: list[list[int]]
    selected: SweepRow
    sweep: Annotated[list[SweepRow], MinLen(1)]


class Selection(TypedDict):
    """How the reported settings were selected.

    Attributes:
        split: the part of the data that they were selected on.
        metric: the metric that they were selected by.
        grid: values that were tried, by config key.
        selected: the selected settings of each split.
    """

    split: str
    metric: str
    grid: dict[str, list[float]]
    selected: list[dict[str, float]]


class EncoderId(TypedDict):
    """An encoder that was measured; `preprocessing` is what was used, and empty for an encoder of text."""

    name: str
    fingerprint: str
    modality: str
    architecture: dict[str, object]
    preprocessing: dict[str, object]
    feature_dim: int
    provenance: dict[str, object]
    license: str


class LeftOut(TypedDict):
    """Images that can't be decoded: how many, and the names of the first."""

    images: int
    names: list[str]


class LeakReport(TypedDict):
    """Images with a near-duplicate among training examples; None without a leak check.

    Attributes:
        images: number of such images.
        names: the first of them.
        left_out: whether they are left out of the measurement.
        compared: number of images that were compared.
        examples: number of training examples.
        shards: fingerprint of the shards.
        max_distance: largest number of differing bits.
    """

    images: int
    names: list[str]
    left_out: bool
    compared: int
    examples: int
    shards: str
    max_distance: int


class DataId(TypedDict):
    """The dataset; `images` examples were used, of which `truncated_texts` have more tokens than the text encoder."""

    name: str
    fingerprint: str
    images: int
    left_out: LeftOut
    truncated_texts: int
    leaks: LeakReport | None
    classes: list[str]
    official_splits: bool


class Result(TypedDict):
    """A measurement. `setting` names the modalities, see `vise_jax.evaluation.tasks.SETTINGS`.

    `write` adds `format_version`, `versions` and `device`; `read_all` adds `file`.
    """

    task: str
    protocol: str
    config: dict[str, object]
    primary: str
    metrics: dict[str, Summary]
    selection: Selection
    splits: Annotated[list[SplitResult], MinLen(1)]
    encoder: EncoderId
    text_encoder: EncoderId | None
    setting: str
    data: DataId
    seconds: float
    file: NotRequired[str]


_SCHEMA = TypeAdapter(Result)


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
    artifact.make_directory(path.parent)
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
    again = f"make it again with {_MADE_BY}, or take it out of the directory"
    artifact.check_schema(path, result, _SCHEMA, again)
    if result["primary"] not in result["metrics"]:
        raise UserError(f"{path} has no metric {result['primary']!r}, its primary one: {again}.")
    rows = [row for split in result["splits"] for row in (split["selected"], *split["sweep"])]
    if any(row["settings"].keys() != rows[0]["settings"].keys() for row in rows):
        raise UserError(f"{path} has other 'settings' in some rows of 'sweep' than in others: {again}.")
    return cast(Result, result)


def read_all(directory: Path) -> list[Result]:
    """Read all measurements of a directory, sorted by file name, each with its file's name under "file".

    Raises:
        UserError: no such directory, no measurement in it, or a JSON file that is none.
    """
    names = sorted(name for name in artifact.entries(directory) if name.endswith(".json") and name[0] != ".")
    if not names:
        raise UserError(f"{directory} holds no results: give the directory that {_MADE_BY} wrote to with --output.")
    return [{**read(directory / name), "file": name} for name in names]
