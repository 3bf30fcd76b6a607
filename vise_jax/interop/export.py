"""Export encoders to the layouts of PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from vise_jax import artifact
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.interop.layouts import Layout, axes, prefixed, sequential, torch_name

# Layouts of exported files.
EXPORTS: dict[str, Layout] = {"torchvision": prefixed(""), "vise": sequential}
# Name of the source of files that `export` wrote, and the key of their metadata.
OURS = "vise_jax"
FORMAT_VERSION = 1


def export(encoder: Encoder, layout: str, path: str | Path, *, head: str = "") -> None:
    """Write an encoder's weights with PyTorch's names and layout, to a `.safetensors` file.

    Args:
        encoder: of an architecture that torchvision has.
        layout: "torchvision", for `torchvision.models` with `fc = torch.nn.Identity()`; or "vise", for
            `torch.nn.Sequential(*list(resnet.children())[:-2])`, as the authors of VisE publish theirs.
        path: the file. An existing file is not replaced; one with the same content is not an error.
        head: with "torchvision", name of the head that becomes `fc`; "" = none.

    Raises:
        UserError: no such layout or head, an architecture that torchvision does not have, or a file that holds
            something else.
    """
    path = Path(path)
    if layout not in EXPORTS:
        raise UserError(f"There is no layout {layout!r} to export to: choose one of {', '.join(EXPORTS)}.")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors, the format that is written.")
    architecture = {key: value for key, value in encoder.architecture.items() if key != "heads"}
    _check_exportable(architecture)
    body = {key.removeprefix("encoder/"): value for key, value in encoder.weights.items() if key[:6] != "heads/"}
    arrays = {EXPORTS[layout](torch_name(key)): _to_torch(key, value) for key, value in body.items()}
    counters = {key[: -len("running_mean")] + "num_batches_tracked" for key in arrays if key.endswith(".running_mean")}
    arrays |= {key: np.zeros((), np.int64) for key in counters}
    if head:
        heads = sorted({key.split("/")[1] for key in encoder.weights if key[:6] == "heads/"})
        if layout != "torchvision" or head not in heads:
            raise UserError(f"There is no head {head!r} to export to {layout}: the encoder has {heads or 'none'}.")
        arrays |= {
            torch_name(f"fc/{kind}"): _to_torch(kind, encoder.weights[f"heads/{head}/{kind}"])
            for kind in ("kernel", "bias")
        }
    about = {
        "format_version": FORMAT_VERSION,
        "layout": layout,
        "architecture": architecture,
        "preprocessing": encoder.preprocessing.to_json(),
        "provenance": encoder.provenance,
        "license": encoder.license,
    }
    # One metadata entry only: safetensors does not fix the order of several.
    content = safetensors.numpy.save(dict(sorted(arrays.items())), {OURS: artifact.canonical_json(about)})
    if path.exists():
        if path.read_bytes() == content:
            return
        raise UserError(f"{path} already exists and holds something else: name another file, or delete it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with artifact.atomic_file(path) as file:
        file.write(content)


def _to_torch(key: str, array: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(array).transpose(axes(key, array.ndim)))


def _check_exportable(architecture: Mapping[str, Any]) -> None:
    name = architecture["name"]
    if name in ("clip_resnet50", "detectron2_resnet50"):
        raise UserError(f"torchvision has no {name}: only its own ResNets can be exported.")
    for key, value in {"stem": "imagenet", "bn_epsilon": 1e-5}.items():
        if architecture.get(key, value) != value:
            raise UserError(f"torchvision's ResNets have {key} {value!r}, this encoder has {architecture[key]!r}.")
