"""CLIP's modified ResNet (Radford et al. 2021, Sec. 2.4), with the names of the authors' own code.

It differs from a ResNet in its stem of three convolutions, in average pools wherever a ResNet strides, and in its last
pool, which is attention.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vise_jax.errors import UserError
from vise_jax.models import initial
from vise_jax.models.conv import Conv
from vise_jax.models.resnet import Norm, make_stages, run_stages, shortcut

# Total stride of the feature map, and the image side of the attention pool's positions.
_STRIDE = 32
_IMAGE_SIZE = 224


class CLIPResNet(nnx.Module):
    """CLIP's image encoder without its text half.

    Args:
        blocks: blocks of the four stages.
        width: channels of the first stage, even: 64 in RN50. Features have 16 times as many, heads of attention 64.
        zero_init_last_bn: each block's last norm starts at scale 0, as the authors' do.
        norm: from a number of channels to a batch norm.
        dtype: type of activations and products; the attention pool computes in float32.
        rngs: source of the initial weights.
        remat: stages, 1 to 4, whose activations are recomputed in the backward pass.
    """

    feature_layer = "attnpool"

    def __init__(
        self,
        *,
        blocks: tuple[int, int, int, int],
        width: int,
        zero_init_last_bn: bool,
        norm: Norm,
        dtype: str,
        rngs: nnx.Rngs,
        remat: tuple[int, ...] = (),
    ):
        self.remat = remat
        self.conv1 = Conv(3, width // 2, 3, stride=2, dtype=dtype, rngs=rngs)
        self.bn1 = norm(width // 2)
        self.conv2 = Conv(width // 2, width // 2, 3, dtype=dtype, rngs=rngs)
        self.bn2 = norm(width // 2)
        self.conv3 = Conv(width // 2, width, 3, dtype=dtype, rngs=rngs)
        self.bn3 = norm(width)
        stages, in_channels = make_stages(
            _Bottleneck,
            blocks,
            width,
            norm=norm,
            last_scale=0.0 if zero_init_last_bn else 1.0,
            dtype=dtype,
            rngs=rngs,
        )
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.feature_dim = 16 * width
        self.attnpool = _AttentionPool(in_channels, self.feature_dim, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encode normalized images.

        Args:
            images: float32 [B, 224, 224, 3].
            train: normalize by the batch's statistics and update the running ones.

        Returns:
            The features, float32 [B, D], which the attention pool makes; and the intermediates: "features" again, and
            "feature_map", `dtype` [B, 7, 7, 2 D], the output of the last stage.

        Raises:
            UserError: images of another size, for which the attention pool has no positions.
        """
        if images.shape[1:3] != (_IMAGE_SIZE, _IMAGE_SIZE):
            raise UserError(
                f"CLIP's attention pool is made for images of {_IMAGE_SIZE}x{_IMAGE_SIZE} pixels, not "
                f"{images.shape[1]}x{images.shape[2]}: set image_size to {_IMAGE_SIZE}."
            )
        x = images
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = jax.nn.relu(norm(conv(x), train=train))
        x = _average_pool(x)
        x = run_stages((self.layer1, self.layer2, self.layer3, self.layer4), x, train=train, remat=self.remat)
        features = self.attnpool(x)
        return features, {"features": features, "feature_map": x}


class _Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; a stride is an average pool before the last and in the shortcut."""

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, norm: Norm, last_scale: float, dtype: str, rngs: nnx.Rngs
    ):
        out = 4 * channels
        self.conv1 = Conv(in_channels, channels, 1, dtype=dtype, rngs=rngs)
        self.bn1 = norm(channels)
        self.conv2 = Conv(channels, channels, 3, dtype=dtype, rngs=rngs)
        self.bn2 = norm(channels)
        self.conv3 = Conv(channels, out, 1, dtype=dtype, rngs=rngs)
        self.bn3 = norm(out, initial_scale=last_scale)
        same = stride == 1 and in_channels == out
        self.downsample = None if same else nnx.List([Conv(in_channels, out, 1, dtype=dtype, rngs=rngs), norm(out)])
        self.stride = stride

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = jax.nn.relu(self.bn2(self.conv2(y), train=train))
        if self.stride > 1:
            x, y = _average_pool(x), _average_pool(y)
        y = self.bn3(self.conv3(y), train=train)
        return jax.nn.relu(y + shortcut(self.downsample, x, train))


class _AttentionPool(nnx.Module):
    """Multi-head attention (heads of 64 channels) whose one query is the mean of the feature map."""

    def __init__(self, channels: int, out_channels: int, *, rngs: nnx.Rngs):
        normal = initial.normal(channels**-0.5)
        positions = (_IMAGE_SIZE // _STRIDE) ** 2 + 1
        self.positional_embedding = nnx.Param(normal(rngs.params(), (positions, channels), jnp.float32))
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = (
            nnx.Linear(channels, out, kernel_init=normal, rngs=rngs)
            for out in (channels, channels, channels, out_channels)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map a feature map [B, h, w, C] to float32 [B, out_channels]."""
        batch, channels = x.shape[0], x.shape[-1]
        tokens = x.reshape(batch, -1, channels).astype(jnp.float32)
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + self.positional_embedding[...][None]

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(batch, -1, channels // 64, 64)

        query, keys, values = heads(self.q_proj(tokens[:, :1])), heads(self.k_proj(tokens)), heads(self.v_proj(tokens))
        attention = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, keys) / 8.0, axis=-1)
        pooled = jnp.einsum("bhqk,bkhd->bqhd", attention, values).reshape(batch, channels)
        return self.c_proj(pooled)


def _average_pool(x: jax.Array) -> jax.Array:
    """Average 2x2 pixels; height and width are even."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
