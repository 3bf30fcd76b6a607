"""Summaries of the clusters of a labeler and its shards, for the page, the figures and the terminal."""

import hashlib
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vise_jax.data import shards
from vise_jax.engagement import Labeler, meaning
from vise_jax.errors import UserError
from vise_jax.posts import Post
from vise_jax.similarity import unit_rows
from vise_jax.text import encoding, masking

# Least number of examples with both labels for a lift; fewer are noise, and may identify someone.
MIN_TOGETHER = 5

_NEAREST = 4
# Rows and columns of the heat map: the largest clusters.
_MAP = (30, 20)
_IN_TERMINAL = 10
# Least fraction of a button that names a reaction cluster.
_IN_NAME = 0.15
_BUTTONS = 2
_MAX_EXAMPLE_CHARACTERS = 200
# Comments that are labeled at a time.
_BATCH = 1024
# Rows of cosines in memory at a time.
_CHUNK = 1024


def read(labeler_folder: Path, shards_folder: Path) -> tuple[Labeler, dict[str, np.ndarray]]:
    """Read a labeler, and the statistics of the shards that it labeled.

    Raises:
        UserError: one of them is missing or damaged, or the shards were labeled by another labeler.
    """
    labeler = Labeler.load(labeler_folder)
    manifest = shards.read_manifest(shards_folder)
    if manifest["labeler"] != labeler.fingerprint:
        raise UserError(
            f"The shards {shards_folder} were not labeled with the labeler {labeler_folder}: give the one that "
            f"`{shards.MADE_BY}` was given for them."
        )
    return labeler, shards.read_statistics(shards_folder, manifest)


def summarize(labeler: Labeler, statistics: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Summarize the clusters for the page, the figures and the terminal. Suppressed clusters are only counted.

    Args:
        labeler: the labeler.
        statistics: of the shards: `comments` int64 [K_C] and `reactions` int64 [K_R], examples with each label;
            `labels_per_post` int64 [L], number of examples by number of comment labels; `pairs` int64 [K_C, K_R],
            examples with both labels.

    Returns:
        A JSON-serializable summary:
        `labeler`: the labeler's fingerprint;
        `examples`: number of training examples;
        `suppressed`: number of suppressed comment clusters;
        `labels_per_post`: as in the statistics;
        `balance`: of `comments` (without suppressed clusters) and of `reactions`, see `balance`;
        `buttons`: names of the reaction buttons;
        `separate`: whether each comment cluster is of one language;
        `comments`: the comment clusters in descending order of size: `number`, `language` (a code; "other" without one
            of its own, "" where languages share clusters), `examples`, `share` (of all examples),
            `words` and `emoji` (pairs of term and weight, most distinctive first), `reaction` (the most
            over-represented reaction cluster: `number`, `lift` and `together`, the number of examples with both; None
            if no lift is above 1) and `nearest` (pairs of number and cosine);
        `reactions`: the reaction clusters, the largest first: `number`, `examples`, `share` (of the examples with a
            reaction label), `profile` (the share of each button: the centroid, divided by its sum) and `name` (the main
            buttons);
        `heat`: of the largest clusters with examples, `comments` and `reactions` (numbers) and `log2_lift` (rows by
            `comments`, columns by `reactions`, None where `lift` is undefined).
    """
    buttons = list(labeler.labels["reactions"])
    counts, reaction_counts, pairs = statistics["comments"], statistics["reactions"], statistics["pairs"]
    examples = int(statistics["labels_per_post"].sum())
    shown = np.setdiff1d(np.arange(len(counts)), labeler.suppressed)
    by_size = shown[np.argsort(-counts[shown], kind="stable")]
    reactions_by_size = np.argsort(-reaction_counts, kind="stable")
    lifts = lift(pairs, reaction_counts)
    profiles = meaning.profiles(labeler.reaction_centroids)
    neighbors, cosines = nearest(labeler.comment_centroids[shown], _NEAREST)
    near = {
        number: [[int(shown[other]), round(float(cosine), 3)] for other, cosine in zip(*row, strict=True)]
        for number, *row in zip(shown.tolist(), neighbors, cosines, strict=True)
    }
    rows = by_size[counts[by_size] > 0][: _MAP[0]]
    columns = reactions_by_size[reaction_counts[reactions_by_size] > 0][: _MAP[1]]
    return {
        "labeler": labeler.fingerprint,
        "examples": examples,
        "buttons": buttons,
        "suppressed": len(counts) - len(shown),
        "labels_per_post": statistics["labels_per_post"].tolist(),
        "separate": bool(labeler.languages),
        "balance": {"comments": balance(counts[shown]), "reactions": balance(reaction_counts)},
        "comments": [
            {
                "number": number,
                "language": (labeler.languages[number] or "other") if labeler.languages else "",
                "examples": int(counts[number]),
                "share": int(counts[number]) / max(examples, 1),
                **meaning.terms(labeler, number),
                "reaction": _over_represented(lifts[number], pairs[number]),
                "nearest": near[number],
            }
            for number in by_size.tolist()
        ],
        "reactions": [
            {
                "number": number,
                "examples": int(reaction_counts[number]),
                "share": int(reaction_counts[number]) / max(int(reaction_counts.sum()), 1),
                **_profile(profiles[number], buttons),
            }
            for number in reactions_by_size.tolist()
        ],
        "heat": {
            "comments": rows.tolist(),
            "reactions": columns.tolist(),
            "log2_lift": [
                [None if np.isnan(value) else float(np.log2(value)) for value in row]
                for row in lifts[np.ix_(rows, columns)]
            ],
        },
    }


def gini(counts: np.ndarray) -> float:
    """Compute the Gini coefficient of counts: 0 for equal counts, near 1 if a single one is not zero.

    Half the relative mean absolute difference: sum_i (2 i - N - 1) x_i / (N sum_i x_i) of sorted x [N]; 0 if all are 0.
    """
    if not counts.sum():
        return 0.0
    ordered = np.sort(counts).astype(np.float64)
    ranks = 2 * np.arange(1, len(ordered) + 1) - len(ordered) - 1
    return float(ranks @ ordered / (len(ordered) * ordered.sum()))


def balance(counts: np.ndarray) -> dict[str, Any]:
    """Describe how evenly labels are distributed over clusters.

    Args:
        counts: int64 [K], examples with each label.

    Returns:
        `clusters`, number of clusters; `empty`, number of clusters without examples; `labels`, the sum of the counts;
        `largest`, the largest count divided by the sum; `gini`; `effective`, the perplexity exp(-sum p ln p), which is
        the number of equally large clusters of the same entropy. The last three are 0 without labels.
    """
    total = int(counts.sum())
    shares = counts[counts > 0] / max(total, 1)
    return {
        "clusters": len(counts),
        "empty": int((counts == 0).sum()),
        "labels": total,
        "largest": float(shares.max(initial=0.0)),
        "gini": gini(counts),
        "effective": float(np.exp(-(shares * np.log(shares)).sum())) if total else 0.0,
    }


def lift(pairs: np.ndarray, reactions: np.ndarray) -> np.ndarray:
    """Compute the lift P(reaction | comment) / P(reaction) among the examples with a reaction label.

    1 means independence; the logarithm is the pointwise mutual information.

    Args:
        pairs: int64 [K_C, K_R], examples with both labels.
        reactions: int64 [K_R], examples with each reaction label.

    Returns:
        float64 [K_C, K_R]; NaN where fewer than `MIN_TOGETHER` examples have both.
    """
    expected = pairs.sum(axis=1, keepdims=True) * (reactions / max(int(reactions.sum()), 1))
    return np.divide(pairs, expected, out=np.full(pairs.shape, np.nan), where=pairs >= MIN_TOGETHER)


def nearest(centroids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest other rows of each row by cosine, in descending order.

    Args:
        centroids: float32 [K, D]. The cosine of a row of zeros is 0.
        count: number of rows, at most K - 1.

    Returns:
        Indices int64 and cosines float32, both [K, count].
    """
    unit = unit_rows(centroids)
    count = max(min(count, len(unit) - 1), 0)
    indices, cosines = np.zeros((len(unit), count), np.int64), np.zeros((len(unit), count), np.float32)
    for start in range(0, len(unit) if count else 0, _CHUNK):
        part = unit[start : start + _CHUNK] @ unit.T
        part[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf
        candidates = np.sort(np.argpartition(-part, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(part, candidates, axis=1), axis=1, kind="stable")
        indices[start : start + _CHUNK] = np.take_along_axis(candidates, order, axis=1)
        cosines[start : start + _CHUNK] = np.take_along_axis(part, indices[start : start + _CHUNK], axis=1)
    return indices, cosines


def draw_examples(labeler: Labeler, posts: Iterable[Post], count: int) -> dict[int, list[str]]:
    """Draw distinct masked comments of each cluster, independent of the order of the posts.

    A comment belongs to the cluster of its label. Suppressed clusters have no labels.

    Args:
        labeler: the labeler.
        posts: of any split.
        count: maximum number of comments per cluster, at least 1.

    Returns:
        Masked comments by cluster, truncated.
    """
    drawn: dict[int, dict[str, bytes]] = {}
    comments = (Post(post.post_id, comments=(comment,)) for post in posts for comment in post.comments)
    while batch := list(itertools.islice(comments, _BATCH)):
        for post, label in zip(batch, labeler.label(batch), strict=True):
            for cluster in label.comment_labels:
                # As the labeler reads it: damaged letters would end a mention.
                comment = (
                    encoding.repair(post.comments)[0][0] if labeler.labels["repair_encoding"] else post.comments[0]
                )
                ours, text = drawn.setdefault(cluster, {}), _shorten(masking.mask(comment))
                ours[text] = hashlib.blake2b(text.encode(), digest_size=8).digest()
                if len(ours) > count:
                    del ours[max(ours, key=lambda other: ours[other])]
    return {cluster: sorted(ours, key=lambda text: ours[text]) for cluster, ours in drawn.items()}


def show(summary: dict[str, Any]) -> None:
    """Print a table of the largest comment clusters, in the terminal's width or, elsewhere, unwrapped."""
    table = Table(title=f"the largest of {summary['balance']['comments']['clusters']:,} comment clusters")
    for title in ("cluster", "examples", "share"):
        table.add_column(title, justify="right")
    language = ("language",) if summary["separate"] else ()
    for title in (*language, "words", "emoji", "over-represented reactions"):
        table.add_column(title, overflow="fold")
    names = {cluster["number"]: cluster["name"] for cluster in summary["reactions"]}
    for row in summary["comments"][:_IN_TERMINAL]:
        reaction = row["reaction"]
        texts = (
            f"{row['number']}",
            f"{row['examples']:,}",
            f"{row['share']:.1%}",
            *([row["language"]] if language else []),
            " ".join(word for word, _ in row["words"]),
            " ".join(emoji for emoji, _ in row["emoji"]),
            f"{names[reaction['number']]} (x{reaction['lift']:.1f})" if reaction else "",
        )
        table.add_row(*map(Text, texts))
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def _over_represented(lifts: np.ndarray, together: np.ndarray) -> dict[str, Any] | None:
    known = np.where(lifts > 1, lifts, -np.inf)
    if not len(known) or np.isneginf(known.max()):
        return None
    best = int(known.argmax())
    return {"number": best, "lift": round(float(lifts[best]), 3), "together": int(together[best])}


def _profile(profile: np.ndarray, buttons: Sequence[str]) -> dict[str, Any]:
    shares = profile.round(4).tolist()
    ordered = sorted(zip(buttons, shares, strict=True), key=lambda item: -item[1])
    main = [item for item in ordered if item[1] >= _IN_NAME]
    return {"profile": shares, "name": ", ".join(f"{name} {share:.0%}" for name, share in main[:_BUTTONS])}


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_EXAMPLE_CHARACTERS else f"{text[: _MAX_EXAMPLE_CHARACTERS - 1]}…"
