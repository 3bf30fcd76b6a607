"""Text encoders: RoBERTa and the BERT family, with the names of Hugging Face's weights."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vise_jax.models import initial


class TextTransformer(nnx.Module):
    """A bidirectional transformer (Devlin et al. 2019, Liu et al. 2019) without a head.

    Args:
        layers: number of layers.
        width: channels of the hidden states.
        attention_heads: number of attention heads; divides `width`.
        intermediate_width: channels inside a feed-forward block.
        vocabulary: number of tokens.
        positions: number of position embeddings.
        segments: number of token-type embeddings, of which the first is used.
        first_position: index of the first token's position; RoBERTa's are counted from its padding token's index + 1.
        epsilon: of the layer norms.
        pooling: "mean" over the tokens, or "first": the hidden state of the first token.
        unit_length: divide features by their L2 norm.
        dtype: of activations and matrix products; layer norms and softmax compute in float32.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        attention_heads: int,
        intermediate_width: int,
        vocabulary: int,
        positions: int,
        segments: int,
        first_position: int,
        epsilon: float,
        pooling: str,
        unit_length: bool,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.embeddings = _Embeddings(vocabulary, positions, segments, first_position, width, epsilon, dtype, rngs)
        self.encoder = _Layers(layers, width, attention_heads, intermediate_width, epsilon, dtype, rngs)
        self.feature_dim = width
        self.pooling = pooling
        self.unit_length = unit_length
        # Positions before the first one are not used.
        self.max_tokens = positions - first_position

    def __call__(
        self, tokens: jax.Array, mask: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encode token ids.

        Args:
            tokens: int32 [B, L]; padding follows the tokens of a text.
            mask: bool [B, L], False for padding.
            train: for the signature of the image encoders; there is no dropout.

        Returns:
            The features, float32 [B, D]; and the intermediates: "features" again, and "hidden_states", `dtype`
            [B, L, D], the output of the last layer.
        """
        hidden = self.encoder(self.embeddings(tokens), mask)
        states = hidden.astype(jnp.float32)
        if self.pooling == "first":
            features = states[:, 0]
        else:
            present = mask[:, :, None].astype(jnp.float32)
            features = (states * present).sum(1) / jnp.maximum(present.sum(1), 1)
        if self.unit_length:
            features = features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        return features, {"features": features, "hidden_states": hidden}


class _Embeddings(nnx.Module):
    def __init__(
        self,
        vocabulary: int,
        positions: int,
        segments: int,
        first_position: int,
        width: int,
        epsilon: float,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        normal = initial.normal(0.02)
        self.word_embeddings, self.position_embeddings, self.token_type_embeddings = (
            nnx.Embed(count, width, embedding_init=normal, rngs=rngs) for count in (vocabulary, positions, segments)
        )
        self.LayerNorm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.first_position = first_position
        self.dtype = dtype

    def __call__(self, tokens: jax.Array) -> jax.Array:
        positions = self.first_position + jnp.arange(tokens.shape[1])
        added = self.position_embeddings(positions) + self.token_type_embeddings(jnp.zeros_like(positions))
        return self.LayerNorm(self.word_embeddings(tokens) + added[None]).astype(self.dtype)


class _Layers(nnx.Module):
    def __init__(
        self, layers: int, width: int, heads: int, intermediate: int, epsilon: float, dtype: str, rngs: nnx.Rngs
    ):
        self.layer = nnx.List([_Layer(width, heads, intermediate, epsilon, dtype, rngs) for _ in range(layers)])

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class _Layer(nnx.Module):
    """Self-attention and a feed-forward block, each with a residual and a layer norm after it."""

    def __init__(self, width: int, heads: int, intermediate: int, epsilon: float, dtype: str, rngs: nnx.Rngs):
        self.attention = _Attention(width, heads, epsilon, dtype, rngs)
        self.intermediate = _Dense(width, intermediate, dtype, rngs)
        self.output = _Output(intermediate, width, epsilon, dtype, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.attention(x, mask)
        return self.output(jax.nn.gelu(self.intermediate.dense(x), approximate=False), x)


class _Attention(nnx.Module):
    def __init__(self, width: int, heads: int, epsilon: float, dtype: str, rngs: nnx.Rngs):
        self.self = _SelfAttention(width, heads, dtype, rngs)
        self.output = _Output(width, width, epsilon, dtype, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        return self.output(self.self(x, mask), x)


class _SelfAttention(nnx.Module):
    def __init__(self, width: int, heads: int, dtype: str, rngs: nnx.Rngs):
        self.query, self.key, self.value = (_linear(width, width, dtype, rngs) for _ in range(3))
        self.heads = heads

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        query, key, value = (
            projection(x).reshape(batch, length, self.heads, width // self.heads)
            for projection in (self.query, self.key, self.value)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) * (width // self.heads) ** -0.5
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, length, width)


class _Output(nnx.Module):
    """A projection, added to the residual and normalized."""

    def __init__(self, channels: int, width: int, epsilon: float, dtype: str, rngs: nnx.Rngs):
        self.dense = _linear(channels, width, dtype, rngs)
        self.LayerNorm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        return self.LayerNorm((self.dense(x) + residual).astype(jnp.float32)).astype(x.dtype)


class _Dense(nnx.Module):
    def __init__(self, channels: int, width: int, dtype: str, rngs: nnx.Rngs):
        self.dense = _linear(channels, width, dtype, rngs)


def _linear(channels: int, width: int, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    linear = functools.partial(nnx.Linear, kernel_init=initial.normal(0.02), rngs=rngs)
    return linear(channels, width, dtype=jnp.dtype(dtype))
