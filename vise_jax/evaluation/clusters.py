"""Agreement of comment clusters with the hidden classes of the demo corpus."""

import csv
import io
from pathlib import Path

from sklearn.metrics import normalized_mutual_info_score

from vise_jax import artifact, posts
from vise_jax.engagement import Labeler, reactions
from vise_jax.errors import UserError


def agreement(corpus: Path, labeler: Labeler) -> dict[str, float]:
    """Return the normalized mutual information (arithmetic mean) of comment clusters and hidden classes.

    Each comment counts once, also if its post is in the cluster split. Comments without a known token are a cluster of
    their own.

    Args:
        corpus: directory that `scripts/demo.py` wrote.
        labeler: assigns the clusters.

    Returns:
        0 to 1 for `topic` and for `affect`.

    Raises:
        UserError: no truth.csv or no posts in `corpus`.
    """
    path = corpus / "truth.csv"
    if not artifact.is_file(path):
        raise UserError(f"{path} is missing: give a directory that `scripts/demo.py` wrote.")
    with artifact.open_file(path) as raw, io.TextIOWrapper(raw, "utf-8", newline="") as file:
        truth = {row["post_id"]: row for row in csv.DictReader(file)}
    reject_log = posts.RejectLog()
    files = posts.expand(str(corpus / "posts" / "*.jsonl"))
    comments = [
        ({"post_id": post.post_id, "image": None, "comments": [comment], "reactions": None}, truth[post.post_id])
        for file in files
        for post in posts.read(file, reject_log, buttons=reactions.buttons(labeler.labels))
        for comment in post.comments
    ]
    labeled = labeler.label(comment for comment, _ in comments)
    clusters = [post.comment_labels[0] if post.comment_labels else -1 for post in labeled]
    return {
        kind: float(normalized_mutual_info_score([row[kind] for _, row in comments], clusters))
        for kind in ("topic", "affect")
    }
