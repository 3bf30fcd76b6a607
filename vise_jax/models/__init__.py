"""Encoders and VisE, built by name from plain values."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from vise_jax import config
from vise_jax.errors import UserError
from vise_jax.models import resnet
from vise_jax.models.clip_resnet import CLIPResNet
from vise_jax.models.norm import BatchNorm, FrozenBatchNorm
from vise_jax.models.precision import policy
from vise_jax.models.resnet import ResNet
from vise_jax.models.vise import VisE

__all__ = ["ENCODERS", "CLIPResNet", "ResNet", "VisE", "build"]

# Names of encoders.
ENCODERS = (*resnet.ENCODERS, "clip_resnet50")

_SETTINGS = ("width", "stem", "bn_momentum", "bn_epsilon", "zero_init_last_bn")


def build(
    name: str,
    *,
    num_classes: int | None = None,
    heads: Mapping[str, int] | None = None,
    bn_group: int = 0,
    dtype: str = "float32",
    remat: Iterable[int] = (),
    seed: int = 0,
    **settings: Any,
) -> ResNet | CLIPResNet | VisE:
    """Build a model with fresh float32 weights.

    Args:
        name: one of `ENCODERS`. The batch norms of "detectron2_resnet50" are frozen, whatever `bn_group` and
            `bn_momentum` say.
        num_classes: give it one head of so many classes, named "classes".
        heads: give it these heads: name → number of classes. With neither, the bare encoder.
        bn_group: examples that share batch statistics; 0 = the whole batch.
        dtype: of activations and products, as the config key `model.dtype`.
        remat: stages whose activations are computed again in the backward pass, as `training.remat`.
        seed: of the initial weights.
        **settings: `width`, `stem`, `bn_momentum`, `bn_epsilon`, `zero_init_last_bn`; what they mean and
            their defaults stand in `vise_jax.config.base().model`.

    Returns:
        The encoder without heads, else `VisE`. Both map (images: float32 [B, H, W, 3], train=) to a result and
        intermediates, and say their `feature_dim`.

    Raises:
        UserError: no such encoder, a setting that nobody knows, or a value that is not allowed.
    """
    if name not in ENCODERS:
        raise UserError(f"There is no encoder {name!r}: choose one of {', '.join(ENCODERS)}.")
    unknown = sorted(settings.keys() - set(_SETTINGS))
    if unknown:
        raise UserError(f"Encoders have no setting {unknown[0]!r}: choose from {', '.join(_SETTINGS)}.")
    if num_classes is not None and heads is not None:
        raise UserError("Give an encoder either num_classes or heads, not both.")
    for head, classes in (heads or {"classes": 1 if num_classes is None else num_classes}).items():
        if classes < 1:
            raise UserError(f"The head {head!r} has {classes} classes, but needs at least 1.")
    model = _checked({**settings, "bn_group": int(bn_group), "dtype": dtype})
    rngs = nnx.Rngs(seed)
    encoder = _encoder(name, model, tuple(remat), rngs)
    if num_classes is not None:
        heads = {"classes": num_classes}
    return encoder if heads is None else VisE(encoder, heads, rngs=rngs)


def _encoder(name: str, model: ConfigDict, remat: tuple[int, ...], rngs: nnx.Rngs) -> ResNet | CLIPResNet:
    row = resnet.ENCODERS.get(name, {})
    # A group of ResNeXt has a channel or more, CLIP's attention a head of 64 channels or more.
    narrowest = 64 // row.get("group_width", 64) if row else 2
    if model.width < narrowest or (not row and model.width % 2):
        raise UserError(f"{name} needs {'a' if row else 'an even'} width of at least {narrowest}, not {model.width}.")
    norm: resnet.Norm = partial(BatchNorm, group=model.bn_group, momentum=model.bn_momentum, epsilon=model.bn_epsilon)
    if name == "detectron2_resnet50":
        norm = partial(FrozenBatchNorm, epsilon=model.bn_epsilon)
    settings = {
        "width": model.width,
        "zero_init_last_bn": model.zero_init_last_bn,
        "norm": norm,
        "dtype": policy(model.dtype).compute,
        "remat": remat,
        "rngs": rngs,
    }
    if row:
        return ResNet(**row, stem=model.stem, **settings)
    if model.stem != "imagenet":
        raise UserError(f'{name} has a stem of its own: leave the setting stem at "imagenet", not {model.stem!r}.')
    return CLIPResNet(blocks=(3, 4, 6, 3), **settings)


def _checked(settings: dict[str, Any]) -> ConfigDict:
    """The config's section `model` with these settings instead of its own."""
    whole = config.base()
    try:
        whole.model.update(settings)
    except TypeError as error:
        raise UserError(f"A setting of the encoder has the wrong type: {' '.join(str(error).split())}") from error
    config.validate(whole)
    return whole.model
