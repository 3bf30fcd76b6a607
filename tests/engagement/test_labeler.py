"""The labeler: fit, label, save and load."""

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import normalized_mutual_info_score

from vise_jax import config
from vise_jax.engagement import LabeledPost, Labeler, hashing, kmeans, reactions
from vise_jax.engagement.fitting import fit_labeler
from vise_jax.errors import UserError
from vise_jax.posts import Post
from vise_jax.text.tokens import Splitter

TOPICS = ("cat dog paw 🐶 fur #pets", "sea sand wave 🏖 sun #beach", "goal match team ⚽ win #football")


def make_posts(count: int = 400) -> list[dict[str, Any]]:
    draw = random.Random(0)
    posts = []
    for number in range(count):
        words = TOPICS[number % 3].split()
        counts = [0, 0, 0, 0, 0]
        counts[number % 5] = draw.randint(5, 50)
        counts[(number + 1) % 5] = 1
        posts.append(
            {
                "post_id": f"post-{number}",
                "comments": [" ".join(draw.sample(words, 3)) for _ in range(number % 4)],
                "reactions": dict(zip(("haha", "sorry", "angry", "wow", "love"), counts, strict=True)),
            }
        )
    return posts


def make_labels(**changes: Any) -> ConfigDict:
    labels = config.base().labels
    labels.update(comment_clusters=3, reaction_clusters=5, cluster_fraction=0.5, comment_dim=5, min_comment_count=2)
    labels.update(changes)
    return labels


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    return fit_labeler(make_posts(), make_labels())


def test_labels_find_the_topics(labeler: Labeler) -> None:
    posts = [post for post in make_posts() if post["comments"]]
    labeled = labeler.label(posts)
    assert all(len(found.comment_labels) == 1 for found in labeled)
    topics = [int(post["post_id"].split("-")[1]) % 3 for post in posts]
    assert normalized_mutual_info_score(topics, [found.comment_labels[0] for found in labeled]) > 0.99
    assert labeler.classes == {"comments": 3, "reactions": 5}


def test_labels_by_hand(labeler: Labeler) -> None:
    def cluster(text: str) -> int:
        return int(kmeans.assign(labeler.comments.encode([text]), labeler.comment_centroids)[0])

    pets, beach = cluster("dog paw"), cluster("sea sand")
    post = {"post_id": "x", "comments": ["dog", "sea wave @dog", "PAW!", "unheard words", ""], "reactions": {"wow": 7}}
    wow = int(kmeans.assign(np.array([[0, 0, 0, 1, 0]], np.float32), labeler.reaction_centroids)[0])
    expected = LabeledPost(sorted([pets, beach]), [1.0, 1.0], wow)
    nothing = LabeledPost([], [], -1)
    quiet = {"post_id": "q", "reactions": {"wow": 0}, "comments": ["unheard"]}
    assert labeler.label([post, quiet, Post("none")]) == [expected, nothing, nothing]
    assert labeler.label([]) == []


def test_count_keeps_multiplicities() -> None:
    labeler = fit_labeler(make_posts(), make_labels(label_weights="count"))
    found = labeler.label([{"post_id": "x", "comments": ["dog", "sea wave", "paw fur", "dog", "@dog"]}])[0]
    weights = dict(zip(found.comment_labels, found.comment_weights, strict=True))
    assert sorted(weights.values()) == [1.0, 3.0]


def test_only_the_cluster_split_is_fitted_on_in_any_order() -> None:
    posts, labels = make_posts(), make_labels()
    salt = hashing.salt("", 0)
    ours = [post for post in posts if hashing.split(post["post_id"], salt, 0.5) == "cluster"]
    whole, part, reverse = (fit_labeler(given, labels) for given in (posts, ours, posts[::-1]))
    assert 150 < len(ours) < 250
    assert whole.fingerprint == part.fingerprint == reverse.fingerprint
    assert whole.fitted["cluster_posts"] == len(ours)
    assert whole.fingerprint != fit_labeler(posts[:300], labels).fingerprint


def test_names_and_links_never_reach_the_vocabulary() -> None:
    posts = make_posts()
    for post in posts:
        post["comments"] = [f"{comment} @janedoe http://jane.doe/x jane@doe.org" for comment in post["comments"]]
    vocabulary = fit_labeler(posts, make_labels()).comments.vocabulary
    assert sorted(vocabulary) == sorted(word for topic in TOPICS for word in topic.split())


def test_fitting_holds_no_more_than_it_may() -> None:
    labels = make_labels(max_fit_comments=50, max_fit_reactions=40)
    labeler = fit_labeler(make_posts(), labels)
    assert labeler.fingerprint == fit_labeler(make_posts()[::-1], labels).fingerprint
    assert labeler.fitted["comments"] > 200
    assert labeler.fitted["comment_clusters"]["points"] <= 50
    assert labeler.fitted["reaction_clusters"]["points"] == 40


def test_save_and_load_keep_everything_and_no_one_s_words(labeler: Labeler, tmp_path: Path) -> None:
    labeler.save(tmp_path / "labeler")
    loaded = Labeler.load(tmp_path / "labeler")
    assert loaded.fingerprint == labeler.fingerprint
    assert loaded.label(make_posts()) == labeler.label(make_posts())
    assert {path.suffix for path in (tmp_path / "labeler").iterdir()} == {".json", ".safetensors"}
    with pytest.raises(UserError, match="already exists"):
        labeler.save(tmp_path / "labeler")


def test_the_same_seed_gives_the_same_bytes(labeler: Labeler, tmp_path: Path) -> None:
    again = fit_labeler(make_posts(), make_labels())
    for name, fitted in (("a", labeler), ("b", again)):
        fitted.save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("missing", ["comments", "reactions"])
def test_posts_without_one_engagement_give_a_labeler_without_that_head(missing: str, tmp_path: Path) -> None:
    posts = [{key: value for key, value in post.items() if key != missing} for post in make_posts()]
    fit_labeler(posts, make_labels()).save(tmp_path / "labeler")
    labeler = Labeler.load(tmp_path / "labeler")
    assert labeler.classes[missing] == 0
    found = labeler.label(make_posts()[:20])
    assert all(post.reaction_label == -1 if missing == "reactions" else not post.comment_labels for post in found)
    assert any(post.reaction_label >= 0 or post.comment_labels for post in found)


def test_too_little_to_fit_on_is_reported() -> None:
    nothing = [{"post_id": str(number), "comments": ["", "<url> !!"]} for number in range(50)]
    with pytest.raises(UserError, match=r"None of the 50 posts .* cluster split"):
        fit_labeler(nothing, make_labels())
    with pytest.raises(UserError, match=r"None of the 0 posts"):
        fit_labeler([], make_labels())
    with pytest.raises(UserError, match=r"labels\.reaction_clusters: 500 clusters .* distinct points"):
        fit_labeler(make_posts(), make_labels(reaction_clusters=500))
    fewer = fit_labeler(make_posts(), make_labels(reaction_clusters=500, allow_fewer_clusters=True))
    distinct = np.unique(
        reactions.encode(
            [
                tuple(post["reactions"].values())
                for post in make_posts()
                if hashing.split(post["post_id"], hashing.salt("", 0), 0.5) == "cluster"
            ],
            5,
        ),
        axis=0,
    )
    assert fewer.classes["reactions"] == len(distinct)
    with pytest.raises(UserError, match="reaction_unknown"):
        fewer.label([{"post_id": "a", "reactions": {"boo": 1}}])


def test_another_version_or_a_damaged_labeler_is_refused(labeler: Labeler, tmp_path: Path) -> None:
    directory = tmp_path / "labeler"
    labeler.save(directory)
    description = json.loads((directory / "labeler.json").read_text())

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            Labeler.load(directory)

    (directory / "labeler.json").write_text(json.dumps(description | {"format_version": 99}))
    refused("version 99")
    (directory / "labeler.json").write_text(json.dumps(description | {"labels": {}}))
    refused("damaged")
    (directory / "labeler.json").write_text(json.dumps(description))
    content = (directory / "labeler.safetensors").read_bytes()
    for wrong in (content[:-4] + b"\0\0\0\0", content[:50], b"\x80\x04pickle"):
        (directory / "labeler.safetensors").write_bytes(wrong)
        refused("damaged")
    (directory / "labeler.safetensors").write_bytes(content)
    Labeler.load(directory)
    (directory / "vocabulary.json").unlink()
    refused("damaged")
    refused_folder = tmp_path / "none"
    with pytest.raises(UserError, match=r"no labeler\.json"):
        Labeler.load(refused_folder)


@pytest.mark.parametrize("counts", [(3, 0, 0, 4, 0), (10**12, 10**12, 0, 0, 0), (0, 0, 0, 0, 1)])
def test_phi_r_is_the_unit_vector_of_the_counts(counts: tuple[int, ...]) -> None:
    phi = reactions.encode([counts, None, (0,) * 5], 5)
    np.testing.assert_allclose(phi[0], np.array(counts) / math.sqrt(sum(count**2 for count in counts)), rtol=1e-6)
    assert not phi[1:].any()
    assert phi.dtype == np.float32


def test_profiles_of_few_reactions_are_neither_fitted_nor_labeled() -> None:
    assert reactions.encode([(1, 2, 0), (1, 1, 0), None], 3, minimum=3).any(axis=1).tolist() == [True, False, False]
    posts = [
        {"post_id": f"{number}", "reactions": {"love": 30} if number % 2 else {"wow": 1, "haha": 3}}
        for number in range(300)
    ]
    labeler = fit_labeler(posts, make_labels(reaction_clusters=1, min_reactions=5))
    assert labeler.fitted["reactions"] == sum(
        hashing.split(post["post_id"], hashing.salt("", 0), 0.5) == "cluster" for post in posts[1::2]
    )
    np.testing.assert_allclose(labeler.reaction_centroids, [[0, 0, 0, 0, 1]], atol=1e-6)
    counts = [{"love": 5}, {"love": 4}, {"love": 4, "wow": 1}, {"love": 4, "care": 1}]
    labeled = labeler.label({"post_id": "a", "reactions": reactions} for reactions in counts)
    assert [post.reaction_label for post in labeled] == [0, -1, 0, -1]


@pytest.mark.parametrize("names", [("1", "2", "3", "4", "5"), ("❤️", "😂", "like"), ("Star", "sad")])
def test_a_vocabulary_of_buttons_goes_through_fit_and_file(names: tuple[str, ...], tmp_path: Path) -> None:
    posts = [{"post_id": f"{number}", "reactions": {names[number % len(names)]: 7}} for number in range(200)]
    labels = make_labels(reactions=names, reaction_clusters=len(names))
    fit_labeler(posts, labels).save(tmp_path / "labeler")
    labeler = Labeler.load(tmp_path / "labeler")
    assert labeler.labels["reactions"] == list(names)
    found = [post.reaction_label for post in labeler.label(posts)]
    assert len(set(found[: len(names)])) == len(names)
    assert found == [found[number % len(names)] for number in range(len(posts))]
    # A centroid has the order of the names.
    assert labeler.reaction_centroids[found[: len(names)]].argmax(axis=1).tolist() == list(range(len(names)))
    with pytest.raises(UserError, match="reaction_unknown"):
        labeler.label([{"post_id": "a", "reactions": {"applause": 1}}])


def test_one_button_has_one_name() -> None:
    with pytest.raises(UserError, match="two names of the button '❤'"):
        fit_labeler(make_posts(), make_labels(reactions=("❤", "wow", "❤️")))


def test_clusters_of_too_few_posts_are_no_label() -> None:
    posts = make_posts(200)
    # One post writes of something else, often.
    posts.append({"post_id": "alone", "comments": ["quantum tensor lattice"] * 30})
    shared = {"comment_clusters": 8, "cluster_fraction": 0.999999, "comment_dim": 8}
    every = fit_labeler(posts, make_labels(**shared, min_posts=1))
    assert len(every.suppressed) == 0
    [own] = every.label([posts[-1]])[0].comment_labels
    labeler = fit_labeler(posts, make_labels(**shared, min_posts=2))
    assert labeler.suppressed.tolist() == [own]
    # No words of a single post are published.
    assert (labeler.comment_terms[own] == -1).all()
    assert not labeler.comment_term_weights[own].any()
    assert labeler.label([posts[-1]])[0].comment_labels == []
    assert [found.comment_labels for found in labeler.label(posts[:-1])] == [
        found.comment_labels for found in every.label(posts[:-1])
    ]
    assert labeler.classes == every.classes
    with pytest.raises(UserError, match=r"labels\.min_posts=1000 distinct posts"):
        fit_labeler(posts, make_labels(**shared, min_posts=1000))


def test_top_terms_tell_clusters_apart_by_hand(labeler: Labeler) -> None:
    comments = [comment for post in make_posts() for comment in post["comments"]]
    salt = hashing.salt("", 0)
    comments = [
        comment
        for post in make_posts()
        if hashing.split(post["post_id"], salt, 0.5) == "cluster"
        for comment in post["comments"]
    ]
    rows = labeler.comments.tfidf(comments).toarray()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    clusters = kmeans.assign(labeler.comments.encode(comments), labeler.comment_centroids)
    for cluster in range(3):
        more = rows[clusters == cluster].mean(axis=0) - rows.mean(axis=0)
        terms = [term for term in labeler.comment_terms[cluster] if term >= 0]
        np.testing.assert_allclose(labeler.comment_term_weights[cluster][: len(terms)], more[terms], rtol=1e-4)
        assert sorted(more[terms], reverse=True) == pytest.approx(more[terms])
        assert set(terms) == set(np.flatnonzero(more > 1e-6))
        topic = next(topic for topic in TOPICS if labeler.comments.vocabulary[terms[0]] in topic.casefold().split())
        assert {labeler.comments.vocabulary[term] for term in terms} <= set(topic.casefold().split())


def test_each_comment_is_tokenized_once_in_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    posts, tokenized = make_posts(200), Counter()
    split = Splitter.split

    def counting(self: Splitter, comments: Sequence[str]) -> list[list[Any]]:
        tokenized.update(comments)
        return split(self, comments)

    monkeypatch.setattr(Splitter, "split", counting)
    labeler = fit_labeler(posts, make_labels())
    assert tokenized.total() == labeler.fitted["comments"]


def test_labels_don_t_depend_on_the_encoding_of_an_export() -> None:
    posts = make_posts(200)
    labeler = fit_labeler(posts, make_labels())
    smiling = [{**post, "comments": [f"{comment} 😀 é" for comment in post["comments"]]} for post in posts]
    broken = [
        {**post, "comments": [comment.encode("utf-8").decode("latin-1") for comment in post["comments"]]}
        for post in smiling
    ]
    assert labeler.label(broken) == labeler.label(smiling)
