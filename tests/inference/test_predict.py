"""Predictions from features, held against the formulas in plain Python."""

import dataclasses
import math

import numpy as np
import pytest

from vise_jax import models, variables
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.inference import predict
from vise_jax.posts import REACTIONS


def shares(scores: list[float]) -> list[float]:
    """Softmax."""
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def logits(encoder: Encoder, head: str, features: np.ndarray) -> list[float]:
    kernel, bias = (np.asarray(encoder.weights[f"heads/{head}/{name}"]).tolist() for name in ("kernel", "bias"))
    return [
        sum(value * row[number] for value, row in zip(features.tolist(), kernel, strict=True)) + bias[number]
        for number in range(len(bias))
    ]


def test_clusters_and_profiles_follow_from_the_heads(trained, labeler):
    weights = dict(trained.weights) | {"heads/comments/bias": trained.weights["heads/comments/bias"] + np.float32(0.25)}
    encoder = dataclasses.replace(trained, weights=weights)
    features = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32) * 3
    found = predict.predict(encoder, labeler, features, top=2)
    for row, prediction in zip(features, found, strict=True):
        scores = logits(encoder, "comments", row)
        scores[2] = -math.inf  # suppressed
        expected = sorted(enumerate(shares(scores)), key=lambda pair: -pair[1])[:2]
        assert [(one["cluster"], one["probability"]) for one in prediction["comments"]] == [
            (number, pytest.approx(probability, abs=1e-5)) for number, probability in expected
        ]
        clusters = shares(logits(encoder, "reactions", row))
        profiles = [[value / sum(centroid) for value in centroid] for centroid in labeler.reaction_centroids.tolist()]
        for place, button in enumerate(REACTIONS):
            share = sum(cluster * profile[place] for cluster, profile in zip(clusters, profiles, strict=True))
            assert prediction["reactions"][button] == pytest.approx(share, abs=1e-5)
        assert sum(prediction["reactions"].values()) == pytest.approx(1, abs=1e-5)


def test_words_and_emoji_of_clusters_and_nothing_of_suppressed_ones(trained, labeler):
    (found,) = predict.predict(trained, labeler, np.zeros((1, 32), np.float32), top=99)
    assert [(one["cluster"], one["words"], one["emoji"]) for one in found["comments"]] == [
        (0, ["dog"], ["🐶"]),
        (1, ["sea", "<script>alert(1)</script>"], []),
        (3, ["'\"&"], []),
    ]
    assert [one["probability"] for one in found["comments"]] == pytest.approx([1 / 3] * 3, abs=1e-6)
    # A third only love, a third all five alike, a third (0.1, 0.9, 0.3) / 1.3.
    thirds = [0.2 + 1 / 13, 0.2 + 9 / 13, 0.2 + 3 / 13, 0.2, 1.2]
    assert list(found["reactions"].values()) == pytest.approx([value / 3 for value in thirds], abs=1e-6)


def rebuilt(encoder: Encoder, **architecture) -> Encoder:
    described = {key: value for key, value in {**encoder.architecture, **architecture}.items() if value is not None}
    return dataclasses.replace(encoder, architecture=described, weights=variables.of_model(models.build(**described)))


def test_an_encoder_with_one_head(trained, labeler):
    encoder = rebuilt(trained, heads={"reactions": 3})
    predict.check(encoder, labeler)
    (found,) = predict.predict(encoder, labeler, np.zeros((1, 32), np.float32), top=2)
    assert found["comments"] is None
    assert set(found["reactions"]) == set(REACTIONS)


def test_an_encoder_that_can_t_predict_this_labeler_s_clusters(trained, labeler):
    predict.check(trained, labeler)
    no_heads = "has no heads that predict comments or reactions"
    not_this = "was not trained on the labels of this labeler"
    cases = [
        (no_heads, rebuilt(trained, heads=None)),
        (no_heads, rebuilt(trained, heads={"classes": 4})),
        (not_this, dataclasses.replace(trained, provenance={"trained": {"labeler": "0"}})),
        (not_this, dataclasses.replace(trained, provenance={})),
        (not_this, rebuilt(trained, heads={"comments": 9})),
    ]
    for words, encoder in cases:
        with pytest.raises(UserError, match=words):
            predict.check(encoder, labeler)
