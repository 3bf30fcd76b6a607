"""Encoders and VisE, built by name from plain values."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from flax import nnx

from vise_jax.errors import UserError
from vise_jax.models import resnet
from vise_jax.models.clip_resnet import CLIPResNet
from vise_jax.models.conv import compiler_options
from vise_jax.models.norm import BatchNorm, FrozenBatchNorm
from vise_jax.models.precision import compute_dtype
from vise_jax.models.resnet import ResNet
from vise_jax.models.transformer import TextTransformer
from vise_jax.models.vise import VisE

__all__ = [
    "ENCODERS",
    "TEXT_ENCODER",
    "CLIPResNet",
    "ResNet",
    "TextTransformer",
    "VisE",
    "build",
    "compiler_options",
    "is_resolved",
    "resolve",
]

# Names of image encoders, and of the text encoder.
ENCODERS = (*resnet.ENCODERS, "clip_resnet50")
TEXT_ENCODER = "transformer"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(most: int) -> tuple[str, Callable[[Any], bool]]:
    """Return the rule of a count. A file that states more would take hours, or all of the memory."""
    return f"an integer from 1 to {most:,}", lambda value: type(value) is int and 1 <= value <= most


_EPSILON = "a number above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1
_WIDTH, _LAYERS, _TOKENS = _count(100_000), _count(200), _count(10_000_000)

# Settings of every image encoder: default, and the rule for its value in words.
_SETTINGS: dict[str, tuple[int | float | str | bool, str, Callable[[Any], bool]]] = {
    "width": (64, *_WIDTH),
    "stem": ("imagenet", '"imagenet" or "cifar"', lambda value: value in ("imagenet", "cifar")),
    "bn_momentum": (0.9, "a number between 0 and 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "bn_epsilon": (1e-5, *_EPSILON),
    "zero_init_last_bn": (True, "True or False", lambda value: isinstance(value, bool)),
}

# Settings of the text encoder: the rule for the value. Checkpoints state all of them, so that there are no defaults.
_TEXT_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "layers": _LAYERS,
    **dict.fromkeys(("width", "attention_heads", "intermediate_width"), _WIDTH),
    **dict.fromkeys(("vocabulary", "positions", "segments"), _TOKENS),
    "first_position": ("an integer from 0 to 1,000", lambda value: type(value) is int and 0 <= value <= 1_000),
    "epsilon": _EPSILON,
    "pooling": ('"mean" or "first"', lambda value: value in ("mean", "first")),
    "unit_length": ("True or False", lambda value: isinstance(value, bool)),
}


def resolve(
    name: str, *, heads: Mapping[str, int] | None = None, **settings: int | float | str | bool
) -> dict[str, Any]:
    """Return the full architecture: every setting that decides what the encoder computes, with defaults filled in.

    Args:
        name: one of `ENCODERS`.
        heads: from the name of a head to its number of classes; None for the bare encoder.
        **settings: `width`, `stem`, `bn_momentum`, `bn_epsilon`, `zero_init_last_bn`; the config's section `model`
            explains them. For the text encoder, all arguments of `TextTransformer`.

    Returns:
        JSON values, the arguments of `build`.

    Raises:
        UserError: an unknown encoder or setting, or an invalid value.
    """
    if name == TEXT_ENCODER:
        return {"name": name} | _resolve_text(settings)
    if name not in ENCODERS:
        raise UserError(f"There is no encoder {name!r}: choose one of {', '.join(ENCODERS)}.")
    unknown = sorted(settings.keys() - _SETTINGS.keys())
    if unknown:
        raise UserError(f"Encoders have no setting {unknown[0]!r}: choose from {', '.join(_SETTINGS)}.")
    resolved: dict[str, Any] = {"name": name}
    for key, (default, words, allowed) in _SETTINGS.items():
        resolved[key] = settings.get(key, default)
        if not allowed(resolved[key]):
            raise UserError(f"The encoder's setting {key} is {resolved[key]!r}, but must be {words}.")
    if not isinstance(heads, Mapping | None):
        raise UserError(f"The heads are {heads!r}, but must be names with numbers of classes.")
    for head, classes in (heads or {}).items():
        words, allowed = _TOKENS
        if not allowed(classes):
            raise UserError(f"The head {head!r} has {classes!r} classes, but must have {words}.")
    return resolved if heads is None else resolved | {"heads": dict(heads)}


def _resolve_text(settings: Mapping[str, Any]) -> dict[str, Any]:
    if differing := sorted(settings.keys() ^ _TEXT_SETTINGS.keys()):
        raise UserError(f"The text encoder's settings are {', '.join(_TEXT_SETTINGS)}: check {differing[0]!r}.")
    for key, (words, allowed) in _TEXT_SETTINGS.items():
        if not allowed(settings[key]):
            raise UserError(f"The text encoder's setting {key} is {settings[key]!r}, but must be {words}.")
    if settings["width"] % settings["attention_heads"]:
        raise UserError(
            f"The text encoder's width of {settings['width']} can't be divided into {settings['attention_heads']} "
            "heads: choose a multiple."
        )
    return {key: settings[key] for key in _TEXT_SETTINGS}


def is_resolved(architecture: Mapping[str, Any]) -> bool:
    """Return whether an architecture leaves no setting to a default."""
    if architecture.get("name") == TEXT_ENCODER:
        return {"name", *_TEXT_SETTINGS} == architecture.keys()
    return {"name", *_SETTINGS} <= architecture.keys()


def build(
    name: str,
    *,
    heads: Mapping[str, int] | None = None,
    bn_group: int = 0,
    dtype: str = "float32",
    remat: Iterable[int] = (),
    seed: int = 0,
    **settings: int | float | str | bool,
) -> ResNet | CLIPResNet | VisE | TextTransformer:
    """Build a model with fresh float32 weights.

    Args:
        name: one of `ENCODERS`, or "transformer" for a text encoder. The batch norms of "detectron2_resnet50" are
            frozen, whatever `bn_group` and `bn_momentum` are.
        heads: from the name of a linear head to its number of classes; None for the bare encoder.
        bn_group: number of examples that share batch statistics; 0 = the whole batch.
        dtype: of activations and matrix products: "float32", "bfloat16" or "auto", as the config key `model.dtype`.
        remat: stages to rematerialize in the backward pass, as `training.remat`.
        seed: of the initial weights.
        **settings: see `resolve`.

    Returns:
        The encoder, or `VisE` with heads. Both map (images: float32 [B, H, W, 3], train=) to a result and
        intermediates, and have `feature_dim`. A text encoder maps token ids and their mask.

    Raises:
        UserError: an unknown encoder or setting, or an invalid value.
    """
    model = resolve(name, heads=heads, **settings)
    if bn_group < 0:
        raise UserError(f"bn_group is {bn_group}, but must be at least 0.")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f'dtype is {dtype!r}, but must be "auto", "float32" or "bfloat16".')
    rngs = nnx.Rngs(seed)
    if name == TEXT_ENCODER:
        arguments = {key: value for key, value in model.items() if key != "name"}
        return TextTransformer(**arguments, dtype=compute_dtype(dtype), rngs=rngs)
    encoder = _encoder(model, int(bn_group), dtype, tuple(remat), rngs)
    return encoder if heads is None else VisE(encoder, heads, rngs=rngs)


def _encoder(
    model: Mapping[str, Any], bn_group: int, dtype: str, remat: tuple[int, ...], rngs: nnx.Rngs
) -> ResNet | CLIPResNet:
    name, width, epsilon = model["name"], model["width"], model["bn_epsilon"]
    row = resnet.ENCODERS.get(name, {})
    # A group of ResNeXt has a channel or more, CLIP's attention a head of 64 channels or more.
    narrowest = 64 // row.get("group_width", 64) if row else 2
    if width < narrowest or (not row and width % 2):
        kind = "a" if row else "an even"
        raise UserError(f"{name} can't have width {width}: give {kind} width of at least {narrowest}.")
    norm: resnet.Norm = partial(BatchNorm, group=bn_group, momentum=model["bn_momentum"], epsilon=epsilon)
    if name == "detectron2_resnet50":
        norm = partial(FrozenBatchNorm, epsilon=epsilon)
    settings = {
        "width": width,
        "zero_init_last_bn": model["zero_init_last_bn"],
        "norm": norm,
        "dtype": compute_dtype(dtype),
        "remat": remat,
        "rngs": rngs,
    }
    if row:
        return ResNet(**row, stem=model["stem"], **settings)
    if model["stem"] != "imagenet":
        raise UserError(f'{name} has a stem of its own: leave the setting stem at "imagenet", not {model["stem"]!r}.')
    return CLIPResNet(blocks=(3, 4, 6, 3), **settings)
