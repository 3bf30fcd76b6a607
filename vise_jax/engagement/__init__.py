"""From engagement to pseudo-labels: comments and reactions are encoded, clustered, and become classes (Sec. 3)."""

from vise_jax.engagement import kmeans
from vise_jax.engagement.labeler import LabeledPost, Labeler

__all__ = ["LabeledPost", "Labeler", "kmeans"]
