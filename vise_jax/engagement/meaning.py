"""Descriptions of clusters: distinctive words and emoji of comment clusters, profiles of reaction clusters."""

from typing import Any

import numpy as np
import regex

from vise_jax.engagement.labeler import Labeler

_WORDS = 10
_EMOJI = 8
_IS_EMOJI = regex.compile(r"\p{Extended_Pictographic}|\p{Regional_Indicator}|\p{Emoji_Modifier}|\u20e3")
_PRIVATE = regex.compile(r"\p{Co}")


def terms(labeler: Labeler, number: int) -> dict[str, list[list[Any]]]:
    """Return the distinctive terms of a comment cluster, the most distinctive first.

    Returns:
        `words` and `emoji`: pairs of a term and its weight, see `Labeler.comment_term_weights`.
    """
    words: list[list[Any]] = []
    emoji: list[list[Any]] = []
    if labeler.comments is not None:
        for index, weight in zip(
            labeler.comment_terms[number].tolist(), labeler.comment_term_weights[number].tolist(), strict=True
        ):
            if index >= 0:
                term = labeler.comments.vocabulary[index]
                (emoji if _IS_EMOJI.search(term) else words).append([_visible(term), round(weight, 4)])
    return {"words": words[:_WORDS], "emoji": emoji[:_EMOJI]}


def profiles(centroids: np.ndarray) -> np.ndarray:
    """Return the centroids of reaction clusters as fractions of the buttons.

    Args:
        centroids: float32 [K, 5], means of counts of unit length: none is negative, and some are above zero.

    Returns:
        float64 [K, 5], rows that sum to 1.
    """
    shares = centroids.astype(np.float64)
    return shares / shares.sum(axis=1, keepdims=True)


def _visible(term: str) -> str:
    """Replace emoji of old phones, which no font has, by their code points."""
    return _PRIVATE.sub(lambda match: f"U+{ord(match[0]):04X}", term)
