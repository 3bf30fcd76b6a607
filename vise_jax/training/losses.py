"""Eq. 1 of the paper: L_C + L_R, each the mean over the examples that carry the label."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]


def comment_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L_C: cross-entropy with soft targets (Sec. 3.3, after Mahajan et al. 2018).

    A post's m labels share its probability: 1/m each, or by their weights.

    Args:
        logits: float32 [B, K].
        labels: int32 [B, M], a post's clusters, filled up with -1.
        weights: float32 [B, M], at least 0, not looked at where the label is -1.

    Returns:
        The loss of each example, float32 [B], 0 where it has no label; and which have one, float32 [B] of 0 and 1.
    """
    weights = jnp.where(labels >= 0, weights, 0.0)
    total = weights.sum(axis=1)
    labelled = total > 0
    targets = weights / jnp.where(labelled, total, 1.0)[:, None]
    log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0), axis=1)
    return -(targets * log_probabilities).sum(axis=1), labelled.astype(jnp.float32)


def reaction_loss(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L_R: cross-entropy with one class.

    Args:
        logits: float32 [B, K].
        label: int32 [B], -1 for none.

    Returns:
        The loss of each example, float32 [B], 0 where it has no label; and which have one, float32 [B] of 0 and 1.
    """
    labelled = (label >= 0).astype(jnp.float32)
    log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(label, 0)[:, None], axis=1)
    return -log_probabilities[:, 0] * labelled, labelled


def engagement_loss(logits: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Eq. 1 over the heads that there are.

    Each term is the mean over the examples of the global batch that carry its label, 0 where none does.

    Args:
        logits: float32 [B, K] of each head, `comments` and `reactions`.
        batch: `comment_labels`, `comment_weights` and `reaction_label` as above.

    Returns:
        The sum of the terms, and each term by its head's name: float32 scalars.
    """
    losses = {}
    if "comments" in logits:
        losses["comments"] = comment_loss(logits["comments"], batch["comment_labels"], batch["comment_weights"])
    if "reactions" in logits:
        losses["reactions"] = reaction_loss(logits["reactions"], batch["reaction_label"])
    terms = {head: loss.sum() / jnp.maximum(labelled.sum(), 1.0) for head, (loss, labelled) in losses.items()}
    return sum(terms.values(), start=jnp.float32(0.0)), terms
