"""Subword tokenization by the `tokenizers` library."""

from collections.abc import Sequence

import numpy as np

from vise_jax.errors import UserError
from vise_jax.text import tokenizer_files

# Batches are padded to a multiple of this number of tokens, so that few lengths are compiled.
_MULTIPLE = 16


class SubwordTokenizer:
    """Map texts to token ids.

    Args:
        content: of a `tokenizer.json`.
        max_tokens: longer texts are truncated; special tokens are kept.
        vocabulary: number of tokens of the encoder.

    Raises:
        UserError: the tokenizer is damaged, or has tokens that the encoder doesn't know.
    """

    def __init__(self, content: bytes, max_tokens: int, vocabulary: int):
        self._tokenizer = tokenizer_files.parse(content, max_tokens, _damaged)
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= vocabulary:
            raise UserError(
                f"The tokenizer has {largest + 1:,} tokens, but the weights know {vocabulary:,}: take tokenizer.json "
                "and weights from the same model."
            )
        self._max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids of each text, int32 [L], with special tokens."""
        with tokenizer_files.explained(_damaged):
            encodings = self._tokenizer.encode_batch_fast(list(texts))
        return [np.array(one.ids, np.int32) for one in encodings]

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Return the number of texts that are truncated."""
        with tokenizer_files.explained(_damaged):
            return sum(bool(one.overflowing) for one in self._tokenizer.encode_batch(list(texts)))

    def pad(self, rows: Sequence[np.ndarray], length: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Pad token ids to one length.

        Args:
            rows: int32 [L_i] each.
            length: number of columns, L; 0 = the longest row, rounded up to a multiple of 16 and at most `max_tokens`.

        Returns:
            ids int32 [N, L], 0 for padding; and mask bool [N, L].
        """
        longest = max(map(len, rows), default=1)
        columns = length or min(-(-longest // _MULTIPLE) * _MULTIPLE, self._max_tokens)
        ids, mask = np.zeros((len(rows), columns), np.int32), np.zeros((len(rows), columns), bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)], mask[number, : len(row)] = row, True
        return ids, mask


def _damaged(reason: str) -> UserError:
    return UserError(f"The text encoder's tokenizer.json is damaged ({reason}): copy it again.")
