"""A plain ResNet in flax.linen with its training step, as one would write it from Flax's ImageNet example.

Batch norm has the defaults of `nn.BatchNorm` and the statistics of a device; products and activations are bfloat16.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

# Blocks of the four stages, groups, group width.
ENCODERS = {
    "resnet50": ((3, 4, 6, 3), 1, 64),
    "resnet101": ((3, 4, 23, 3), 1, 64),
    "resnext101_32x16d": ((3, 4, 23, 3), 32, 16),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Bottleneck(nn.Module):
    channels: int
    stride: int
    groups: int
    group_width: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner, out = self.channels * self.group_width // 64 * self.groups, self.channels * 4
        y = nn.relu(self.norm()(self.conv(inner, (1, 1))(x)))
        strides = (self.stride, self.stride)
        y = self.conv(inner, (3, 3), strides, padding=1, feature_group_count=self.groups)(y)
        y = self.conv(out, (1, 1))(nn.relu(self.norm()(y)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if x.shape != y.shape:
            x = self.norm()(self.conv(out, (1, 1), strides)(x))
        return nn.relu(x + y)


class VisE(nn.Module):
    name_of_encoder: str
    heads: dict[str, int]

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        blocks, groups, group_width = ENCODERS[self.name_of_encoder]
        conv = functools.partial(nn.Conv, use_bias=False, dtype=jnp.bfloat16)
        norm = functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9, dtype=jnp.bfloat16)
        x = (images.astype(jnp.float32) / 255 - jnp.asarray(MEAN)) / jnp.asarray(STD)
        x = nn.relu(norm()(conv(64, (7, 7), (2, 2), padding=3)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, length in enumerate(blocks):
            for index in range(length):
                stride = 2 if stage and not index else 1
                x = Bottleneck(64 * 2**stage, stride, groups, group_width, conv, norm)(x)
        features = x.mean((1, 2)).astype(jnp.float32)
        return {name: nn.Dense(classes, name=name)(features) for name, classes in self.heads.items()}


def make_step(name: str, heads: dict[str, int], image_size: int, mesh: Mesh) -> tuple[Callable[..., Any], Any]:
    """Return the step of data-parallel training over a mesh, and the shapes of its state (replicated)."""
    model, optimizer = VisE(name, heads), optax.sgd(0.1, momentum=0.9)

    def create() -> tuple[Any, Any, Any]:
        variables = model.init(jax.random.key(0), jnp.zeros((2, image_size, image_size, 3), jnp.uint8))
        return variables["params"], variables["batch_stats"], optimizer.init(variables["params"])

    def loss_of(params: Any, stats: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": stats}
        logits, updates = model.apply(variables, batch["images"], mutable=["batch_stats"])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits["comments"]), batch["comment_labels"], 1)
        weights = batch["comment_weights"] / batch["comment_weights"].sum(1, keepdims=True)
        reactions = optax.softmax_cross_entropy_with_integer_labels(logits["reactions"], batch["reaction_label"])
        return reactions.mean() - (weights * chosen).sum(1).mean(), updates["batch_stats"]

    axis = mesh.axis_names[0]

    def gradients(params: Any, stats: Any, batch: dict[str, jax.Array]) -> tuple[Any, Any]:
        grads, stats = jax.grad(loss_of, has_aux=True)(params, stats, batch)
        return jax.lax.pmean((grads, stats), axis) if mesh.size > 1 else (grads, stats)

    one, many = PartitionSpec(), PartitionSpec(axis)
    if mesh.size > 1:
        gradients = jax.shard_map(
            gradients, mesh=mesh, in_specs=(one, one, many), out_specs=(one, one), check_vma=False
        )

    def step(state: tuple[Any, Any, Any], batch: dict[str, jax.Array]) -> tuple[Any, Any, Any]:
        params, stats, momenta = state
        grads, stats = gradients(params, stats, batch)
        updates, momenta = optimizer.update(grads, momenta, params)
        return optax.apply_updates(params, updates), stats, momenta

    return jax.jit(step, donate_argnums=0), jax.eval_shape(create)
