"""Predict the engagement of images from their features, by the heads that the encoder was trained with."""

from typing import Any

import numpy as np
from scipy.special import softmax

from vise_jax.encoder import Encoder
from vise_jax.engagement import Labeler, meaning
from vise_jax.errors import UserError

_HEADS = ("comments", "reactions")


def check(encoder: Encoder, labeler: Labeler) -> None:
    """Check that an encoder predicts the clusters of this labeler.

    Raises:
        UserError: it has no such heads, or was trained on the labels of another labeler.
    """
    heads = encoder.architecture.get("heads") or {}
    heads = {name: classes for name, classes in heads.items() if name in _HEADS}
    if not heads:
        raise UserError(
            "The encoder has no heads that predict comments or reactions: give one that train.py wrote, RUN/encoder."
        )
    trained = encoder.provenance.get("trained") or {}
    same = trained.get("labeler") == labeler.fingerprint
    if not same or any(labeler.classes[name] != classes for name, classes in heads.items()):
        raise UserError(
            "The encoder was not trained on the labels of this labeler: give the one that its shards were labeled with"
            f" (its fingerprint begins with {str(trained.get('labeler'))[:12]}, this one's with "
            f"{labeler.fingerprint[:12]})."
        )


def predict(encoder: Encoder, labeler: Labeler, features: np.ndarray, top: int) -> list[dict[str, Any]]:
    """Predict from features what people would answer.

    Probabilities are the softmax of a head, over all but the suppressed comment clusters, which are never labels.

    The reaction profile is the expected fraction of each button: the sum over the reaction clusters of
    their probabilities times their profiles, p_k c_k / |c_k|_1. Centroids c_k are means of counts of unit L2
    norm. Their sum depends on the number of buttons; dividing by it weights each cluster by its probability.

    Args:
        encoder: with heads, see `check`.
        labeler: labeler of the predicted clusters.
        features: float32 [N, D].
        top: number of comment clusters per image.

    Returns:
        For each image, JSON-serializable values: `comments`, the most probable clusters, the first one first, each with
        `cluster`, `probability`, `words` and `emoji`; `reactions`, button → share. None where there is no such head.
    """
    comments: list[Any] = [None] * len(features)
    reactions: list[Any] = [None] * len(features)
    if "comments" in encoder.architecture["heads"]:
        logits = _logits(encoder, "comments", features)
        logits[:, labeler.suppressed] = -np.inf
        probabilities = softmax(logits, axis=1)
        top = min(top, logits.shape[1] - len(labeler.suppressed))
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        meanings = {number: _meaning(labeler, number) for number in np.unique(best).tolist()}
        comments = [
            [
                {"cluster": number, "probability": round(float(row[number]), 6), **meanings[number]}
                for number in numbers.tolist()
            ]
            for row, numbers in zip(probabilities, best, strict=True)
        ]
    if "reactions" in encoder.architecture["heads"]:
        shares = softmax(_logits(encoder, "reactions", features), axis=1) @ meaning.profiles(labeler.reaction_centroids)
        reactions = [dict(zip(labeler.labels["reactions"], row.round(6).tolist(), strict=True)) for row in shares]
    return [{"comments": one, "reactions": other} for one, other in zip(comments, reactions, strict=True)]


def _logits(encoder: Encoder, head: str, features: np.ndarray) -> np.ndarray:
    kernel, bias = (np.asarray(encoder.weights[f"heads/{head}/{name}"], np.float64) for name in ("kernel", "bias"))
    return features @ kernel + bias


def _meaning(labeler: Labeler, number: int) -> dict[str, list[str]]:
    return {kind: [term for term, _ in pairs] for kind, pairs in meaning.terms(labeler, number).items()}
