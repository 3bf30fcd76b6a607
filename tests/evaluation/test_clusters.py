"""NMI between comment clusters and hidden classes, against values worked by hand."""

import json
import math
from pathlib import Path

import pytest

from vise_jax import config as vise_config
from vise_jax.engagement import Labeler
from vise_jax.engagement.fitting import fit_labeler
from vise_jax.errors import UserError
from vise_jax.evaluation.clusters import agreement

CATS, DOGS = "cat kitty", "dog puppy"


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    labels = vise_config.base().labels
    labels.comment_clusters, labels.comment_dim, labels.min_comment_count = 2, 2, 1
    labels.cluster_fraction = 0.9
    posts = [{"post_id": str(number), "comments": [(CATS, DOGS)[number % 2]]} for number in range(40)]
    return fit_labeler(posts, labels)


def write(directory: Path, rows: list[tuple[str, str, str]]) -> Path:
    (directory / "posts").mkdir()
    lines = [json.dumps({"post_id": str(n), "comments": [comment]}) + "\n" for n, (comment, _, _) in enumerate(rows)]
    (directory / "posts" / "part-0.jsonl").write_text("".join(lines[:2]))
    (directory / "posts" / "part-1.jsonl").write_text("".join(lines[2:]))
    truth = [f"{n},{topic},{affect}\n" for n, (_, topic, affect) in enumerate(rows)]
    (directory / "truth.csv").write_text("post_id,topic,affect\n" + "".join(truth))
    return directory


def test_one_if_clusters_are_topics_and_zero_if_they_are_independent(labeler: Labeler, tmp_path: Path) -> None:
    rows = [(CATS, "cat", "wow"), (CATS, "cat", "love"), (DOGS, "dog", "wow"), (DOGS, "dog", "love")]
    assert agreement(write(tmp_path, rows), labeler) == pytest.approx({"topic": 1.0, "affect": 0.0}, abs=1e-9)


def test_comments_of_unknown_words_are_a_cluster(labeler: Labeler, tmp_path: Path) -> None:
    rows = [(CATS, "cat", "wow"), (DOGS, "dog", "wow"), ("qqq", "cat", "wow"), ("zzz", "dog", "wow")]
    # H(topic) = 1 bit, H(cluster) = 1.5 bits, I = 0.5 bit: known words determine the topic.
    expected = 0.5 / ((1 + 1.5) / 2)
    assert math.isclose(agreement(write(tmp_path, rows), labeler)["topic"], expected, rel_tol=1e-9)


def test_a_directory_without_truth_is_refused(labeler: Labeler, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing: give a directory"):
        agreement(tmp_path, labeler)
