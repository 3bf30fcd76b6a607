"""Static models, in the directory that model2vec writes: a tokenizer and one vector a token, no network.

`tokenizer.json` is of Hugging Face's `tokenizers`. `model.safetensors` holds `embeddings` [R, D] (or, as
sentence-transformers writes it, `embedding.weight`), and may hold `weights` [V], a factor for each token, and `mapping`
[V], the row of each token where tokens share rows. `config.json` may say after how many tokens a text is cut off.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex
import safetensors.numpy
from safetensors import SafetensorError
from tokenizers import Tokenizer

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.text import tokenizer_files
from vise_jax.text.masking import PLACEHOLDERS, mask

# Tokens of a text that model2vec looks at, where the model doesn't say.
_MAX_TOKENS = 512
_PLACEHOLDER = regex.compile("|".join(PLACEHOLDERS))


class Splitter:
    """Masks comments and splits them by a static model's own tokenizer; placeholders are no tokens.

    With an index (token to number), tokens are given as their numbers, and those that it lacks are dropped.

    Args:
        tokenizer: what `read_tokenizer` gave.
        index: token to number.
    """

    def __init__(self, tokenizer: bytes, index: Mapping[str, int] | None = None):
        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        tokens = _tokens(self._tokenizer)
        self._given: list[Any] = tokens if index is None else [index.get(token) for token in tokens]
        # Where model2vec cuts a text off before it looks for tokens.
        cut = self._tokenizer.truncation
        lengths = [len(token) for token in tokens if token is not None]
        self._characters = cut["max_length"] * int(np.median(lengths)) if cut and lengths else None

    def split(self, comments: Sequence[str]) -> list[list[Any]]:
        """Return the tokens of each raw comment in order, or their numbers."""
        texts = [_PLACEHOLDER.sub(" ", mask(comment))[: self._characters] for comment in comments]
        given = self._given
        with tokenizer_files.explained(_damaged):
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [[given[number] for number in encoding.ids if given[number] is not None] for encoding in encodings]


def files(directory: str) -> list[Path]:
    """Return the files of the directory that are read, `config.json` only if it exists."""
    config = Path(directory) / "config.json"
    return [
        Path(directory) / "model.safetensors",
        Path(directory) / "tokenizer.json",
        *([config] if config.exists() else []),
    ]


def read_tokenizer(directory: str) -> bytes:
    """Return the directory's tokenizer, with the model's truncation, as the content of a `tokenizer.json`.

    Raises:
        UserError: the directory has none, or a damaged one.
    """
    content = _content(directory, "tokenizer.json")
    about = _content(directory, "config.json") if (Path(directory) / "config.json").exists() else b"{}"

    def refuse(reason: str) -> UserError:
        return _unfit(directory, f"tokenizer.json or config.json is damaged ({reason})")

    with tokenizer_files.explained(refuse):
        max_tokens = artifact.from_json(about).get("max_length", _MAX_TOKENS)
    return tokenizer_files.parse(content, max_tokens, refuse).to_str().encode()


def read_vectors(directory: str, wanted: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read the vectors of some tokens, times their weights where the model has any.

    Args:
        directory: the model's directory.
        wanted: tokens by their row, 0 to V - 1.

    Returns:
        float32 [V, D] vectors, zeros for tokens that the model lacks; bool [V], which tokens it has. It lacks its
        own unknown token.

    Raises:
        UserError: the directory's files are missing, damaged or don't fit each other.
    """
    tokenizer = Tokenizer.from_buffer(read_tokenizer(directory))
    tokens = _tokens(tokenizer)
    embeddings, rows, weights = _tensors(directory, len(tokens))
    unknown = _unknown(tokenizer, tokens)
    vectors, known = np.zeros((len(wanted), embeddings.shape[1]), np.float32), np.zeros(len(wanted), bool)
    for number, token in enumerate(tokens):
        row = wanted.get(token)
        if row is not None and token != unknown:
            vectors[row], known[row] = embeddings[rows[number]].astype(np.float32) * weights[number], True
    if not np.isfinite(vectors).all():
        raise _unfit(directory, "model.safetensors holds numbers that are not finite")
    return vectors, known


def _tensors(directory: str, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings [R, D], and the row and the weight of each token."""
    try:
        tensors = safetensors.numpy.load(_content(directory, "model.safetensors"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _unfit(directory, f"model.safetensors is damaged ({error})") from error
    embeddings = tensors.get("embeddings", tensors.get("embedding.weight"))
    if embeddings is None or embeddings.ndim != 2:
        raise _unfit(directory, "model.safetensors holds no embeddings of two dimensions")
    rows = tensors.get("mapping", np.arange(len(embeddings)))
    weights = tensors.get("weights", np.ones(tokens, np.float32))
    if rows.shape != (tokens,) or weights.shape != (tokens,):
        raise _unfit(
            directory,
            f"model.safetensors holds {len(rows):,} rows and {len(weights):,} weights for the {tokens:,} tokens of "
            "tokenizer.json",
        )
    if rows.dtype.kind not in "iu" or not ((rows >= 0) & (rows < len(embeddings))).all():
        raise _unfit(directory, "model.safetensors holds a mapping to rows that it lacks")
    return embeddings, rows, weights


def _tokens(tokenizer: Tokenizer) -> list[Any]:
    """Return tokens by number; None where a number has none."""
    vocabulary = tokenizer.get_vocab()
    tokens: list[str | None] = [None] * (1 + max(vocabulary.values(), default=-1))
    for token, number in vocabulary.items():
        tokens[number] = token
    return tokens


def _unknown(tokenizer: Tokenizer, tokens: list[str]) -> str | None:
    """Return the token that stands for unknown text."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:
        return tokens[model["unk_id"]]
    return model.get("unk_token")


def _content(directory: str, name: str) -> bytes:
    try:
        return (Path(directory) / name).read_bytes()
    except OSError as error:
        raise UserError(
            f"labels.vectors={directory}: its {name} can't be read ({error.strerror}): name a model2vec directory."
        ) from error


def _damaged(reason: str) -> UserError:
    return UserError(f"The tokenizer of the token vectors is damaged ({reason}): copy it again.")


def _unfit(directory: str, what: str) -> UserError:
    return UserError(f"labels.vectors={directory}: its {what}: copy the directory again, or name another one.")
