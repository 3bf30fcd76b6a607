"""Sufficient statistics of the posts of the cluster split, for the fit: counts that add up, and uniform samples.

The `Corpus` of each input split is gathered on any number of machines. Merged in any order, they are the `Corpus` of
all posts.
"""

import gzip
import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.engagement import hashing
from vise_jax.engagement.comments import SEPARATOR, sample_comments, tokenizer
from vise_jax.posts import Post
from vise_jax.text import encoding, languages


class Lowest:
    """The `size` items with the lowest ranks: a uniform sample of a stream, in bounded memory.

    Args:
        size: maximum number of items.
        items: pairs of a rank (hex digits, of equal length) and an item.
    """

    def __init__(self, size: int, items: Iterable[tuple[str, Any]] = ()):
        self.size = size
        self._heap: list[tuple[int, str, Any]] = []
        for rank, item in items:
            self.add(rank, item)

    def add(self, rank: str, item: Any) -> None:
        """Add an item if its rank is among the lowest."""
        key = -int(rank, 16)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, (key, rank, item))
        elif key > self._heap[0][0]:
            heapq.heapreplace(self._heap, (key, rank, item))

    def ranked(self) -> list[tuple[str, Any]]:
        """Return ranks and items, the lowest rank first."""
        return [(rank, item) for _, rank, item in sorted(self._heap, key=lambda entry: entry[1])]

    def __iter__(self) -> Iterator[Any]:
        return (item for _, item in self.ranked())

    def __len__(self) -> int:
        return len(self._heap)


@dataclass
class Corpus:
    """Sufficient statistics of posts.

    Attributes:
        counts: number of `posts` read, of `cluster_posts` among them and of `excluded` ones; of the cluster split,
            number of `comments` with a token and of posts with enough `reactions`.
        documents: document frequency of each token in the cluster split.
        comments: a sample of comments: the hash of the post, the tokens, joined by `SEPARATOR`, and with
            `labels.languages="separate"` the language.
        reactions: a sample of reaction counts.
        rejected: posts that could not be read, by reason.
        notes: number of mended values, by kind.
    """

    comments: Lowest
    reactions: Lowest
    counts: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def empty(cls, labels: ConfigDict) -> "Corpus":
        """Return the statistics of no posts."""
        return cls(Lowest(labels.max_fit_comments), Lowest(labels.max_fit_reactions))

    def merge(self, other: "Corpus") -> "Corpus":
        """Add the statistics of other posts; return self."""
        for mine, theirs in zip(self._counters(), other._counters(), strict=True):
            mine.update(theirs)
        for sample, added in ((self.comments, other.comments), (self.reactions, other.reactions)):
            for rank, item in added.ranked():
                sample.add(rank, item)
        return self

    def _counters(self) -> tuple[Counter[str], ...]:
        return self.counts, self.documents, self.rejected, self.notes

    def to_json(self) -> list[Any]:
        """Return JSON values. They hold words of comments."""
        return [*map(dict, self._counters()), self.comments.ranked(), self.reactions.ranked()]

    @classmethod
    def from_json(cls, values: list[Any], labels: ConfigDict) -> "Corpus":
        """Return the statistics that `to_json` described."""
        counts, documents, rejected, notes, comments, reactions = values
        samples = Lowest(labels.max_fit_comments, comments), Lowest(labels.max_fit_reactions, reactions)
        return cls(*samples, Counter(counts), Counter(documents), Counter(rejected), Counter(notes))

    def save(self, path: Path) -> None:
        """Write the statistics atomically, for `load`."""
        with artifact.atomic_file(path) as file:
            file.write(gzip.compress(json.dumps(self.to_json(), ensure_ascii=False).encode(), 1, mtime=0))

    @classmethod
    def load(cls, path: Path, labels: ConfigDict) -> "Corpus":
        """Read what `save` wrote."""
        return cls.from_json(artifact.from_json(gzip.decompress(path.read_bytes())), labels)


def gather(posts: Iterable[Post], labels: ConfigDict, excluded: frozenset[bytes] = frozenset()) -> Corpus:
    """Gather the sufficient statistics of the posts of the cluster split; others are skipped.

    With more comments or reactions than `labels.max_fit_comments` or `max_fit_reactions`, those with the lowest hashes
    are sampled, whatever the order and the splits of the posts.

    Args:
        posts: read once, as a stream.
        labels: the `labels` section of a config.
        excluded: hashes of post ids to leave out.
    """
    secret, split_tokens = hashing.salt(labels.salt_file, labels.seed), tokenizer(labels)
    corpus = Corpus.empty(labels)
    for post in posts:
        corpus.counts["posts"] += 1
        if excluded and hashing.hash_id(post.post_id, secret) in excluded:
            corpus.counts["matched"] += 1
        if hashing.split(post.post_id, secret, labels.cluster_fraction) != "cluster":
            continue
        owner = hashing.hash_id(post.post_id, secret)
        if owner in excluded:
            corpus.counts["excluded"] += 1
            continue
        corpus.counts["cluster_posts"] += 1
        if post.reactions and sum(post.reactions) >= labels.min_reactions:
            corpus.counts["reactions"] += 1
            corpus.reactions.add(_rank(post.post_id, secret, 0, post.reactions), post.reactions)
        comments = sample_comments(post.comments, labels.max_comments, labels.seed, post.post_id)
        if labels.repair_encoding:
            comments, repaired = encoding.repair(comments)
            if repaired:
                corpus.notes["mended_encoding"] += repaired
        separate = labels.languages == "separate"
        spoken = languages.identify(comments) if separate else [languages.UNKNOWN] * len(comments)
        for number, (tokens, language) in enumerate(zip(split_tokens(comments), spoken, strict=True)):
            if tokens:
                corpus.counts["comments"] += 1
                corpus.documents.update(set(tokens))
                item = owner.decode(), SEPARATOR.join(tokens), language
                corpus.comments.add(_rank(post.post_id, secret, number, item), item)
    return corpus


def _rank(post_id: str, secret: bytes, number: int, item: tuple) -> str:
    """Return the rank of an item; where a post id is there twice, its content decides, and not what is merged first."""
    content = hashlib.blake2b(repr(item).encode("utf-8", "backslashreplace"), digest_size=8)
    return hashing.digest(f"{number} {post_id}", secret, b"fit").hex() + content.hexdigest()
