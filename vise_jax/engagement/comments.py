"""phi_C: comments as vectors: the TF-IDF-weighted mean of their tokens' vectors, of unit length (Sec. 3.2).

The paper's own embeddings are not public. One comment is one document; nothing sees it before `privacy.mask` has.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import scipy.sparse
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.similarity import unit_rows
from vise_jax.text import static_embeddings, word_vectors
from vise_jax.text.tokens import Splitter

# Comments encoded at a time: few enough for a core's cache, and for what lies between a comment and its row.
_BATCH = 1024


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


def tokenizer(labels: ConfigDict) -> Callable[[Sequence[str]], list[list[str]]]:
    """What splits raw comments into tokens for the encoder of `labels.comment_encoder`, before anything is fitted.

    Raises:
        UserError: a static model whose tokenizer is missing or damaged.
    """
    if labels.comment_encoder == "static":
        return static_embeddings.Splitter(static_embeddings.read_tokenizer(labels.vectors)).split
    return Splitter().split


def vectors_sha256(labels: ConfigDict) -> dict[str, str]:
    """SHA-256 (hex) of the files that `labels.vectors` names and that decide phi, by their names; none for LSA.

    Raises:
        UserError: one of them can't be read.
    """
    path = Path(labels.vectors)
    files = {"lsa": [], "word_vectors": [path], "static": static_embeddings.files(labels.vectors)}[
        labels.comment_encoder
    ]
    try:
        return {file.name: artifact.file_sha256(file) for file in files}
    except OSError as error:
        raise UserError(f"labels.vectors={path} can't be read ({error.strerror}): check that path.") from error


# Arrays have no truth value: two instances are equal if they are the same object.
@dataclass(frozen=True, eq=False)
class CommentEncoder:
    """A fitted comment encoder.

    Attributes:
        kind: `labels.comment_encoder`.
        vocabulary: tokens, V of them.
        weights: float32 [V], of a token's every occurrence: its IDF,
            ln((1 + comments) / (1 + comments with the token)) + 1, or 1 with `labels.token_weights="none"`.
        vectors: float32 [V, D]; of LSA the right singular vectors of the fitted comments' TF-IDF rows, else what the
            file of `labels.vectors` says.
        tokenizer: of a static model, as a `tokenizer.json`; empty where `tokens.tokenize` makes the tokens.
        coverage: share of the tokens of the fitted comments that the vocabulary holds, each once a comment.
    """

    kind: str
    vocabulary: list[str]
    weights: np.ndarray
    vectors: np.ndarray
    tokenizer: bytes = b""
    coverage: float = 1.0

    @cached_property
    def _split(self) -> Callable[[Sequence[str]], list[list[int]]]:
        index = _index(self.vocabulary)
        return (static_embeddings.Splitter(self.tokenizer, index) if self.tokenizer else Splitter(index)).split

    def tfidf(self, comments: Sequence[str]) -> scipy.sparse.csr_matrix:
        """Counts times weights of each raw comment's tokens: float32 [N, V]."""
        return _tfidf(self._split(comments), self.weights)

    def encode(self, comments: Sequence[str]) -> np.ndarray:
        """phi_C of each raw comment.

        Returns:
            float32 [N, D], rows of length 1; a row of zeros where a comment holds no token of the vocabulary.
        """
        phi = np.empty((len(comments), self.vectors.shape[1]), np.float32)
        for start in range(0, len(comments), _BATCH):
            rows = slice(start, start + _BATCH)
            phi[rows] = unit_rows(self.tfidf(comments[rows]) @ self.vectors)
        return phi


def fit_encoder(
    document_counts: Counter[str], documents: int, sample: Sequence[str], labels: ConfigDict
) -> CommentEncoder:
    """Fit the encoder that `labels.comment_encoder` names.

    Args:
        document_counts: how many comments hold each token of `tokenizer(labels)`; counts of parts can be added.
        documents: how many comments that were.
        sample: raw comments, as many of them as the SVD of LSA is to see.
        labels: the `labels` section of a config.

    Raises:
        UserError: no token is in `labels.min_comment_count` comments, or none of these has a vector; a bad
            `labels.vectors`.
    """
    vocabulary = choose_vocabulary(document_counts, labels.min_comment_count, labels.max_vocabulary)
    if not vocabulary:
        raise UserError(
            f"None of the {len(document_counts):,} tokens of {documents:,} comments is in "
            f"labels.min_comment_count={labels.min_comment_count} comments: give more posts, or lower that key."
        )
    tokenizer_json = b""
    if labels.comment_encoder == "lsa":
        weights = _weights(vocabulary, document_counts, documents, labels)
        vectors = _lsa(vocabulary, weights, sample, labels)
    else:
        if labels.comment_encoder == "static":
            tokenizer_json = static_embeddings.read_tokenizer(labels.vectors)
            vectors, found = static_embeddings.read_vectors(labels.vectors, _index(vocabulary))
        else:
            vectors, found = word_vectors.read(labels.vectors, _index(vocabulary))
        if not found.any():
            raise UserError(
                f"labels.vectors={labels.vectors} holds none of the {len(vocabulary):,} tokens of the comments: name "
                "vectors of their language."
            )
        vocabulary, vectors = [vocabulary[row] for row in np.flatnonzero(found)], vectors[found]
        weights = _weights(vocabulary, document_counts, documents, labels)
    coverage = sum(document_counts[token] for token in vocabulary) / document_counts.total()
    return CommentEncoder(labels.comment_encoder, vocabulary, weights, vectors, tokenizer_json, coverage)


def _index(vocabulary: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(vocabulary)}


def _weights(vocabulary: list[str], document_counts: Counter[str], documents: int, labels: ConfigDict) -> np.ndarray:
    """float32 [V]: IDF as scikit-learn smooths it, or ones."""
    if labels.token_weights == "none":
        return np.ones(len(vocabulary), np.float32)
    counts = np.array([document_counts[token] for token in vocabulary], np.float64)
    return (np.log((1 + documents) / (1 + counts)) + 1).astype(np.float32)


def _lsa(vocabulary: list[str], weights: np.ndarray, sample: Sequence[str], labels: ConfigDict) -> np.ndarray:
    """The right singular vectors of the sample's TF-IDF rows: float32 [V, D].

    D is `labels.comment_dim`; where the comments or the vocabulary are fewer, as many as they are: more dimensions
    can't hold anything.
    """
    # Scikit-learn takes longer to import than a labeler to load.
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    split = Splitter(_index(vocabulary)).split
    batches = [sample[start : start + _BATCH] for start in range(0, len(sample), _BATCH)] or [[]]
    rows = scipy.sparse.vstack([_tfidf(split(batch), weights) for batch in batches], format="csr")
    # Comments without a known token are zeros to the SVD, and would only blur how many dimensions there can be.
    rows = rows[np.diff(rows.indptr) > 0]
    if not rows.shape[0]:
        raise UserError(
            f"None of the {len(sample):,} comments that labels.max_fit_comments={labels.max_fit_comments} lets the SVD "
            "see holds a token of the vocabulary: raise that key."
        )
    if rows.shape[1] == 1:  # which scikit-learn refuses
        return np.ones((1, 1), np.float32)
    svd = TruncatedSVD(min(labels.comment_dim, *rows.shape), random_state=labels.seed)
    with np.errstate(invalid="ignore"):  # the share of variance of a single comment, which nobody asks for
        svd.fit(normalize(rows))
    return np.ascontiguousarray(svd.components_.T, np.float32)


def _tfidf(rows: list[list[int]], weights: np.ndarray) -> scipy.sparse.csr_matrix:
    """Counts times weights, float32 [N, V], of rows of token numbers."""
    ends = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=ends[1:])
    columns = np.fromiter(chain.from_iterable(rows), np.int32, ends[-1])
    matrix = scipy.sparse.csr_matrix((weights[columns], columns, ends), shape=(len(rows), len(weights)))
    matrix.sum_duplicates()
    return matrix
