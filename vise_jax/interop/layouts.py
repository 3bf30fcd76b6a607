"""Layouts of published checkpoints: functions from torchvision's name of a weight to the published name."""

import re
from collections.abc import Callable

Layout = Callable[[str], str]

_KINDS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}


def torch_name(path: str) -> str:
    """Return torchvision's name of our weight (CLIP's own, where torchvision has none).

    For example `layer1/0/bn1/var` → `layer1.0.bn1.running_var`.
    """
    *module, kind = path.split("/")
    return ".".join([*module, _KINDS.get(kind, kind)])


def prefixed(prefix: str) -> Layout:
    """Return the layout of torchvision's names after a prefix."""
    return lambda name: prefix + name


def sequential(name: str) -> str:
    """Return the name in `torch.nn.Sequential(*list(resnet.children())[:-2])`: conv1 is 0, bn1 is 1, layer1 is 4."""
    head, rest = name.split(".", 1)
    return f"{ ({'conv1': 0, 'bn1': 1}.get(head) if head[:5] != 'layer' else int(head[5:]) + 3) }.{rest}"


def detectron2(name: str) -> str:
    """Return the name in detectron2: `backbone.stem.*`, `backbone.res2` to `res5`; a norm is below its convolution."""
    name = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return f"backbone.{name if name.startswith('res') else f'stem.{name}'}"


def timm_clip(name: str) -> str:
    """Return the name in timm's ResNet of CLIP."""
    name = re.sub(r"^(conv|bn)(\d)", r"stem.conv\2.\1", name)
    name = re.sub(r"\.(conv|bn)([13])\b", r".conv\2_1x1.\1", name) if name.startswith("layer") else name
    name = re.sub(r"\.(conv|bn)2\b", r".conv2_kxk.\1", name) if name.startswith("layer") else name
    name = re.sub(r"^layer(\d)", lambda match: f"stages.{int(match[1]) - 1}", name)
    name = name.replace("downsample.0", "shortcut.conv.conv").replace("downsample.1", "shortcut.conv.bn")
    name = name.replace("attnpool.positional_embedding", "head.pos_embed").replace("attnpool.c_proj", "head.proj")
    return re.sub(r"^attnpool\.([qkv])_proj", r"head.\1", name)


def axes(key: str, ndim: int) -> tuple[int, ...]:
    """Return the permutation of our axes to torch's order: HWIO → OIHW for kernels, [in, out] → [out, in]."""
    if key.rsplit("/", 1)[-1] != "kernel":
        return tuple(range(ndim))
    return (3, 2, 0, 1) if ndim == 4 else (1, 0)
