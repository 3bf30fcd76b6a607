"""Eq. 1 against the formula worked by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vise_jax.training.engagement_loss import comment_loss, engagement_loss, labeled, reaction_loss, top_k_correct

# softmax of these is 1/8, 1/8, 1/4, 1/2
LOGITS = np.log(np.array([1, 1, 2, 4], np.float32))
NONE = [-1, -1, -1]


def comments(labels: list[list[int]], weights: list[list[float]] | None = None) -> tuple[np.ndarray, np.ndarray]:
    rows = len(labels)
    loss, labeled = comment_loss(
        jnp.tile(LOGITS, (rows, 1)),
        jnp.array(labels, jnp.int32),
        jnp.ones((rows, 3), jnp.float32) if weights is None else jnp.array(weights, jnp.float32),
    )
    return np.asarray(loss), np.asarray(labeled)


def test_one_label_is_cross_entropy():
    loss, labeled = comments([[3, -1, -1], [0, -1, -1]])
    np.testing.assert_allclose(loss, [math.log(2), math.log(8)], rtol=1e-6)
    np.testing.assert_array_equal(labeled, [1, 1])


def test_several_labels_share_the_probability_evenly():
    loss, _ = comments([[0, 2, 3], [2, 3, -1]])
    expected = [(math.log(8) + math.log(4) + math.log(2)) / 3, (math.log(4) + math.log(2)) / 2]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_weights_share_the_probability_and_padding_has_none():
    loss, _ = comments([[0, 3, -1]], [[3.0, 1.0, 9.0]])
    np.testing.assert_allclose(loss, [(3 * math.log(8) + math.log(2)) / 4], rtol=1e-6)


def test_no_label_no_loss():
    loss, labeled = comments([NONE, [1, -1, -1]])
    np.testing.assert_allclose(loss, [0, math.log(8)], rtol=1e-6)
    np.testing.assert_array_equal(labeled, [0, 1])


def test_reactions_and_missing_ones():
    loss, labeled = reaction_loss(jnp.tile(LOGITS, (3, 1)), jnp.array([2, -1, 0], jnp.int32))
    np.testing.assert_allclose(loss, [math.log(4), 0, math.log(8)], rtol=1e-6)
    np.testing.assert_array_equal(labeled, [1, 0, 1])


@pytest.mark.parametrize(
    ("comment_labels", "reaction_label", "expected"),
    [
        # Each term is the mean over the examples that carry its label, not over the batch.
        (
            [[3, -1, -1], NONE, [0, 3, -1]],
            [2, 2, -1],
            (math.log(2) + (math.log(8) + math.log(2)) / 2) / 2 + math.log(4),
        ),
        ([[3, -1, -1], NONE, NONE], [-1, -1, -1], math.log(2)),
        ([NONE, NONE, NONE], [-1, 0, -1], math.log(8)),
        ([NONE, NONE, NONE], [-1, -1, -1], 0.0),
    ],
)
def test_terms_are_means_over_labeled_examples(comment_labels, reaction_label, expected):
    logits = {"comments": jnp.tile(LOGITS, (3, 1)), "reactions": jnp.tile(LOGITS, (3, 1))}
    batch = {
        "comment_labels": jnp.array(comment_labels, jnp.int32),
        "comment_weights": jnp.ones((3, 3), jnp.float32),
        "reaction_label": jnp.array(reaction_label, jnp.int32),
    }
    loss, terms = engagement_loss(logits, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(terms["comments"] + terms["reactions"], loss, rtol=1e-6)


def test_only_the_heads_that_there_are():
    batch = {
        "comment_labels": jnp.array([[0]], jnp.int32),
        "comment_weights": jnp.ones((1, 1), jnp.float32),
        "reaction_label": jnp.array([3], jnp.int32),
    }
    loss, terms = engagement_loss({"reactions": jnp.array(LOGITS)[None]}, batch)
    assert set(terms) == {"reactions"}
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)


def test_parts_with_the_whole_batchs_counts_add_up():
    draw = np.random.default_rng(0)
    batch = {
        "comment_labels": jnp.array([[0, 2, -1], NONE, NONE, [1, -1, -1]], jnp.int32),
        "comment_weights": jnp.ones((4, 3), jnp.float32),
        "reaction_label": jnp.array([1, -1, -1, -1], jnp.int32),
    }
    logits = {head: jnp.asarray(draw.normal(size=(4, 4)), jnp.float32) for head in ("comments", "reactions")}
    counts = {head: known.sum() for head, known in labeled(batch).items()}
    assert {head: float(count) for head, count in counts.items()} == {"comments": 2, "reactions": 1}
    whole, _ = engagement_loss(logits, batch)
    parts = [
        engagement_loss(
            {head: values[rows] for head, values in logits.items()},
            {name: values[rows] for name, values in batch.items()},
            counts,
        )[0]
        for rows in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)


@pytest.mark.parametrize(("k", "comment_hits", "reaction_hits"), [(1, 1, 0), (2, 2, 1), (9, 2, 2)])
def test_hits_are_examples_with_a_label_among_the_most_probable(k, comment_hits, reaction_hits):
    batch = {
        "comment_labels": jnp.array([[3, 0], [2, -1], [-1, -1]], jnp.int32),
        "comment_weights": jnp.ones((3, 2), jnp.float32),
        "reaction_label": jnp.array([2, -1, 0], jnp.int32),
    }
    logits = {"comments": jnp.tile(LOGITS, (3, 1)), "reactions": jnp.tile(LOGITS, (3, 1))}
    found = top_k_correct(logits, batch, k)
    assert {head: float(value) for head, value in found.items()} == {
        "comments": comment_hits,
        "reactions": reaction_hits,
    }
