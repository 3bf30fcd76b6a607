"""The ResNet family: ResNet-18, -50, -101 (v1.5), ResNeXt-101 and detectron2's ResNet-50, with torchvision's names."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vise_jax.models.conv import Conv, kept
from vise_jax.models.grouped_conv import GroupedConv
from vise_jax.models.norm import BatchNorm, FrozenBatchNorm
from vise_jax.models.pool import max_pool

# From a number of channels, and an initial scale if it is not 1, to a batch norm.
Norm = Callable[..., BatchNorm | FrozenBatchNorm]


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, Fig. 5 left)."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, norm: Norm, last_scale: float, dtype: str, rngs: nnx.Rngs
    ):
        self.conv1 = Conv(in_channels, channels, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = norm(channels)
        self.conv2 = Conv(channels, channels, 3, dtype=dtype, rngs=rngs)
        self.bn2 = norm(channels, initial_scale=last_scale)
        self.downsample = _downsample(in_channels, channels, stride, norm, dtype, rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = kept(jax.nn.relu(self.bn1(self.conv1(x), train=train)))
        y = self.bn2(self.conv2(y), train=train)
        return kept(jax.nn.relu(y + shortcut(self.downsample, x, train)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2016, Fig. 5 right).

    The 3x3 convolution carries the stride (v1.5), or with `stride_in_1x1` the first one, as in that paper. With
    `groups` above 1 the 3x3 convolution is grouped: ResNeXt (Xie et al. 2017, Fig. 3 c).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        norm: Norm,
        last_scale: float,
        dtype: str,
        rngs: nnx.Rngs,
        groups: int = 1,
        group_width: int = 64,
        stride_in_1x1: bool = False,
    ):
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        inner, out = channels * group_width // 64 * groups, channels * self.expansion
        self.conv1 = Conv(in_channels, inner, 1, stride=first, dtype=dtype, rngs=rngs)
        self.bn1 = norm(inner)
        self.conv2: Conv | GroupedConv
        if groups == 1:
            self.conv2 = Conv(inner, inner, 3, stride=second, dtype=dtype, rngs=rngs)
        else:
            self.conv2 = GroupedConv(inner, groups, stride=second, dtype=dtype, rngs=rngs)
        self.bn2 = norm(inner)
        self.conv3 = Conv(inner, out, 1, dtype=dtype, rngs=rngs)
        self.bn3 = norm(out, initial_scale=last_scale)
        self.downsample = _downsample(in_channels, out, stride, norm, dtype, rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = kept(jax.nn.relu(self.bn1(self.conv1(x), train=train)))
        y = kept(jax.nn.relu(self.bn2(self.conv2(y), train=train)))
        y = self.bn3(self.conv3(y), train=train)
        return kept(jax.nn.relu(y + shortcut(self.downsample, x, train)))


def _downsample(
    in_channels: int, channels: int, stride: int, norm: Norm, dtype: str, rngs: nnx.Rngs
) -> nnx.List | None:
    """Return the projection of a shortcut that changes shape, named as torchvision's: 0 convolution, 1 norm."""
    if stride == 1 and in_channels == channels:
        return None
    return nnx.List([Conv(in_channels, channels, 1, stride=stride, dtype=dtype, rngs=rngs), norm(channels)])


def shortcut(downsample: nnx.List | None, x: jax.Array, train: bool) -> jax.Array:
    """Apply a block's shortcut: the identity, or the projection of `_downsample`."""
    if downsample is None:
        return x
    convolution, norm = downsample
    return norm(convolution(x), train=train)


# Name → what tells one encoder from another; "groups" and "group_width" are ResNeXt's.
ENCODERS: dict[str, dict[str, Any]] = {
    "resnet18": {"block": BasicBlock, "blocks": (2, 2, 2, 2)},
    "resnet50": {"block": Bottleneck, "blocks": (3, 4, 6, 3)},
    "resnet101": {"block": Bottleneck, "blocks": (3, 4, 23, 3)},
    "resnext101_32x8d": {"block": Bottleneck, "blocks": (3, 4, 23, 3), "groups": 32, "group_width": 8},
    "resnext101_32x16d": {"block": Bottleneck, "blocks": (3, 4, 23, 3), "groups": 32, "group_width": 16},
    # The "R-50" of detectron2: the stride in the 1x1 convolutions, and batch norms that are frozen (see `build`).
    "detectron2_resnet50": {"block": Bottleneck, "blocks": (3, 4, 6, 3), "stride_in_1x1": True},
}


class ResNet(nnx.Module):
    """A residual network without a classifier.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        blocks: blocks of the four stages.
        width: channels of the stem and the first stage, 64 in the papers.
        stem: "imagenet" (7x7 stride 2, then 3x3 max-pooling stride 2) or "cifar" (3x3 stride 1).
        zero_init_last_bn: each block's last norm starts at scale 0 (Goyal et al. 2017, Sec. 5.1).
        norm: from a number of channels to a batch norm.
        dtype: type of activations and products.
        rngs: source of the initial weights.
        remat: stages, 1 to 4, whose activations are recomputed in the backward pass.
        **block_settings: what else the blocks take.
    """

    feature_layer = "layer4, mean over height and width"

    def __init__(
        self,
        *,
        block: Callable[..., BasicBlock | Bottleneck],
        blocks: tuple[int, int, int, int],
        width: int,
        stem: str,
        zero_init_last_bn: bool,
        norm: Norm,
        dtype: str,
        rngs: nnx.Rngs,
        remat: tuple[int, ...] = (),
        **block_settings: Any,
    ):
        self.stem = stem
        self.dtype = dtype
        self.remat = remat
        kernel_size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = Conv(3, width, kernel_size, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = norm(width)
        stages, self.feature_dim = make_stages(
            block,
            blocks,
            width,
            norm=norm,
            last_scale=0.0 if zero_init_last_bn else 1.0,
            dtype=dtype,
            rngs=rngs,
            **block_settings,
        )
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encode normalized images.

        Args:
            images: float32 [B, H, W, 3].
            train: normalize by the batch's statistics and update the running ones.

        Returns:
            The features, float32 [B, D]: the mean over height and width of the last stage; and the intermediates:
            "features" again, and "feature_map", `dtype` [B, h, w, D].
        """
        x = jax.nn.relu(self.bn1(self.conv1(images), train=train))
        if self.stem == "imagenet":
            x = max_pool(x)
        x = run_stages((self.layer1, self.layer2, self.layer3, self.layer4), x, train=train, remat=self.remat)
        features = x.astype(jnp.float32).mean((1, 2))
        return features, {"features": features, "feature_map": x}


def make_stages(
    block: Callable[..., Any], blocks: tuple[int, ...], width: int, **settings: Any
) -> tuple[list[nnx.List], int]:
    """Build the stages of a ResNet. Each is twice as wide as the previous one and, from the second on, half as high.

    Args:
        block: from numbers of input and inner channels to a block, which has an `expansion`.
        blocks: how many blocks each stage has.
        width: channels of the stem's output and inside the first stage.
        **settings: what else the blocks take.

    Returns:
        The stages, and the channels of the last one's output.
    """
    in_channels, stages = width, []
    for stage, length in enumerate(blocks):
        channels = width * 2**stage
        layer: nnx.List = nnx.List([])
        for index in range(length):
            stride = 2 if stage > 0 and index == 0 else 1
            layer.append(block(in_channels, channels, stride=stride, **settings))
            in_channels = channels * block.expansion  # type: ignore[attr-defined]
        stages.append(layer)
    return stages, in_channels


def run_stages(layers: Iterable[nnx.List], x: jax.Array, *, train: bool, remat: tuple[int, ...]) -> jax.Array:
    """Run an encoder's stages, those in `remat` so that their activations are computed again in the backward pass."""
    for stage, layer in enumerate(layers, start=1):
        run = nnx.remat(_stage, static_argnums=2) if stage in remat else _stage
        x = run(layer, x, train)
    return x


def _stage(layer: nnx.List, x: jax.Array, train: bool) -> jax.Array:
    for block in layer:
        x = block(x, train=train)
    return x
