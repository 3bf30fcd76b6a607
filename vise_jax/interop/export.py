"""Export encoders to the layouts of PyTorch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from vise_jax import artifact
from vise_jax.encoder import MODEL_CARD, Encoder
from vise_jax.errors import UserError
from vise_jax.interop.layouts import Layout, axes, prefixed, sequential, torch_name

# Layouts of exported files.
EXPORTS: dict[str, Layout] = {"torchvision": prefixed(""), "vise": sequential}
# The layout that is a directory.
TIMM = "timm"
# Name of the source of files that `export` wrote, and the key of their metadata.
OURS = "vise_jax"
FORMAT_VERSION = 1


def export(encoder: Encoder, layout: str, path: str | Path, *, head: str = "") -> None:
    """Write an encoder's weights with PyTorch's names and layout.

    Args:
        encoder: of an architecture that torchvision has; for timm, of full width.
        layout: "torchvision", for `torchvision.models` with `fc = torch.nn.Identity()`; "vise", for
            `torch.nn.Sequential(*list(resnet.children())[:-2])`, as the authors of VisE publish theirs; or "timm", for
            `timm.create_model("local-dir:PATH", pretrained=True)`.
        path: a `.safetensors` file; for timm, a directory. An existing one is not replaced; one with the same content
            is not an error.
        head: with "torchvision" and "timm", name of the head that becomes `fc`; "" = none.

    Raises:
        UserError: no such layout or head, an architecture or preprocessing that the library does not have, or a path
            that holds something else.
    """
    path = artifact.location(path)
    if layout not in (*EXPORTS, TIMM):
        raise UserError(f"There is no layout {layout!r} to export to: choose one of {', '.join((*EXPORTS, TIMM))}.")
    if layout == TIMM:
        _export_to_timm(encoder, path, head)
        return
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors, the format that is written: rename it.")
    _check_exportable(encoder.architecture)
    content = _weights(encoder, layout, head)
    if artifact.exists(path):
        if path.is_file() and path.read_bytes() == content:
            return
        raise UserError(f"{path} already exists and holds something else: name another file, or delete it first.")
    artifact.make_directory(path.parent)
    with artifact.atomic_file(path) as file:
        file.write(content)


def _weights(encoder: Encoder, layout: str, head: str) -> bytes:
    """Return the content of the `.safetensors` file."""
    body = {key.removeprefix("encoder/"): value for key, value in encoder.weights.items() if key[:6] != "heads/"}
    arrays = {EXPORTS[layout](torch_name(key)): _to_torch(key, value) for key, value in body.items()}
    counters = {key[: -len("running_mean")] + "num_batches_tracked" for key in arrays if key.endswith(".running_mean")}
    arrays |= {key: np.zeros((), np.int64) for key in counters}
    if head:
        heads = sorted({key.split("/")[1] for key in encoder.weights if key[:6] == "heads/"})
        if layout != "torchvision" or head not in heads:
            raise UserError(f"There is no head {head!r} to export to {layout}: choose from {heads or 'none'}.")
        arrays |= {
            torch_name(f"fc/{kind}"): _to_torch(kind, encoder.weights[f"heads/{head}/{kind}"])
            for kind in ("kernel", "bias")
        }
    about = {
        "format_version": FORMAT_VERSION,
        "layout": layout,
        "architecture": {key: value for key, value in encoder.architecture.items() if key != "heads"},
        "preprocessing": encoder.preprocessing.to_json(),
        "provenance": encoder.provenance,
        "license": encoder.license,
    }
    # One metadata entry only: safetensors does not fix the order of several.
    return safetensors.numpy.save(dict(sorted(arrays.items())), {OURS: artifact.canonical_json(about)})


def _export_to_timm(encoder: Encoder, path: Path, head: str) -> None:
    """Write a directory in the layout of timm's models on the Hugging Face Hub: config, weights and model card."""
    _check_exportable(encoder.architecture)
    images = encoder.preprocessing
    if encoder.architecture["width"] != 64:
        width = encoder.architecture["width"]
        raise UserError(f"timm's ResNets have width 64, this encoder has {width}: use --to torchvision.")
    if (images.color, images.scale) != ("RGB", 255.0):
        raise UserError(
            f"timm's images are RGB divided by 255, this encoder's {images.color} by {images.scale:g}: use --to "
            "torchvision."
        )
    # timm's names are torchvision's.
    weights = _weights(encoder, "torchvision", head)
    classes = encoder.architecture["heads"][head] if head else 0
    description = {
        "architecture": encoder.architecture["name"],
        "num_classes": classes,
        "num_features": encoder.feature_dim,
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": OURS,
            "custom_load": False,
            "input_size": [3, images.crop, images.crop],
            "fixed_input_size": False,
            "interpolation": images.interpolation,
            "crop_pct": images.crop / images.resize,
            "crop_mode": "center",
            "mean": list(images.mean),
            "std": list(images.std),
            "num_classes": classes,
            "pool_size": [-(-images.crop // 32)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": encoder.license,
        },
    }
    usage = (
        "import timm\n\n"
        'model = timm.create_model("local-dir:DIRECTORY", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)\n"
        f"{'logits' if head else 'features'} = model(transform(image)[None])"
        f"  # float32 [1, {classes or encoder.feature_dim}]"
    )
    files = {
        "config.json": (json.dumps(description, indent=2, sort_keys=True) + "\n").encode(),
        "model.safetensors": weights,
        MODEL_CARD: encoder.card(library="timm", usage=usage).encode(),
    }
    if artifact.exists(path):
        if all((path / name).is_file() and (path / name).read_bytes() == content for name, content in files.items()):
            return
        raise UserError(f"{path} already exists and holds something else: name another directory, or delete it first.")
    with artifact.atomic_directory(path, "config.json") as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)


def _to_torch(key: str, array: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(array).transpose(axes(key, array.ndim)))


def _check_exportable(architecture: Mapping[str, Any]) -> None:
    name = architecture["name"]
    if name in ("clip_resnet50", "detectron2_resnet50"):
        raise UserError(f"torchvision and timm have no {name}: export a ResNet or ResNeXt.")
    for key, value in {"stem": "imagenet", "bn_epsilon": 1e-5}.items():
        if architecture.get(key, value) != value:
            raise UserError(
                f"torchvision's ResNets have {key} {value!r}, this encoder has {architecture[key]!r}: export another."
            )
