"""Comments encoded by a text encoder."""

import numpy as np
import pytest

from vise_jax import config as vise_config
from vise_jax.engagement import Labeler
from vise_jax.engagement.fitting import fit_labeler
from vise_jax.errors import UserError
from vise_jax.text.tokens import Splitter


def posts(count: int = 80) -> list[dict]:
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        words = [["w1", "w2", "w3"], ["w11", "w12", "w13"]][number % 2]
        comments = [" ".join(random.choice(words, 4)) for _ in range(3)]
        made.append({"post_id": f"p{number}", "image": None, "comments": comments, "reactions": None})
    return made


@pytest.fixture
def labels(text_encoder, tmp_path):
    text_encoder.save(tmp_path / "encoder")
    labels = vise_config.base().labels
    labels.update({"comment_encoder": "transformer", "vectors": str(tmp_path / "encoder"), "cluster_fraction": 0.5})
    labels.update({"comment_clusters": 2, "min_comment_count": 1})
    return labels


def test_comments_are_the_text_encoders_features_of_unit_length(labels, text_encoder):
    labeler = fit_labeler(posts(), labels)
    comments = ["w1 w2", "W11, w12!", "", "@someone", "w1 w2"]
    phi = labeler.comments.encode(comments)
    texts = [" ".join(tokens) for tokens in Splitter().split(comments)]
    for text, row in zip(texts, phi, strict=True):
        if text:
            features = text_encoder.features([text])[0]
            np.testing.assert_allclose(row, features / np.linalg.norm(features), atol=1e-5)
        else:
            assert not row.any()
    assert phi[:2].any(axis=1).all()
    assert not phi[2].any()
    np.testing.assert_array_equal(phi[0], phi[4])


def test_a_labeler_labels_without_the_path(labels, tmp_path):
    labeler = fit_labeler(posts(), labels)
    labeler.save(tmp_path / "labeler")
    (tmp_path / "encoder").rename(tmp_path / "moved")
    loaded = Labeler.load(tmp_path / "labeler")
    assert loaded.fingerprint == labeler.fingerprint
    found = [post.comment_labels for post in loaded.label(posts())]
    assert found == [post.comment_labels for post in labeler.label(posts())]
    # Two topics of words are two clusters.
    assert {tuple(of_post) for of_post in found[::2]} != {tuple(of_post) for of_post in found[1::2]}
    assert all(len(of_post) == 1 for of_post in found)
    assert str(tmp_path) not in (tmp_path / "labeler" / "labeler.json").read_text()


def test_the_fit_is_the_same_with_a_work_directory(labels, tmp_path):
    from vise_jax.engagement.fit_statistics import gather
    from vise_jax.engagement.fitting import fit_corpus
    from vise_jax.posts import parse

    corpus = gather(map(parse, posts()), labels)
    (tmp_path / "work").mkdir()
    assert fit_corpus(corpus, labels, tmp_path / "work").fingerprint == fit_corpus(corpus, labels).fingerprint


def test_a_directory_without_a_text_encoder_is_refused(labels, trained, tmp_path):
    trained.save(tmp_path / "image")
    labels.vectors = str(tmp_path / "image")
    with pytest.raises(UserError, match="encoder of images, not of text"):
        fit_labeler(posts(), labels)
