"""The labeler: from posts to cluster indices, the pseudo-labels of pre-training (Sec. 3.2)."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict
from safetensors import SafetensorError

import vise_jax
from vise_jax import artefact
from vise_jax.engagement import kmeans, privacy, reactions
from vise_jax.engagement.comments import CommentEncoder, fit_encoder, sample_comments, tokenizer
from vise_jax.errors import UserError
from vise_jax.posts import REACTIONS, BadPost, Post, parse
from vise_jax.progress import Progress, track

FORMAT_VERSION = 2
_MADE_BY = "label.py fit"


@dataclass(frozen=True, slots=True)
class LabelledPost:
    """The labels of one post.

    Attributes:
        comment_labels: clusters of its comments, sorted, each once; empty where no comment says anything known.
        comment_weights: 1.0 each, or with `labels.label_weights="count"` how many comments are in that cluster.
        reaction_label: cluster of its reactions, or -1.
    """

    comment_labels: list[int]
    comment_weights: list[float]
    reaction_label: int


@dataclass(frozen=True)
class Labeler:
    """A fitted labeler: `Labeler.fit(posts, labels)`, `.label(posts)`, `.save(folder)`, `Labeler.load(folder)`.

    Attributes:
        labels: the `labels` section of the config it was fitted with; it decides how posts are labelled.
        salt_check: shared by everyone who has the same salt, so that its split of the posts can be kept.
        comments: the comment encoder, or None where the posts had no comments.
        comment_centroids: float32 [K_C, D]; K_C = 0 without comments.
        reaction_centroids: float32 [K_R, 5]; K_R = 0 where the posts had no reactions.
        fitted: what it was fitted on, and how well: counts, inertia, fingerprints.
    """

    labels: Mapping[str, Any]
    salt_check: str
    comments: CommentEncoder | None
    comment_centroids: np.ndarray
    reaction_centroids: np.ndarray
    fitted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> dict[str, int]:
        """Clusters by engagement: the classes of each head, 0 for none."""
        return {"comments": len(self.comment_centroids), "reactions": len(self.reaction_centroids)}

    @classmethod
    def fit(cls, posts: Iterable[Post | Mapping], labels: ConfigDict) -> "Labeler":
        """Fit on the posts of the cluster split; the others are passed over. Posts are read once, as a stream.

        Where there are more comments or reactions than `labels.max_fit_comments` or `max_fit_reactions`, those with
        the lowest hashes are taken: the same ones in whatever order the posts come. Posts without any comments give a
        labeler without comment clusters, and the same goes for reactions.

        Args:
            posts: `Post` or plain dicts of the same schema.
            labels: the `labels` section of a config.

        Raises:
            UserError: nothing to fit on, or too little for the clusters that were asked for.
        """
        salt = privacy.salt(labels.salt_file, labels.seed)
        split_tokens, document_counts = tokenizer(labels), Counter[str]()
        texts, profiles = _Lowest(labels.max_fit_comments), _Lowest(labels.max_fit_reactions)
        counts = {"posts": 0, "cluster_posts": 0, "comments": 0, "reactions": 0}
        for post in track(map(_post, posts), "reading", "posts"):
            counts["posts"] += 1
            if privacy.split(post.post_id, salt, labels.cluster_share) == "train":
                continue
            counts["cluster_posts"] += 1
            if post.reactions and any(post.reactions):
                counts["reactions"] += 1
                profiles.add(_rank(post.post_id, salt, 0), post.reactions)
            comments = sample_comments(post.comments, labels.max_comments, labels.seed, post.post_id)
            for number, (comment, tokens) in enumerate(zip(comments, split_tokens(comments), strict=True)):
                if tokens:
                    counts["comments"] += 1
                    document_counts.update(set(tokens))
                    texts.add(_rank(post.post_id, salt, number), comment)
        if not counts["comments"] and not counts["reactions"]:
            raise UserError(
                f"None of the {counts['posts']:,} posts can make clusters: {counts['cluster_posts']:,} fall into the "
                f"cluster split (labels.cluster_share={labels.cluster_share:.3g}), and these hold no comments and no "
                "reactions: give more posts, or raise that share."
            )
        sample, rows = texts.sorted(), profiles.sorted()
        encoder = fit_encoder(document_counts, counts["comments"], sample, labels) if sample else None
        phi = encoder.encode(sample) if encoder else np.zeros((0, 0), np.float32)
        comment_centroids, comment_fit = _cluster(phi[phi.any(axis=1)], labels, "comment")
        reaction_centroids, reaction_fit = _cluster(reactions.encode(rows), labels, "reaction")
        fitted = {
            **counts,
            "tokens": len(encoder.vocabulary) if encoder else 0,
            "comment_dim": phi.shape[1],
            "comment_clusters": comment_fit,
            "reaction_clusters": reaction_fit,
            "fitted_on": _content_sha256(sample, rows),
        }
        check = privacy.salt_check(salt)
        return cls(labels.to_dict(), check, encoder, comment_centroids, reaction_centroids, fitted)

    def label(self, posts: Iterable[Post | Mapping]) -> list[LabelledPost]:
        """Label posts, whatever their split.

        Args:
            posts: `Post` or plain dicts of the same schema.

        Raises:
            UserError: a dict that is no post.
        """
        checked = [_post(post) for post in posts]
        comment_labels = self._label_comments(checked)
        reaction_labels = self._label_reactions(checked)
        counted = self.labels["label_weights"] == "count"
        return [
            LabelledPost(sorted(found), [float(found[label]) if counted else 1.0 for label in sorted(found)], reaction)
            for found, reaction in zip(comment_labels, reaction_labels, strict=True)
        ]

    def _label_comments(self, posts: list[Post]) -> list[Counter[int]]:
        found: list[Counter[int]] = [Counter() for _ in posts]
        if self.comments is None:
            return found
        comments, owners = [], []
        for owner, post in enumerate(posts):
            drawn = sample_comments(post.comments, self.labels["max_comments"], self.labels["seed"], post.post_id)
            comments.extend(drawn)
            owners.extend([owner] * len(drawn))
        phi = self.comments.encode(comments)
        known = phi.any(axis=1)
        labels = kmeans.assign(phi[known], self.comment_centroids)
        for comment, label in zip(np.flatnonzero(known), labels.tolist(), strict=True):
            found[owners[comment]][label] += 1
        return found

    def _label_reactions(self, posts: list[Post]) -> list[int]:
        phi = reactions.encode([post.reactions for post in posts])
        if not len(self.reaction_centroids):
            return [-1] * len(posts)
        return np.where(phi.any(axis=1), kmeans.assign(phi, self.reaction_centroids), -1).tolist()

    @cached_property
    def _files(self) -> dict[str, bytes]:
        tensors = {"comment_centroids": self.comment_centroids, "reaction_centroids": self.reaction_centroids}
        if self.comments:
            tensors |= {"comment_weights": self.comments.weights, "comment_vectors": self.comments.vectors}
        vocabulary = self.comments.vocabulary if self.comments else []
        files = {
            "labeler.safetensors": safetensors.numpy.save(tensors),
            "vocabulary.txt": "".join(f"{token}\n" for token in vocabulary).encode(),
        }
        if self.comments and self.comments.tokenizer:
            files["tokenizer.json"] = self.comments.tokenizer
        return files

    @cached_property
    def _sha256(self) -> dict[str, str]:
        return {name: hashlib.sha256(content).hexdigest() for name, content in self._files.items()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides labels and splits."""
        return artefact.fingerprint([FORMAT_VERSION, dict(self.labels), self.salt_check, self._sha256])

    def save(self, folder: Path) -> None:
        """Write `labeler.json`, `labeler.safetensors`, `vocabulary.txt` and a tokeniser's file, whole or not at all.

        Raises:
            UserError: the folder exists and holds something.
        """
        with artefact.whole_folder(Path(folder)) as temporary:
            for name, content in self._files.items():
                (temporary / name).write_bytes(content)
            description = {
                "format_version": FORMAT_VERSION,
                "kind": "labeler",
                "vise_jax": vise_jax.__version__,
                "labels": dict(self.labels),
                "comment_coverage": self.comments.coverage if self.comments else 0.0,
                "classes": self.classes,
                "fitted": dict(self.fitted),
                "salt_check": self.salt_check,
                "sha256": self._sha256,
                "fingerprint": self.fingerprint,
            }
            artefact.write_json(temporary / "labeler.json", description)

    @classmethod
    def load(cls, folder: Path) -> "Labeler":
        """Read what `save` wrote.

        Raises:
            UserError: no labeler, one of another version, or one that is damaged.
        """
        folder = Path(folder)
        description = artefact.read_description(folder, "labeler.json", version=FORMAT_VERSION, made_by=_MADE_BY)
        damaged = UserError(f"The labeler {folder} is damaged: copy it again, or make it again with `{_MADE_BY}`.")
        try:
            tensors = safetensors.numpy.load((folder / "labeler.safetensors").read_bytes())
            vocabulary = (folder / "vocabulary.txt").read_text("utf-8").split("\n")[:-1]
            comments = (
                CommentEncoder(
                    description["labels"]["comment_encoder"],
                    vocabulary,
                    tensors["comment_weights"],
                    tensors["comment_vectors"],
                    (folder / "tokenizer.json").read_bytes() if "tokenizer.json" in description["sha256"] else b"",
                    description["comment_coverage"],
                )
                if vocabulary
                else None
            )
            labeler = cls(
                description["labels"],
                description["salt_check"],
                comments,
                tensors["comment_centroids"],
                tensors["reaction_centroids"],
                description["fitted"],
            )
            same = labeler.fingerprint == description["fingerprint"] and labeler.classes == description["classes"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise damaged from error
        if not same:
            raise damaged
        return labeler


class _Lowest:
    """The items with the lowest ranks, at most `size` of them: an even sample of a stream, in bounded memory."""

    def __init__(self, size: int):
        self._size = size
        self._heap: list[tuple[int, Any]] = []

    def add(self, rank: int, item: Any) -> None:
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (-rank, item))
        elif -rank > self._heap[0][0]:
            heapq.heapreplace(self._heap, (-rank, item))

    def sorted(self) -> list[Any]:
        return [item for _, item in sorted(self._heap, reverse=True)]


def _rank(post_id: str, salt: bytes, number: int) -> int:
    return int.from_bytes(privacy.digest(f"{number} {post_id}", salt, b"fit"), "big")


def _post(post: Post | Mapping) -> Post:
    if isinstance(post, Post):
        return post
    try:
        return parse(post)
    except BadPost as bad:
        raise UserError(f"A post is not as it should be ({bad.reason}): see vise_jax.posts for the schema.") from bad


def _content_sha256(sample: list[str], rows: list[tuple[int, ...]]) -> str:
    """What the labeler was fitted on, as one hash that gives none of it away."""
    content = hashlib.sha256()
    for item in (*sample, *rows):
        content.update(artefact.canonical_json(item).encode())
    return content.hexdigest()


def _cluster(phi: np.ndarray, labels: ConfigDict, kind: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Centroids of the rows of `phi`, and how well they fit; none of none."""
    if not len(phi):
        return np.zeros((0, phi.shape[1] if phi.shape[1] else len(REACTIONS)), np.float32), {"clusters": 0}
    key = f"{kind}_clusters"
    with Progress(f"{kind} clusters", labels.kmeans_iterations, "iterations") as progress:
        try:
            centroids, inertia = kmeans.fit(
                phi,
                labels[key],
                iterations=labels.kmeans_iterations,
                seed=labels.seed,
                allow_fewer=labels.allow_fewer_clusters,
                after_iteration=lambda inertia: progress.advance(note=f"inertia {inertia:.4g}"),
            )
        except UserError as error:
            raise UserError(f"labels.{key}: {error}") from error
    used = len(np.unique(kmeans.assign(phi, centroids)))
    fit = {"clusters": len(centroids), "points": len(phi), "inertia": inertia, "empty": len(centroids) - used}
    return centroids, fit
