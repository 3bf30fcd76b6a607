"""The draw of comments, and phi_C against scikit-learn with the same tokens."""

from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from vise_jax import config
from vise_jax.engagement.comments import (
    SEPARATOR,
    CommentEncoder,
    choose_vocabulary,
    fit_encoder,
    sample_comments,
    tokenizer,
)
from vise_jax.errors import UserError


def test_the_draw_of_comments_follows_from_the_post_alone() -> None:
    comments = [str(number) for number in range(1000)]
    drawn = sample_comments(comments, 100, 0, "a")
    assert drawn == sample_comments(comments, 100, 0, "a")
    assert len(drawn) == len(set(drawn)) == 100
    assert drawn == sorted(drawn, key=int)
    assert drawn != sample_comments(comments, 100, 0, "b")
    assert drawn != sample_comments(comments, 100, 1, "a")
    assert sample_comments(comments[:100], 100, 0, "a") == comments[:100]
    # What was drawn on another day by another Python must be drawn again: these bytes are part of the format.
    assert drawn[:5] == ["1", "13", "20", "23", "37"]


def test_comments_are_drawn_evenly() -> None:
    hits = Counter(sample for post in range(2000) for sample in sample_comments("abcdefghij", 3, 0, str(post)))
    assert all(hits[letter] == pytest.approx(600, rel=0.15) for letter in "abcdefghij")


def test_vocabulary_takes_the_frequent_first_then_the_alphabet() -> None:
    counts = Counter({"b": 3, "a": 3, "z": 9, "rare": 1, "c": 2})
    assert choose_vocabulary(counts, 2, 3) == ["z", "a", "b"]
    assert choose_vocabulary(counts, 2, 9) == ["z", "a", "b", "c"]


def made_comments(count: int, seed: int = 0) -> list[str]:
    """Comments about one of ten subjects, with words that all of them share."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        subject, length = rng.integers(10), rng.integers(1, 12)
        words = [f"w{rng.integers(20) + (20 * subject if rng.random() < 0.7 else 200)}" for _ in range(length)]
        made.append(" ".join(words))
    return made


def count_documents(comments: list[str], labels: ConfigDict) -> Counter[str]:
    return Counter(token for tokens in tokenizer(labels)(comments) for token in set(tokens))


def joined(comments: list[str], labels: ConfigDict) -> list[str]:
    return [SEPARATOR.join(tokens) for tokens in tokenizer(labels)(comments)]


def fit(comments: list[str], labels: ConfigDict) -> CommentEncoder:
    encoder, tfidf = fit_encoder(count_documents(comments, labels), len(comments), joined(comments, labels), labels)
    # The rows that are handed on are those of the comments themselves.
    assert (tfidf != encoder.tfidf(comments)).nnz == 0
    np.testing.assert_array_equal(encoder.project(tfidf), encoder.encode(comments))
    return encoder


def test_phi_of_lsa_equals_scikit_learn() -> None:
    labels = config.base().labels
    labels.update(comment_dim=20, min_comment_count=3)
    fitted = made_comments(3000)
    encoder = fit(fitted, labels)
    counted = TfidfVectorizer(analyzer=str.split, min_df=3).fit(fitted)
    assert set(encoder.vocabulary) == set(counted.vocabulary_)
    # The order of the columns decides where the randomized SVD starts.
    vectorizer = TfidfVectorizer(analyzer=str.split, vocabulary=encoder.vocabulary)
    svd = TruncatedSVD(20, random_state=labels.seed).fit(vectorizer.fit_transform(fitted))
    fresh = [comment for comment in made_comments(500, seed=1) if set(comment.split()) & set(encoder.vocabulary)]
    expected = svd.transform(vectorizer.transform(fresh))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    phi = encoder.encode(fresh)
    assert phi.dtype == np.float32
    np.testing.assert_allclose(encoder.weights, vectorizer.idf_, rtol=1e-6)
    assert (phi * expected).sum(axis=1).min() > 0.9999
    tfidf = encoder.tfidf(fresh)
    assert tfidf.dtype == np.float32
    np.testing.assert_allclose(
        tfidf.toarray() / np.linalg.norm(tfidf.toarray(), axis=1, keepdims=True),
        vectorizer.transform(fresh).toarray(),
        atol=1e-6,
    )


def test_counts_of_parts_add_up_and_the_sample_only_turns_the_vectors() -> None:
    labels = config.base().labels
    labels.update(comment_dim=8, min_comment_count=3)
    comments = made_comments(600)
    parts = (comments[:100], comments[100:450], comments[450:])
    merged = sum((count_documents(part, labels) for part in reversed(parts)), Counter())
    tokens = joined(comments, labels)
    whole, (sampled, _) = fit(comments, labels), fit_encoder(merged, len(comments), tokens[:200], labels)
    assert sampled.vocabulary == whole.vocabulary
    assert sampled.weights.tobytes() == whole.weights.tobytes()
    assert sampled.vectors.shape == whole.vectors.shape
    assert sampled.vectors.tobytes() != whole.vectors.tobytes()
    assert fit_encoder(merged, len(comments), tokens, labels)[0].vectors.tobytes() == whole.vectors.tobytes()


def test_a_comment_is_encoded_the_same_in_any_company_and_unknown_words_are_zero() -> None:
    labels = config.base().labels
    labels.update(comment_dim=8, min_comment_count=2)
    encoder = fit(made_comments(300), labels)
    fresh = ["W1 w205, w1!", "nobody knows", "", "@w1 w41"]
    phi = encoder.encode(fresh)
    assert phi.any(axis=1).tolist() == [True, False, False, True]
    np.testing.assert_allclose(np.linalg.norm(phi, axis=1), [1, 0, 0, 1], rtol=1e-6)
    for comment, row in zip(fresh, phi, strict=True):
        assert encoder.encode([comment])[0].tobytes() == row.tobytes()
    assert encoder.encode(["w41"]).tobytes() == phi[3:].tobytes()
    assert encoder.encode([]).shape == (0, 8)
    assert encoder.tfidf([]).shape == (0, len(encoder.vocabulary))


def test_as_many_dimensions_as_there_can_be() -> None:
    labels = config.base().labels
    labels.min_comment_count = 1
    encoder = fit(["a b", "a", "b", "a b b"], labels)
    assert encoder.vectors.shape == (2, 2)
    phi = encoder.encode(["a", "b"])
    # At full rank, LSA is a rotation: angles are those of TF-IDF.
    assert float(phi[0] @ phi[1]) == pytest.approx(0, abs=1e-6)
    assert fit(["a b"], labels).vectors.shape == (2, 1)
    assert fit(["a", "a"], labels).encode(["a a", "b"]).tolist() == [[1], [0]]


def test_coverage_is_the_share_of_tokens_in_the_vocabulary() -> None:
    labels = config.base().labels
    labels.min_comment_count = 2
    assert fit(["a b b", "a c", "a"], labels).coverage == pytest.approx(3 / 5)


def test_comments_without_a_common_token_are_refused() -> None:
    with pytest.raises(UserError, match=r"None of the 2 tokens of 2 comments.*min_comment_count=5"):
        fit(["a", "b"], config.base().labels)
    labels = config.base().labels
    labels.min_comment_count = 2
    with pytest.raises(UserError, match=r"None of the 1 comments .*max_fit_comments"):
        fit_encoder(Counter({"a": 2, "b": 1}), 3, ["b"], labels)
    with pytest.raises(UserError, match=r"None of the 0 comments .*max_fit_comments"):
        fit_encoder(Counter({"a": 2, "b": 1}), 3, [], labels)
