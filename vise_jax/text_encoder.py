"""The text half of the encoder artifact: a transformer's weights with its tokenizer.

The directory is that of `vise_jax.encoder`. `tokenizer` takes the place of `preprocessing` in `encoder.json`: the
SHA-256 of `tokenizer.json`, which lies beside it, and the number of tokens that a text is truncated to.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from vise_jax import arrays, artifact, model_card, models, variables
from vise_jax.encoder import FORMAT_VERSION, MADE_BY, MODEL_CARD, WEIGHTS, read_description, read_weights
from vise_jax.errors import UserError
from vise_jax.text.subword import SubwordTokenizer

_TOKENIZER = "tokenizer.json"


# Arrays have no truth value: two instances are equal if they are the same object.
@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder: architecture, weights and tokenizer.

    Args:
        architecture: arguments of `vise_jax.models.build`, fully resolved.
        weights: array by path, exactly those of the architecture, see `vise_jax.variables`.
        tokenizer: content of a `tokenizer.json` of the library `tokenizers`.
        max_tokens: number of tokens, special ones included, that a text is truncated to.
        provenance: where the weights come from, any JSON.
        license: under which the weights may be used.

    Raises:
        UserError: the weights don't fit the architecture, or the tokenizer doesn't fit the weights.
    """

    architecture: dict[str, Any]
    weights: dict[str, jax.Array] = field(repr=False)
    tokenizer: bytes = field(repr=False)
    max_tokens: int
    provenance: dict[str, Any]
    license: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", models.resolve(**self.architecture))
        if self.architecture["name"] != models.TEXT_ENCODER:
            raise UserError(
                f"The architecture {self.architecture['name']} encodes images, not text: give a text encoder."
            )
        if differences := variables.differences(variables.expected(self.architecture), self.weights):
            raise UserError(
                f"The architecture {self.architecture} doesn't fit, give that of the weights: {differences}."
            )
        limit = variables.abstract_model(self.architecture).max_tokens
        if not 2 <= self.max_tokens <= limit:
            raise UserError(f"The text encoder truncates to {self.max_tokens} tokens: choose 2 to {limit}.")
        self.at(self.max_tokens)

    @classmethod
    def load(cls, directory: str | Path) -> "TextEncoder":
        """Read a text encoder that `save` wrote.

        Raises:
            UserError: no text encoder there; or weights or a tokenizer that are damaged.
        """
        directory = artifact.location(directory)
        description = read_description(directory, "text")
        with artifact.local_copy(directory) as copy:
            return cls._load(copy, description)

    @classmethod
    def _load(cls, directory: Path, description: dict[str, Any]) -> "TextEncoder":
        about = description["tokenizer"]
        try:
            tokenizer, max_tokens = (directory / _TOKENIZER).read_bytes(), int(about["max_tokens"])
            is_same = hashlib.sha256(tokenizer).hexdigest() == about["sha256"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{directory / _TOKENIZER} can't be read: write the directory again with {MADE_BY}."
            ) from error
        if not is_same:
            raise UserError(
                f"The files of the tokenizer in {directory} are not those that encoder.json was written for: write "
                f"the directory again with {MADE_BY}."
            )
        return cls(
            description["architecture"],
            read_weights(directory, description),
            tokenizer,
            max_tokens,
            description["provenance"],
            description["license"],
        )

    def save(self, directory: str | Path) -> None:
        """Write the encoder to a new directory, atomically.

        Raises:
            UserError: the directory exists and holds something.
        """
        weights = {key: np.asarray(value) for key, value in self.weights.items()}
        with artifact.atomic_directory(artifact.location(directory), "encoder.json") as temporary:
            variables.write(temporary / WEIGHTS, weights)
            (temporary / _TOKENIZER).write_bytes(self.tokenizer)
            description = {
                "format_version": FORMAT_VERSION,
                "modality": "text",
                "architecture": self.architecture,
                "tokenizer": {"sha256": hashlib.sha256(self.tokenizer).hexdigest(), "max_tokens": self.max_tokens},
                "provenance": self.provenance,
                "license": self.license,
                "feature_dim": self.feature_dim,
                "feature_layer": f"last layer, {self.architecture['pooling']} pooling",
                "sha256": self._sha256,
            }
            artifact.write_json(temporary / "encoder.json", description)
            artifact.write_text(temporary / MODEL_CARD, self.card())

    def card(self) -> str:
        """Return the model card in Markdown."""
        pooling = self.architecture["pooling"]
        return model_card.render(
            architecture=self.architecture,
            modality="text",
            inputs=f"Texts: at most {self.max_tokens:,} tokens of tokenizer.json; {pooling} pooling of the last layer.",
            provenance=self.provenance,
            license=self.license,
            feature_dim=self.feature_dim,
            parameters=sum(value.size for value in self.weights.values()),
            sha256=self._sha256,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the features: architecture, weights and tokenizer."""
        tokenizer = hashlib.sha256(self.tokenizer).hexdigest()
        return artifact.fingerprint([self.architecture, tokenizer, self.max_tokens, self._sha256])

    @cached_property
    def _sha256(self) -> str:
        """SHA-256 (hex) of the weights."""
        return arrays.sha256(self.weights)

    @property
    def feature_dim(self) -> int:
        """Number of features of a text, D."""
        return self.architecture["width"]

    def at(self, max_tokens: int) -> SubwordTokenizer:
        """Return the tokenizer, truncating to `max_tokens`, or to the encoder's own number if that is smaller."""
        return SubwordTokenizer(self.tokenizer, min(max_tokens, self.max_tokens), self.architecture["vocabulary"])

    def features(
        self,
        texts: Sequence[str],
        batch_size: int = 64,
        *,
        max_tokens: int = 1 << 30,
        after_each: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Compute the features of texts, in full float32 on accelerators too.

        Texts of similar length go through the network together, so that little padding is computed.

        Args:
            texts: N of them.
            batch_size: number of texts that go through the network at a time.
            max_tokens: see `at`.
            after_each: called with the number of texts of each batch.

        Returns:
            float32 [N, D].
        """
        tokenizer = self.at(max_tokens)
        rows = tokenizer.encode(texts)
        order = np.argsort([len(row) for row in rows], kind="stable")[::-1]
        features = np.empty((len(rows), self.feature_dim), np.float32)
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            # The last batch is filled up with its first text, so that each length is compiled for one batch size.
            filled = np.concatenate([chosen, np.repeat(chosen[:1], batch_size - len(chosen))])
            tokens, mask = tokenizer.pad([rows[index] for index in filled])
            features[chosen] = np.asarray(self._forward(self.weights, tokens, mask))[: len(chosen)]
            after_each(len(chosen))
        return features

    def model(self) -> nnx.Module:
        """Return the network with these weights; its variables are its own."""
        return variables.with_weights(self.architecture, self.weights)

    @cached_property
    def _forward(self) -> Callable[[dict[str, jax.Array], np.ndarray, np.ndarray], jax.Array]:
        def forward(weights: dict[str, jax.Array], tokens: jax.Array, mask: jax.Array) -> jax.Array:
            # Without it, float32 products are TF32 on GPUs and bfloat16 on TPUs.
            with jax.default_matmul_precision("highest"):
                return variables.with_weights(self.architecture, weights)(tokens, mask)[0]

        return jax.jit(forward)
