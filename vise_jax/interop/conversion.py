"""Convert published checkpoints to encoders, strictly: no missing and no unexpected weights."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import vise_jax
from vise_jax import models, variables
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.interop import containers
from vise_jax.interop.containers import shortened
from vise_jax.interop.export import EXPORTS, FORMAT_VERSION, OURS
from vise_jax.interop.layouts import Layout, axes, prefixed, torch_name
from vise_jax.interop.sources import SOURCES, Source
from vise_jax.preprocessing import Preprocessing

MAX_BYTES = 4 * 2**30
# Sources of text encoders, see `vise_jax.interop.text`.
TEXT_NAMES = ("roberta", "bert")


def convert(
    path: str | Path,
    source: str,
    arch: str | None = None,
    *,
    sha256: str | None = None,
    max_bytes: int = MAX_BYTES,
    prefix: str = "",
    ema: bool | None = None,
    **settings: Any,
) -> Encoder:
    """Convert a published checkpoint to an encoder.

    Args:
        path: the file, see `vise_jax.interop.containers.read`.
        source: a name of `SOURCES`, or "vise_jax" for a file that `export` wrote.
        arch: one of the source's architectures; None = its first.
        sha256: expected SHA-256 (hex) of the file, checked before it is opened.
        max_bytes: largest size of the file and of its unpacked content.
        prefix: prefix of the encoder's keys, e.g. "module."; keys without it are ignored.
        ema: see `containers.read`.
        **settings: further arguments of `vise_jax.models.build`, e.g. `width`.

    Raises:
        UserError: no such source or architecture; a file that `containers.read` refuses; or weights that don't match
            the architecture. The message lists up to ten keys that are missing, unexpected, of another shape or type,
            or not finite.
    """
    path = Path(path)
    if source == OURS and (prefix or ema is not None):
        raise UserError("Files that convert.py exported have no prefix and no moving average: leave these flags out.")
    if source == OURS:
        return _convert_ours(path, arch, sha256=sha256, max_bytes=max_bytes)
    row, name = _row(source, arch)
    digest = _check(path, row, sha256, max_bytes)
    tensors = containers.read(path, max_bytes=max_bytes, ema=ema)
    if prefix:
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    tensors, half = upcast(tensors)
    architecture = models.resolve(name, **settings)
    expected = variables.expected(architecture)
    layouts = row.layouts or _any_prefix(tensors)
    # The layout that matches most keys; the error lists those that it lacks.
    label = max(layouts, key=lambda one: sum(layouts[one](torch_name(key)) in tensors for key in expected))
    try:
        weights = fill(path, f"{source}'s {name}", expected, tensors, layouts[label], row.drop)
    except UserError as error:
        if not (wrapper := _wrapper(tensors, [torch_name(key) for key in expected], layouts)):
            raise
        raise UserError(f"{error} Its keys are below {wrapper!r}: add --prefix={wrapper}") from error

    usual = row.preprocessing.resize
    resize = next((value for beginning, value in row.resize.items() if digest.startswith(beginning)), usual)
    return Encoder(
        architecture,
        weights,
        dataclasses.replace(row.preprocessing, resize=resize),
        {
            "converted": {
                "source": source,
                "file": path.name,
                "sha256": digest,
                **({"prefix": prefix} if prefix else {}),
                **({} if ema is None else {"ema": ema}),
                "published": any(digest.startswith(beginning) for beginning in row.published),
                "layout": label,
                "layout_verified": row.layout_verified,
                "where": row.where,
                "notes": [*row.notes, *half],
                "vise_jax": vise_jax.__version__,
            }
        },
        row.license,
    )


def architecture_of(source: str, arch: str | None) -> str:
    """Return the name for `models.build` of one of a source's architectures; None = its first."""
    return _row(source, arch)[1]


def _row(source: str, arch: str | None) -> tuple[Source, str]:
    """Return a source, and the name for `models.build` of one of its architectures."""
    if source not in SOURCES:
        raise UserError(f"There is no source {source!r}: choose one of {', '.join([*SOURCES, *TEXT_NAMES, OURS])}.")
    names = SOURCES[source].architectures
    arch = arch or next(iter(names))
    if arch not in names and arch not in names.values():
        raise UserError(f"{source} has no architecture {arch!r}: choose one of {', '.join(names)}.")
    return SOURCES[source], names.get(arch, arch)


def _check(path: Path, row: Source, sha256: str | None, max_bytes: int) -> str:
    # A file of torch.hub has the beginning of its SHA-256 in its name.
    in_name = [beginning for beginning, name in row.published.items() if name == path.name and beginning in name]
    return containers.check(path, sha256=sha256, begins_with=next(iter(in_name), ""), max_bytes=max_bytes)


def _any_prefix(tensors: Mapping[str, Any]) -> dict[str, Layout]:
    """Return torchvision's layout with every prefix of a key `layer1.0.conv1.weight`."""
    first = "layer1.0.conv1.weight"
    prefixes = [key.removesuffix(first) for key in tensors if re.fullmatch(rf"(.+\.)?{re.escape(first)}", key)]
    return {f"torchvision after {prefix!r}": prefixed(prefix) for prefix in prefixes or [""]}


# Prefixes that wrappers add to keys: data parallelism, torch.compile, self-distillation.
_PREFIXES = ("module.", "_orig_mod.", "model.", "teacher.", "student.", "backbone.", "encoder.", "ema.")


def _wrapper(tensors: Mapping[str, Any], names: list[str], layouts: Mapping[str, Layout], depth: int = 3) -> str:
    """Return the known prefix of all weights, e.g. "module.model.", or "" without one."""
    for prefix in _PREFIXES if depth else ():
        below = {key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
        if below and any(all(layout(name) in below for name in names) for layout in layouts.values()):
            return prefix
        if below and (inner := _wrapper(dict.fromkeys(below), names, layouts, depth - 1)):
            return prefix + inner
    return ""


def upcast(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Convert half-precision weights to float32. Return them, and a note for the provenance if there were any."""
    half = sorted({str(array.dtype) for array in tensors.values()} & {"float16", "bfloat16"})
    upcast = {key: array.astype(np.float32) if str(array.dtype) in half else array for key, array in tensors.items()}
    return upcast, [f"weights in {' and '.join(half)} were converted to float32"] if half else []


def fill(
    path: Path,
    what: str,
    expected: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    layout: Layout,
    drop: tuple[str, ...],
) -> dict[str, Any]:
    """Return every expected weight from its tensor, as float32 in our order of axes; see `Source` for `drop`."""
    names = {key: layout(torch_name(key)) for key in expected}
    counters = {re.sub("running_mean$", "num_batches_tracked", name) for name in names.values()}
    known = {*names.values(), *counters}
    dropped = [name for name in tensors if any(re.fullmatch(one, name) for one in drop)]
    wrong: dict[str, list[str]] = {
        "missing": [name for name in names.values() if name not in tensors],
        "unexpected": [name for name in tensors if name not in known and name not in dropped],
        "of another shape": [],
        "of another type": [],
        "not finite": [],
        "negative": [],
    }
    weights = {}
    for key, name in names.items():
        if name not in tensors:
            continue
        array, order = tensors[name], axes(key, len(expected[key].shape))
        shape = tuple(expected[key].shape[axis] for axis in order)
        if array.shape != shape:
            wrong["of another shape"].append(f"{name} is {list(array.shape)} instead of {list(shape)}")
        elif array.dtype != np.float32:
            wrong["of another type"].append(f"{name} is {array.dtype}")
        elif not np.isfinite(array).all():
            wrong["not finite"].append(name)
        elif name.endswith("running_var") and (array < 0).any():
            wrong["negative"].append(name)
        else:
            # A copy, since `array` may be a view of the file.
            weights[key] = jnp.array(array.transpose(np.argsort(order)), jnp.float32)
    problems = [f"{kind}: {shortened(words)}" for kind, words in wrong.items() if words]
    if problems:
        if dropped and len(wrong["missing"]) == len(names):
            problems.append(f"there, but not of the encoder: {shortened(dropped, 3)}")
        raise UserError(f"{path} doesn't fit {what}, give other weights, --arch or --source: {'; '.join(problems)}.")
    return weights


def _convert_ours(path: Path, arch: str | None, *, sha256: str | None, max_bytes: int) -> Encoder:
    """Convert a file that `export` wrote. Its metadata has the architecture."""
    digest = containers.check(path, sha256=sha256, max_bytes=max_bytes)
    about = containers.read_metadata(path, OURS)
    kinds = {"architecture": dict, "preprocessing": dict, "provenance": dict, "license": str}
    if (
        not isinstance(about, dict)
        or about.get("format_version") != FORMAT_VERSION
        or about.get("layout") not in EXPORTS
        or not all(isinstance(about.get(key), kind) for key, kind in kinds.items())
    ):
        raise UserError(f"{path} is no .safetensors file that convert.py exported: name its --source instead.")
    if arch is not None and arch != about["architecture"].get("name"):
        raise UserError(f"{path} holds a {about['architecture'].get('name')}, not a {arch}: leave --arch out.")
    expected = variables.expected(about["architecture"])
    tensors = containers.read(path, max_bytes=max_bytes)
    weights = fill(path, "its own description", expected, tensors, EXPORTS[about["layout"]], (r"fc\.(weight|bias)",))
    source = {"source": OURS, "file": path.name, "sha256": digest, "layout": about["layout"], "layout_verified": True}
    provenance = {"converted": {**source, "of": about["provenance"]}}
    preprocessing = Preprocessing.from_json(about["preprocessing"])
    return Encoder(about["architecture"], weights, preprocessing, provenance, about["license"])
