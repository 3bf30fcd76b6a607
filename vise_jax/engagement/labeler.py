"""The labeler: from posts to cluster indices, the pseudo-labels of pre-training (Sec. 3.2)."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import scipy.sparse
from ml_collections import ConfigDict
from safetensors import SafetensorError

import vise_jax
from vise_jax import artifact
from vise_jax.engagement import hashing, kmeans, reactions
from vise_jax.engagement.comments import CommentEncoder, fit_encoder, sample_comments
from vise_jax.engagement.fit_statistics import Corpus, gather
from vise_jax.errors import Interrupted, UserError
from vise_jax.posts import REACTIONS, BadPost, Post, parse, summary
from vise_jax.progress import Progress, track

FORMAT_VERSION = 3
_MADE_BY = "label.py fit"
# Keys that say where something lies: what lies there decides.
PATHS = ("salt_file", "vectors", "link_roots")
_ARRAYS = ("comment_centroids", "reaction_centroids", "comment_terms", "comment_term_weights", "suppressed")
# Tokens kept of each comment cluster, for people to see what it means.
_TERMS = 20
# Comments encoded at a time while fitting.
_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class LabeledPost:
    """The labels of one post.

    Attributes:
        comment_labels: clusters of its comments, sorted, each once; empty where no comment says anything known.
        comment_weights: 1.0 each, or with `labels.label_weights="count"` how many comments are in that cluster.
        reaction_label: cluster of its reactions, or -1.
    """

    comment_labels: list[int]
    comment_weights: list[float]
    reaction_label: int


# Arrays have no truth value: two instances are equal if they are the same object.
@dataclass(frozen=True, eq=False)
class Labeler:
    """A fitted labeler: `Labeler.fit(posts, labels)`, `.label(posts)`, `.save(folder)`, `Labeler.load(folder)`.

    Attributes:
        labels: the `labels` section of the config it was fitted with; it decides how posts are labeled.
        salt_check: shared by everyone who has the same salt, so that its split of the posts can be kept.
        comments: the comment encoder, or None where the posts had no comments.
        comment_centroids: float32 [K_C, D]; K_C = 0 without comments.
        reaction_centroids: float32 [K_R, 5]; K_R = 0 where the posts had no reactions.
        comment_terms: int32 [K_C, T], the tokens of the vocabulary that tell each comment cluster from the others, the
            most telling first; -1 where it has fewer.
        comment_term_weights: float32 [K_C, T], how much larger their mean TF-IDF weight is over the cluster's comments
            than over all of them, each comment scaled to length 1.
        suppressed: int32 [S], comment clusters that fewer than `labels.min_posts` posts made: never a label.
        fitted: what it was fitted on, and how well: counts, inertia, fingerprints.
    """

    labels: Mapping[str, Any]
    salt_check: str
    comments: CommentEncoder | None
    comment_centroids: np.ndarray
    reaction_centroids: np.ndarray
    comment_terms: np.ndarray
    comment_term_weights: np.ndarray
    suppressed: np.ndarray
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
        return cls.from_corpus(gather(track(map(_post, posts), "reading", "posts"), labels), labels)

    @classmethod
    def from_corpus(cls, corpus: Corpus, labels: ConfigDict, work: Path | None = None) -> "Labeler":
        """Fit on what was gathered of the posts.

        Args:
            corpus: of all posts.
            labels: the `labels` section of a config.
            work: a folder in which the comments' vectors and the state of K-means are kept, so that they need no
                memory, and that a fit that was stopped goes on from.

        Raises:
            UserError: as `fit`.
        """
        counts = {key: corpus.counts[key] for key in ("posts", "cluster_posts", "excluded", "comments", "reactions")}
        if not counts["comments"] and not counts["reactions"]:
            raise UserError(
                f"None of the {counts['posts']:,} posts can make clusters: {counts['cluster_posts']:,} fall into the "
                f"cluster split (labels.cluster_fraction={labels.cluster_fraction:.3g}), without comments and "
                f"reactions (rejected: {summary(corpus.rejected)}): give more posts, or raise labels.cluster_fraction."
            )
        owners, sample = [owner for owner, _ in corpus.comments], [comment for _, comment in corpus.comments]
        profiles = reactions.encode(list(corpus.reactions))
        encoder = fit_encoder(corpus.documents, counts["comments"], sample, labels) if sample else None
        phi, known = _encoded(encoder, sample, work)
        comment_centroids, comment_fit = _cluster(phi, labels, "comment", work)
        reaction_centroids, reaction_fit = _cluster(profiles, labels, "reaction", work)
        clusters = kmeans.assign(phi, comment_centroids)
        terms, term_weights = _top_terms(encoder, [sample[row] for row in known], clusters, len(comment_centroids))
        posts = _distinct_posts([owners[row] for row in known], clusters, len(comment_centroids))
        suppressed = np.flatnonzero(posts < labels.min_posts).astype(np.int32)
        if len(posts) == len(suppressed) > 0:
            raise UserError(
                f"None of the {len(posts):,} comment clusters was made by labels.min_posts={labels.min_posts} posts: "
                "give more posts, ask for fewer labels.comment_clusters, or lower that key."
            )
        comment_fit["suppressed"] = len(suppressed)
        fitted = {
            **counts,
            "tokens": len(encoder.vocabulary) if encoder else 0,
            "comment_dim": phi.shape[1],
            "comment_clusters": comment_fit,
            "reaction_clusters": reaction_fit,
            "fitted_on": artifact.fingerprint([corpus.comments.ranked(), corpus.reactions.ranked()]),
        }
        check = hashing.salt_check(hashing.salt(labels.salt_file, labels.seed))
        return cls(
            labels.to_dict(),
            check,
            encoder,
            comment_centroids,
            reaction_centroids,
            terms,
            term_weights,
            suppressed,
            fitted,
        )

    def label(self, posts: Iterable[Post | Mapping]) -> list[LabeledPost]:
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
            LabeledPost(sorted(found), [float(found[label]) if counted else 1.0 for label in sorted(found)], reaction)
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
        shown = ~np.isin(labels, self.suppressed)
        for comment, label in zip(np.flatnonzero(known)[shown], labels[shown].tolist(), strict=True):
            found[owners[comment]][label] += 1
        return found

    def _label_reactions(self, posts: list[Post]) -> list[int]:
        phi = reactions.encode([post.reactions for post in posts])
        if not len(self.reaction_centroids):
            return [-1] * len(posts)
        return np.where(phi.any(axis=1), kmeans.assign(phi, self.reaction_centroids), -1).tolist()

    @cached_property
    def _files(self) -> dict[str, bytes]:
        tensors = {name: getattr(self, name) for name in _ARRAYS}
        if self.comments:
            tensors |= {"comment_weights": self.comments.weights, "comment_vectors": self.comments.vectors}
        vocabulary = self.comments.vocabulary if self.comments else []
        files = {
            "labeler.safetensors": safetensors.numpy.save(tensors),
            "vocabulary.json": artifact.canonical_json(vocabulary).encode(),
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
        labels = {key: value for key, value in self.labels.items() if key not in PATHS}
        return artifact.fingerprint([FORMAT_VERSION, labels, self.salt_check, self._sha256])

    def save(self, folder: Path) -> None:
        """Write `labeler.json`, `labeler.safetensors`, `vocabulary.json` and a tokenizer's file, whole or not at all.

        Raises:
            UserError: the folder exists and holds something.
        """
        with artifact.atomic_directory(Path(folder)) as temporary:
            for name, content in self._files.items():
                (temporary / name).write_bytes(content)
            description = {
                "format_version": FORMAT_VERSION,
                "kind": "labeler",
                "vise_jax": vise_jax.__version__,
                # Where files of the fit were is not published: what was in them decides.
                "labels": {key: value for key, value in self.labels.items() if key not in PATHS},
                "comment_coverage": self.comments.coverage if self.comments else 0.0,
                "classes": self.classes,
                "fitted": dict(self.fitted),
                "salt_check": self.salt_check,
                "sha256": self._sha256,
                "fingerprint": self.fingerprint,
            }
            artifact.write_json(temporary / "labeler.json", description)

    @classmethod
    def load(cls, folder: Path) -> "Labeler":
        """Read what `save` wrote.

        Raises:
            UserError: no labeler, one of another version, or one that is damaged.
        """
        folder = Path(folder)
        description = artifact.read_description(folder, "labeler.json", version=FORMAT_VERSION, made_by=_MADE_BY)
        damaged = UserError(f"The labeler {folder} is damaged: copy it again, or make it again with `{_MADE_BY}`.")
        try:
            tensors = safetensors.numpy.load((folder / "labeler.safetensors").read_bytes())
            vocabulary = json.loads((folder / "vocabulary.json").read_text("utf-8"))
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
                **{name: tensors[name] for name in _ARRAYS},
                fitted=description["fitted"],
            )
            same = labeler.fingerprint == description["fingerprint"] and labeler.classes == description["classes"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise damaged from error
        if not same:
            raise damaged
        return labeler


def _post(post: Post | Mapping) -> Post:
    if isinstance(post, Post):
        return post
    try:
        return parse(post)
    except BadPost as bad:
        raise UserError(f"A post is not as it should be ({bad.reason}): see vise_jax.posts for the schema.") from bad


def _encoded(encoder: CommentEncoder | None, sample: list[str], work: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """phi_C float32 [M, D] of the comments that hold a known token, and int64 [M], which of the sample they are."""
    if encoder is None:
        return np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
    known: list[np.ndarray] = []

    def rows() -> Iterator[np.ndarray]:
        with Progress("encoding", len(sample), "comments") as progress:
            for start in range(0, len(sample), _ROWS):
                phi = encoder.encode(sample[start : start + _ROWS])
                found = np.flatnonzero(phi.any(axis=1))
                known.append(start + found)
                yield phi[found]
                progress.advance(len(phi))

    if work is None:
        return np.concatenate(list(rows())), np.concatenate(known)
    path = work / "comments.float32"
    with artifact.atomic_file(path) as file:
        for part in rows():
            file.write(part.tobytes())
    which, dimensions = np.concatenate(known), encoder.vectors.shape[1]
    if not len(which):
        return np.zeros((0, dimensions), np.float32), which
    return np.memmap(path, np.float32, "r", shape=(len(which), dimensions)), which


def _top_terms(
    encoder: CommentEncoder | None, comments: list[str], clusters: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    terms, weights = np.full((k, _TERMS), -1, np.int32), np.zeros((k, _TERMS), np.float32)
    if encoder is None:
        return terms, weights
    means = scipy.sparse.csr_matrix((k, len(encoder.vocabulary)), dtype=np.float32)
    sizes = np.maximum(np.bincount(clusters, minlength=k), 1)
    for start in range(0, len(comments), _ROWS):
        rows = encoder.tfidf(comments[start : start + _ROWS])
        lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        cluster = clusters[start : start + _ROWS]
        share = np.divide(1 / sizes[cluster], lengths, out=np.zeros(len(lengths)), where=lengths > 0)
        members = scipy.sparse.csr_matrix(
            (share.astype(np.float32), (cluster, np.arange(len(cluster)))), (k, len(lengths))
        )
        means = means + members @ rows
    overall = means.T @ (np.bincount(clusters, minlength=k) / max(1, len(clusters)))
    for number, row in enumerate(means):
        # Else the words that every comment holds would head every cluster.
        more = row.data - overall[row.indices]
        order = [place for place in np.lexsort((row.indices, -more))[:_TERMS] if more[place] > 0]
        terms[number, : len(order)], weights[number, : len(order)] = row.indices[order], more[order]
    return terms, weights


def _distinct_posts(owners: list[str], clusters: np.ndarray, k: int) -> np.ndarray:
    """How many posts made each cluster: int64 [k]."""
    _, posts = np.unique(np.array(owners, "S32"), return_inverse=True)
    pairs = np.unique(np.stack([clusters.astype(np.int64), posts.astype(np.int64)]), axis=1)
    return np.bincount(pairs[0], minlength=k)


def _cluster(phi: np.ndarray, labels: ConfigDict, kind: str, work: Path | None) -> tuple[np.ndarray, dict[str, Any]]:
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
                batch_size=labels.kmeans_batch,
                tolerance=labels.kmeans_tolerance,
                allow_fewer=labels.allow_fewer_clusters,
                state=work / f"{kind}.kmeans" if work else None,
                after_iteration=lambda inertia: progress.advance(note=f"inertia {inertia:.4g}"),
            )
        except Interrupted:
            raise
        except UserError as error:
            raise UserError(f"labels.{key}: {error}") from error
    used = len(np.unique(kmeans.assign(phi, centroids)))
    fit = {"clusters": len(centroids), "points": len(phi), "inertia": inertia, "empty": len(centroids) - used}
    return centroids, fit
