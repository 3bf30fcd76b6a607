"""The engagement loss, Eq. 1: L_C + L_R, each the mean over the labeled examples."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]


def comment_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute L_C: cross-entropy with soft targets (Sec. 3.3, after Mahajan et al. 2018).

    The targets of a post with m labels are 1/m each, or proportional to their weights.

    Args:
        logits: float32 [B, K].
        labels: int32 [B, M], a post's clusters, padded with -1.
        weights: float32 [B, M], nonnegative; ignored where the label is -1.

    Returns:
        The loss of each example, float32 [B], 0 if it has no label; and the label mask, float32 [B] of 0 and 1.
    """
    weights, total = _label_weights(labels, weights)
    labeled = total > 0
    targets = weights / jnp.where(labeled, total, 1.0)[:, None]
    log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0), axis=1)
    return -(targets * log_probabilities).sum(axis=1), labeled.astype(jnp.float32)


def _label_weights(labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the weights [B, M], 0 where the label is -1, and their sums [B]."""
    weights = jnp.where(labels >= 0, weights, 0.0)
    return weights, weights.sum(axis=1)


def reaction_loss(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute L_R: cross-entropy with a single class (Sec. 3.3).

    Args:
        logits: float32 [B, K].
        label: int32 [B], -1 for none.

    Returns:
        The loss of each example, float32 [B], 0 if it has no label; and the label mask, float32 [B] of 0 and 1.
    """
    labeled = (label >= 0).astype(jnp.float32)
    log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(label, 0)[:, None], axis=1)
    return -log_probabilities[:, 0] * labeled, labeled


def labeled(batch: Batch) -> dict[str, jax.Array]:
    """Return the label masks of `comments` and `reactions`, float32 [B] of 0 and 1."""
    _, total = _label_weights(batch["comment_labels"], batch["comment_weights"])
    comments = (total > 0).astype(jnp.float32)
    return {"comments": comments, "reactions": (batch["reaction_label"] >= 0).astype(jnp.float32)}


def loss_sums(logits: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """Return the loss of each head in `logits`, summed over the batch: float32 scalars.

    Args:
        logits: float32 [B, K] of each head, `comments` and `reactions`.
        batch: `comment_labels`, `comment_weights` and `reaction_label` as above.
    """
    losses = {}
    if "comments" in logits:
        losses["comments"], _ = comment_loss(logits["comments"], batch["comment_labels"], batch["comment_weights"])
    if "reactions" in logits:
        losses["reactions"], _ = reaction_loss(logits["reactions"], batch["reaction_label"])
    return {head: loss.sum() for head, loss in losses.items()}


def engagement_loss(
    logits: Mapping[str, jax.Array], batch: Batch, counts: Mapping[str, jax.Array] | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute Eq. 1 over the heads in `logits`.

    Each term is the mean over the labeled examples of the global batch, 0 if there are none.

    Args:
        logits: float32 [B, K] of each head, `comments` and `reactions`.
        batch: `comment_labels`, `comment_weights` and `reaction_label` as above.
        counts: number of labeled examples in the global batch per head, if `batch` is a microbatch of it. The losses of
            the microbatches then add up to that of the global batch.

    Returns:
        The sum of the terms, and each term by its head's name: float32 scalars.
    """
    if counts is None:
        counts = {head: known.sum() for head, known in labeled(batch).items()}
    terms = {head: loss / jnp.maximum(counts[head], 1.0) for head, loss in loss_sums(logits, batch).items()}
    return sum(terms.values(), start=jnp.float32(0.0)), terms


def top_k_correct(logits: Mapping[str, jax.Array], batch: Batch, k: int) -> dict[str, jax.Array]:
    """Return the number of examples with one of their labels among the k largest logits, per head: float32 scalars."""
    correct = {}
    labels = {"comments": batch["comment_labels"], "reactions": batch["reaction_label"][:, None]}
    for head, scores in logits.items():
        _, top = jax.lax.top_k(scores, min(k, scores.shape[1]))
        among = (top[:, :, None] == labels[head][:, None, :]).any(axis=(1, 2))
        correct[head] = among.astype(jnp.float32).sum()
    return correct
