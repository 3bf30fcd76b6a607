"""phi_C: comments as vectors: the TF-IDF-weighted mean of their tokens' vectors, of unit length (Sec. 3.2).

The paper's own embeddings are not public. One comment is one document; nothing sees it before `privacy.mask` has.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.similarity import unit_rows
from vise_jax.text import static_embeddings, word_vectors
from vise_jax.text.tokens import Splitter
from vise_jax.text_encoder import TextEncoder

# Separates the tokens of a comment, which have no control characters.
SEPARATOR = "\x1f"
# Comments encoded at a time; intermediate results fit a core's cache.
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
    """Return the tokens of at least `min_count` comments, the most frequent first, ties in alphabetical order."""
    frequent = [(token, count) for token, count in document_counts.items() if count >= min_count]
    return [token for token, _ in sorted(frequent, key=lambda item: (-item[1], item[0]))[:max_size]]


def tokenizer(labels: ConfigDict) -> Callable[[Sequence[str]], list[list[str]]]:
    """Return the function that splits raw comments into tokens for `labels.comment_encoder`.

    Raises:
        UserError: a static model whose tokenizer is missing or damaged.
    """
    if labels.comment_encoder == "static":
        return static_embeddings.Splitter(static_embeddings.read_tokenizer(labels.vectors)).split
    return Splitter().split


def vectors_sha256(labels: ConfigDict) -> dict[str, str]:
    """Return the SHA-256 (hex) of each file of `labels.vectors` that decides phi_C, by name; none for LSA.

    Raises:
        UserError: one of them can't be read.
    """
    path = Path(labels.vectors)
    files = {
        "lsa": [],
        "word_vectors": [path],
        "static": static_embeddings.files(labels.vectors),
        # It has the SHA-256 of the weights and of the tokenizer.
        "transformer": [path / "encoder.json"],
    }[labels.comment_encoder]
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
        vectors: float32 [V, D]; of LSA the right singular vectors of the fitted comments' TF-IDF rows, otherwise the
            vectors of `labels.vectors`; [V, 0] with a transformer.
        tokenizer: of a static model, as a `tokenizer.json`; empty where `tokens.tokenize` makes the tokens.
        coverage: fraction of the fitted comments' tokens in the vocabulary; a token counts once per comment.
        transformer: text encoder whose features of unit length are phi_C, or None. Vocabulary and weights are then for
            the distinctive terms of clusters alone.
    """

    kind: str
    vocabulary: list[str]
    weights: np.ndarray
    vectors: np.ndarray
    tokenizer: bytes = b""
    coverage: float = 1.0
    transformer: TextEncoder | None = None

    @property
    def dim(self) -> int:
        """Number of dimensions of phi_C, D."""
        return self.transformer.feature_dim if self.transformer else self.vectors.shape[1]

    @cached_property
    def _split(self) -> Callable[[Sequence[str]], list[list[int]]]:
        index = _index(self.vocabulary)
        return (static_embeddings.Splitter(self.tokenizer, index) if self.tokenizer else Splitter(index)).split

    def tfidf(self, comments: Sequence[str]) -> scipy.sparse.csr_matrix:
        """Return counts times weights of the tokens of raw comments, float32 [N, V]."""
        return _tfidf(self._split(comments), self.weights)

    def encode(self, comments: Sequence[str]) -> np.ndarray:
        """Compute phi_C of raw comments.

        Returns:
            float32 [N, D], rows of length 1; a row of zeros where a comment has no token of the vocabulary (with a
            transformer: no token).
        """
        if self.transformer:
            return self.embed([" ".join(tokens) for tokens in Splitter().split(comments)])
        phi = np.empty((len(comments), self.vectors.shape[1]), np.float32)
        for start in range(0, len(comments), _BATCH):
            rows = slice(start, start + _BATCH)
            phi[rows] = self.project(self.tfidf(comments[rows]))
        return phi

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Compute phi_C by the transformer, float32 [N, D], from tokens of comments, joined by spaces.

        Equal texts are encoded once.
        """
        if self.transformer is None:
            raise ValueError("embed needs a transformer")
        distinct = sorted({text for text in texts if text})
        rows = {text: number for number, text in enumerate(distinct)}
        # Row -1 is that of empty texts.
        features = np.concatenate([unit_rows(self.transformer.features(distinct)), np.zeros((1, self.dim), np.float32)])
        return features[[rows.get(text, -1) for text in texts]]

    def project(self, tfidf: scipy.sparse.csr_matrix) -> np.ndarray:
        """Compute phi_C, float32 [N, D], from TF-IDF rows, float32 [N, V]."""
        phi = np.empty((tfidf.shape[0], self.vectors.shape[1]), np.float32)
        for start in range(0, len(phi), _BATCH):
            rows = slice(start, start + _BATCH)
            phi[rows] = unit_rows(tfidf[rows] @ self.vectors)
        return phi


def fit_encoder(
    document_counts: Counter[str], documents: int, sample: Sequence[str], labels: ConfigDict
) -> tuple[CommentEncoder, scipy.sparse.csr_matrix]:
    """Fit the encoder that `labels.comment_encoder` names.

    Args:
        document_counts: document frequency of each token of `tokenizer(labels)`.
        documents: number of comments.
        sample: comments to fit the SVD of LSA on, S of them, as tokens joined by `SEPARATOR`.
        labels: the `labels` section of a config.

    Returns:
        The encoder, and the TF-IDF rows of the sample, float32 [S, V].

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
    tokenizer_json, vectors, transformer = b"", None, None
    if labels.comment_encoder == "transformer":
        transformer, vectors = TextEncoder.load(labels.vectors), np.zeros((len(vocabulary), 0), np.float32)
    elif labels.comment_encoder != "lsa":
        if labels.comment_encoder == "static":
            tokenizer_json = static_embeddings.read_tokenizer(labels.vectors)
            vectors, known = static_embeddings.read_vectors(labels.vectors, _index(vocabulary))
        else:
            vectors, known = word_vectors.read(labels.vectors, _index(vocabulary))
        if not known.any():
            raise UserError(
                f"labels.vectors={labels.vectors} holds none of the {len(vocabulary):,} tokens of the comments: name "
                "vectors of their language."
            )
        vocabulary, vectors = [vocabulary[row] for row in np.flatnonzero(known)], vectors[known]
    weights = _weights(vocabulary, document_counts, documents, labels)
    tfidf = _tfidf(_token_numbers(sample, _index(vocabulary)), weights)
    if vectors is None:
        vectors = _lsa(tfidf, labels)
    coverage = sum(document_counts[token] for token in vocabulary) / document_counts.total()
    encoder = CommentEncoder(
        labels.comment_encoder, vocabulary, weights, vectors, tokenizer_json, coverage, transformer
    )
    return encoder, tfidf


def _token_numbers(sample: Sequence[str], index: dict[str, int]) -> Iterator[list[int]]:
    """Yield the numbers of each comment's tokens; tokens that are not in the vocabulary are dropped."""
    for tokens in sample:
        yield [index[token] for token in tokens.split(SEPARATOR) if token in index]


def _index(vocabulary: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(vocabulary)}


def _weights(vocabulary: list[str], document_counts: Counter[str], documents: int, labels: ConfigDict) -> np.ndarray:
    """Return token weights, float32 [V]: IDF as scikit-learn smooths it, or ones."""
    if labels.token_weights == "none":
        return np.ones(len(vocabulary), np.float32)
    counts = np.array([document_counts[token] for token in vocabulary], np.float64)
    return (np.log((1 + documents) / (1 + counts)) + 1).astype(np.float32)


def _lsa(tfidf: scipy.sparse.csr_matrix, labels: ConfigDict) -> np.ndarray:
    """Return the right singular vectors, float32 [V, D], of TF-IDF rows, float32 [S, V].

    D is `labels.comment_dim`, or the number of comments or tokens where that is smaller.
    """
    # scikit-learn takes longer to import than a labeler to load.
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    # Comments without a known token are zeros to the SVD, and would only increase the number of dimensions.
    rows = tfidf[np.diff(tfidf.indptr) > 0]
    if not rows.shape[0]:
        raise UserError(
            f"None of the {tfidf.shape[0]:,} comments of labels.max_fit_comments={labels.max_fit_comments} has a token "
            "of the vocabulary: raise that key."
        )
    if rows.shape[1] == 1:  # which scikit-learn refuses
        return np.ones((1, 1), np.float32)
    svd = TruncatedSVD(min(labels.comment_dim, *rows.shape), random_state=labels.seed)
    with np.errstate(invalid="ignore"):  # the explained variance of a single comment, which is not used
        svd.fit(normalize(rows))
    return np.ascontiguousarray(svd.components_.T, np.float32)


def _tfidf(rows: Iterable[list[int]], weights: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return counts times weights, float32 [N, V], of rows of token numbers."""
    ends, columns = array("q", [0]), array("i")
    for row in rows:
        columns.extend(row)
        ends.append(len(columns))
    numbers = np.frombuffer(columns, np.int32) if columns else np.zeros(0, np.int32)
    matrix = scipy.sparse.csr_matrix(
        (weights[numbers], numbers, np.array(ends, np.int64)), shape=(len(ends) - 1, len(weights))
    )
    matrix.sum_duplicates()
    return matrix
