"""Encoders in torch with random weights, and files of them in the layout of each source."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch_resnet
from torch import nn
from torch.nn import functional as F

Tensors = dict[str, torch.Tensor]


class CLIPBottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        out = planes * 4
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or inputs != out:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = F.avg_pool2d(torch.relu(self.bn2(self.conv2(y))), self.stride)
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(F.avg_pool2d(x, self.stride))))


class AttentionPool(nn.Module):
    def __init__(self, tokens: int, channels: int, out: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(tokens, channels))
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(channels, channels))
        self.c_proj = nn.Linear(channels, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).mT
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self.positional_embedding
        # Every token asks, and only the first one's answer is kept.
        q, k, v = (
            one(tokens).unflatten(2, (-1, 64)).transpose(1, 2) for one in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))[:, 0]


class CLIPVisual(nn.Module):
    """CLIP's modified ResNet-50: images [B, 3, 224, 224] → features [B, 16 width] and feature map."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, 1, 1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for stage, length in enumerate((3, 4, 6, 3)):
            planes, blocks = width * 2**stage, []
            for index in range(length):
                blocks.append(CLIPBottleneck(inputs, planes, 2 if stage and not index else 1))
                inputs = planes * 4
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(50, inputs, 16 * width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for number in "123":
            x = torch.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(F.avg_pool2d(x, 2)))))
        return self.attnpool(x), x


class CLIP(nn.Module):
    """The image encoder among what else is in CLIP's file."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8))
        self.token_embedding, self.ln_final = nn.Embedding(5, 8), nn.LayerNorm(8)
        self.positional_embedding = nn.Parameter(torch.randn(3, 8))
        self.text_projection = nn.Parameter(torch.randn(8, 8))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logit_scale * x


class NormedConv(nn.Conv2d):
    """detectron2's convolution, which holds its frozen batch norm."""

    def __init__(self, inputs: int, out: int, size: int, stride: int = 1):
        super().__init__(inputs, out, size, stride, size // 2, bias=False)
        self.norm = nn.Module()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.norm.register_buffer(name, torch.zeros(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm, x = self.norm, super().forward(x)
        if self.training:
            norm.running_var, norm.running_mean = torch.var_mean(x.detach(), (0, 2, 3))
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)


class Detectron2Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        out = planes * 4
        self.shortcut = NormedConv(inputs, out, 1, stride) if stride > 1 or inputs != out else None
        self.conv1 = NormedConv(inputs, planes, 1, stride)
        self.conv2 = NormedConv(planes, planes, 3)
        self.conv3 = NormedConv(planes, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Detectron2Backbone(nn.Module):
    """detectron2's R-50: images [B, 3, H, W] → feature map."""

    def __init__(self, width: int):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = NormedConv(3, width, 7, 2)
        inputs = width
        for stage, length in enumerate((3, 4, 6, 3)):
            planes, blocks = width * 2**stage, []
            for index in range(length):
                blocks.append(Detectron2Bottleneck(inputs, planes, 2 if stage and not index else 1))
                inputs = planes * 4
            setattr(self, f"res{stage + 2}", nn.Sequential(*blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.stem.conv1(x)), 3, 2, 1)
        return self.res5(self.res4(self.res3(self.res2(x))))


def draw(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Random weights, and the batch statistics of some images, without which all images look the same to the network.

    `scale` is the standard deviation of normalized pixels.
    """
    generator = torch.Generator().manual_seed(0)
    basic = "layer1.0.bn2.weight" in model.state_dict() and "layer1.0.bn3.weight" not in model.state_dict()
    last = "bn2.weight" if basic else ("bn3.weight", "conv3.norm.weight")
    for name, value in model.state_dict().items():
        kind = name.rsplit(".", 1)[1]
        if value.ndim == 4:
            value.normal_(0, (2 / (value.shape[0] * value.shape[2] ** 2)) ** 0.5, generator=generator)
        elif value.ndim == 2:
            value.normal_(0, value.shape[1] ** -0.5, generator=generator)
        elif kind == "weight":
            # As in trained networks, blocks add little to their shortcut.
            value.uniform_(0.5, 1.0, generator=generator).mul_(0.2 if name.endswith(last) else 1.0)
        elif kind == "bias":
            value.normal_(0, 0.1, generator=generator)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.half().float()  # values that fp16 has, too
    squares = scale * torch.randn(4, 3, 7, 7, generator=generator)
    side = 32 if isinstance(model, CLIPVisual) else 8
    model.train()(squares.repeat_interleave(side, 2).repeat_interleave(side, 3))
    return model.eval()


@functools.cache
def _encoder(kind: str, width: int) -> nn.Module:
    if kind == "clip":
        return draw(CLIPVisual(width))
    return draw(Detectron2Backbone(width), 74.0) if kind == "detectron2" else draw(torch_resnet.ResNet(kind, width))


@dataclass
class Checkpoint:
    """A file, and what its encoder makes of normalized images, float32 [B, 3, H, W]: features and feature map."""

    path: Path
    run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _pooled(model: nn.Module) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        feature_map = model(images)
        return feature_map.mean((2, 3)), feature_map

    return run


def _behind(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def _classifier(features: int) -> Tensors:
    return {"fc.weight": torch.randn(1000, features), "fc.bias": torch.randn(1000)}


def write(source: str, directory: Path, width: int, arch: str = "resnet50") -> Checkpoint:
    """A checkpoint as the source publishes it; some sources have more than one kind, e.g. `virtex-full`."""
    path = directory / f"{source}.pth"
    if source.startswith("clip"):
        visual = _encoder("clip", width)
        clip = CLIP(visual)
        half = {
            name: value.half() if value.ndim in (2, 4) or "_proj" in name else value
            for name, value in clip.state_dict().items()
        }
        if source == "clip-timm":
            safetensors.torch.save_file(timm_names(half), path := path.with_suffix(".safetensors"))
        elif source == "clip-state":
            torch.save(half, path)
        else:
            archive = CLIP(CLIPVisual(width)).eval()
            for name in ("input_resolution", "context_length", "vocab_size"):
                archive.register_buffer(name, torch.tensor(77))
            archive.load_state_dict(half, strict=False)
            for part in archive.visual.modules():
                if isinstance(part, nn.Conv2d | nn.Linear):
                    part.half()
            torch.jit.trace(archive, torch.ones(1)).save(path)
        return Checkpoint(path, visual)
    if source == "vqagrid":
        backbone = _encoder("detectron2", width)
        heads = {
            "proposal_generator.rpn_head.conv.weight": torch.ones(2),
            "roi_heads.box_predictor.bbox_pred.bias": torch.ones(2),
        }
        pixels = {"pixel_mean": torch.ones(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
        model = _behind("backbone.", backbone.state_dict()) | heads | pixels
        torch.save({"model": model, "optimizer": {"state": {}, "param_groups": []}, "iteration": 89999}, path)
        return Checkpoint(path, _pooled(backbone))
    resnet = _encoder(arch, width)
    tensors = resnet.state_dict()
    if source == "torchvision-old":
        tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    content: dict = {
        "torchvision": tensors | _classifier(resnet.feature_dim),
        "torchvision-old": tensors | _classifier(resnet.feature_dim),
        "wsl": tensors | _classifier(resnet.feature_dim),
        "vise": sequential(resnet).state_dict(),
        "virtex": tensors,
        "virtex-full": {"model": _behind("visual.cnn.", tensors) | {"textual.embedding.words.weight": torch.ones(3)}},
        "icmlm": {"state_dict": _behind("cnn.", tensors)},
        "moco": {"epoch": 800, "arch": "resnet50", "state_dict": moco(tensors)},
        "moco-bare": {"state_dict": {name.removeprefix("module."): one for name, one in moco(tensors).items()}},
    }[source]
    torch.save(content, path, _use_new_zipfile_serialization=source != "torchvision-old")
    return Checkpoint(path, _pooled(resnet))


def moco(tensors: Tensors) -> Tensors:
    """A query encoder among what else is in MoCo's files; its key encoder is all ones."""
    head = {f"fc.{layer}.{kind}": torch.ones(4) for layer in (0, 2) for kind in ("weight", "bias")}
    key = {name: torch.ones_like(value) for name, value in (tensors | head).items()}
    queue = {"module.queue": torch.ones(4, 8), "module.queue_ptr": torch.tensor([0])}
    return _behind("module.encoder_q.", tensors | head) | _behind("module.encoder_k.", key) | queue


def sequential(resnet: nn.Module) -> nn.Module:
    """As torchvision's children without the last two; ReLU and pool have no weights."""
    stem = [resnet.conv1, resnet.bn1, nn.ReLU(), resnet.maxpool]
    return nn.Sequential(*stem, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)


def timm_names(tensors: Tensors) -> Tensors:
    """The image encoder by timm's names, one weight after the other."""
    names = {"0": "shortcut.conv.conv", "1": "shortcut.conv.bn"}
    blocks = {"1": "conv1_1x1", "2": "conv2_kxk", "3": "conv3_1x1"}
    pool = {"positional_embedding": "pos_embed", "q_proj": "q", "k_proj": "k", "v_proj": "v", "c_proj": "proj"}
    found = {}
    for name, value in tensors.items():
        match name.split("."):
            case ["visual", "attnpool", part, *kind]:
                found[".".join(["head", pool[part], *kind])] = value
            case ["visual", layer, block, "downsample", part, kind]:
                found[f"stages.{int(layer[5:]) - 1}.{block}.{names[part]}.{kind}"] = value
            case ["visual", layer, block, part, kind]:
                found[f"stages.{int(layer[5:]) - 1}.{block}.{blocks[part[-1]]}.{part[:-1]}.{kind}"] = value
            case ["visual", part, kind]:
                found[f"stem.conv{part[-1]}.{part[:-1]}.{kind}"] = value
    return found


def normalized(images: np.ndarray, source: str) -> torch.Tensor:
    """uint8 RGB images [B, H, W, 3] as the source's own code normalizes them, [B, 3, H, W]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if source == "vqagrid":
        return x.flip(1) - torch.tensor([103.53, 116.28, 123.675]).reshape(3, 1, 1)
    clip = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    mean, std = clip if source.startswith("clip") else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return (x / 255 - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
