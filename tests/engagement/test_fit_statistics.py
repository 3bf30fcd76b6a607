"""The corpus: parts gathered apart and merged in any order are the whole, and samples are even."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vise_jax import config
from vise_jax.engagement import hashing
from vise_jax.engagement.comments import SEPARATOR, tokenizer
from vise_jax.engagement.fit_statistics import Corpus, Lowest, gather
from vise_jax.posts import Post


def make_labels(**changes: Any) -> ConfigDict:
    labels = config.base().labels
    labels.update(cluster_fraction=0.5, max_comments=3, max_fit_comments=40, max_fit_reactions=30)
    labels.update(changes)
    return labels


WORDS = ["a", "b", "c", "d", "e", "f", "🐶", "#g"]


def make_posts() -> list[Post]:
    draw = random.Random(0)
    return [
        Post(
            f"post {number}",
            comments=tuple(" ".join(draw.sample(WORDS, 3)) for _ in range(number % 6)),
            reactions=(number % 3, 0, 0, 0, number % 2),
        )
        for number in range(300)
    ]


def test_parts_in_any_order_and_grouping_make_the_whole(tmp_path: Path) -> None:
    posts, labels = make_posts(), make_labels()
    whole = gather(posts, labels)
    parts = [gather(posts[start : start + 37], labels) for start in range(0, 300, 37)]
    random.Random(1).shuffle(parts)
    parts[0].save(tmp_path / "part.json.gz")
    merged = Corpus.load(tmp_path / "part.json.gz", labels)
    for part in parts[1:]:
        merged.merge(part)
    assert merged.counts == whole.counts
    assert merged.documents == whole.documents
    assert [list(item) for item in merged.comments] == [list(item) for item in whole.comments]
    assert [tuple(item) for item in merged.reactions] == list(whole.reactions)
    assert len(whole.comments) == 40
    assert len(whole.reactions) == 30


def test_a_post_id_that_is_there_twice_does_not_depend_on_the_order() -> None:
    labels = make_labels()
    twice = [*make_posts(), *(replace(post, comments=("a b c",), reactions=(9, 0, 0, 0, 1)) for post in make_posts())]
    whole, other = gather(twice, labels), gather(twice[::-1], labels)
    for one, another in ((whole.comments, other.comments), (whole.reactions, other.reactions)):
        assert one.ranked() == another.ranked()
    assert len({rank for rank, _ in whole.comments.ranked()}) == 40


def test_counts_by_hand() -> None:
    posts, labels = make_posts(), make_labels(max_fit_comments=10_000)
    salt = hashing.salt("", 0)
    mine = [post for post in posts if hashing.split(post.post_id, salt, 0.5) == "cluster"]
    corpus = gather(posts, labels, frozenset([hashing.hash_id(mine[5].post_id, salt)]))
    del mine[5]
    assert corpus.counts["posts"] == 300
    assert corpus.counts["excluded"] == 1
    assert corpus.counts["cluster_posts"] == len(mine)
    assert corpus.counts["comments"] == sum(min(3, len(post.comments)) for post in mine) == len(corpus.comments)
    assert corpus.counts["reactions"] == sum(any(post.reactions or ()) for post in mine)
    assert corpus.documents.total() == 3 * corpus.counts["comments"]
    owners = {hashing.hash_id(post.post_id, salt).decode(): post for post in mine}
    for owner, tokens, language in corpus.comments:
        assert language == ""
        assert tokens.split(SEPARATOR) in tokenizer(labels)(owners[owner].comments)


def test_the_lowest_are_an_even_sample() -> None:
    ranks = [f"{number:08x}" for number in np.random.default_rng(0).permutation(1000)]
    lowest = Lowest(10, [(rank, rank) for rank in ranks])
    assert list(lowest) == [f"{number:08x}" for number in range(10)]


def test_an_encoding_that_is_wrong_is_repaired_and_counted() -> None:
    """The social network's own export writes the UTF-8 of a comment as Latin-1."""
    labels = make_labels(cluster_fraction=0.9)
    comments = ["so funny 😂 café", "déjà vu", "plain"]
    broken = [comment.encode("utf-8").decode("latin-1") for comment in comments]
    posts = [Post(f"{number}", comments=tuple(broken)) for number in range(20)]
    corpus = gather(posts, labels)
    assert corpus.notes["mended_encoding"] == 2 * corpus.counts["cluster_posts"] > 0
    assert {"😂", "café", "déjà", "vu"} <= corpus.documents.keys()
    assert corpus.documents == gather([replace(post, comments=tuple(comments)) for post in posts], labels).documents
    labels.repair_encoding = False
    as_it_is = gather(posts, labels)
    assert not as_it_is.notes
    assert "😂" not in as_it_is.documents
