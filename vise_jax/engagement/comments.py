"""phi_C: comments as vectors. TF-IDF over tokens, then LSA, since the paper's own embeddings are not public (Sec. 3.2).

Everything here works on comments that are masked and split into tokens; one comment is one document.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
from ml_collections import ConfigDict

from vise_jax.engagement.tokens import tokenize
from vise_jax.engagement.vectors import unit_rows
from vise_jax.errors import UserError

__all__ = ["Lsa", "choose_vocabulary", "fit_lsa", "sample_comments", "tokenize"]


def sample_comments(comments: Sequence[str], max_comments: int, seed: int, post_id: str) -> list[str]:
    """Draw at most `max_comments` of a post's comments, in their order (Sec. 3.2: at most 100).

    The draw follows from (seed, post id) alone: other posts, workers and versions of Python don't change it.
    """
    if len(comments) <= max_comments:
        return list(comments)

    def rank(index: int) -> bytes:
        return hashlib.blake2b(f"{seed} {index} {post_id}".encode(), person=b"comments", digest_size=16).digest()

    return [comments[index] for index in sorted(sorted(range(len(comments)), key=rank)[:max_comments])]


def choose_vocabulary(document_counts: Counter[str], min_count: int, max_size: int) -> list[str]:
    """The tokens that at least `min_count` comments hold, the most frequent first, equals in alphabetical order."""
    frequent = [(token, count) for token, count in document_counts.items() if count >= min_count]
    return [token for token, _ in sorted(frequent, key=lambda item: (-item[1], item[0]))[:max_size]]


@dataclass(frozen=True)
class Lsa:
    """A fitted comment encoder.

    Attributes:
        vocabulary: tokens, V of them.
        idf: float32 [V], ln((1 + comments) / (1 + comments with the token)) + 1.
        projection: float32 [V, D], the right singular vectors of the fitted comments' TF-IDF rows.
    """

    vocabulary: list[str]
    idf: np.ndarray
    projection: np.ndarray

    @cached_property
    def _index(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.vocabulary)}

    def encode(self, documents: Sequence[Sequence[str]]) -> np.ndarray:
        """phi_C of each tokenised comment.

        Returns:
            float32 [N, D], rows of length 1; a row of zeros where a comment holds no token of the vocabulary.
        """
        return unit_rows(_tfidf(documents, self._index, self.idf) @ self.projection)


def fit_lsa(documents: Sequence[Sequence[str]], labels: ConfigDict) -> Lsa:
    """Fit vocabulary, IDF and projection on tokenised comments.

    Where the comments or the vocabulary are fewer than `labels.comment_dim`, the projection has as many dimensions
    as they are: more can't hold anything.

    Raises:
        UserError: no token is in `labels.min_comment_count` comments.
    """
    # Scikit-learn takes longer to import than a labeler to load.
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    document_counts: Counter[str] = Counter()
    for document in documents:
        document_counts.update(set(document))
    vocabulary = choose_vocabulary(document_counts, labels.min_comment_count, labels.max_vocabulary)
    if not vocabulary:
        raise UserError(
            f"None of the {len(document_counts):,} tokens of {len(documents):,} comments is in "
            f"labels.min_comment_count={labels.min_comment_count} comments: give more posts, or lower that key."
        )
    counts = np.array([document_counts[token] for token in vocabulary], np.float64)
    idf = (np.log((1 + len(documents)) / (1 + counts)) + 1).astype(np.float32)
    rows = normalize(_tfidf(documents, {token: number for number, token in enumerate(vocabulary)}, idf))
    # Comments without a known token are zeros to the SVD, and would only blur how many dimensions there can be.
    rows = rows[np.diff(rows.indptr) > 0]
    svd = TruncatedSVD(min(labels.comment_dim, *rows.shape), random_state=labels.seed)
    with np.errstate(invalid="ignore"):  # the share of variance of a single comment, which nobody asks for
        svd.fit(rows)
    return Lsa(vocabulary, idf, np.ascontiguousarray(svd.components_.T, np.float32))


def _tfidf(documents: Iterable[Sequence[str]], index: dict[str, int], idf: np.ndarray) -> scipy.sparse.csr_matrix:
    """Counts times IDF: float32 [N, V]."""
    columns: list[int] = []
    ends = [0]
    for document in documents:
        columns.extend(index[token] for token in document if token in index)
        ends.append(len(columns))
    indices = np.array(columns, np.int32)
    rows = scipy.sparse.csr_matrix((idf[indices], indices, np.array(ends)), shape=(len(ends) - 1, len(idf)))
    rows.sum_duplicates()
    return rows
