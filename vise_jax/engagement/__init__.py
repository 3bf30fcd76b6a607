"""From engagement to pseudo-labels: comments and reactions are encoded, clustered, and become classes (Sec. 3)."""

from vise_jax.engagement import kmeans
from vise_jax.engagement.fitting import fit_labeler
from vise_jax.engagement.labeler import LabeledPost, Labeler

__all__ = ["LabeledPost", "Labeler", "fit_labeler", "kmeans"]
