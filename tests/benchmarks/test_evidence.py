"""The channel of the simulated pairing does what it says, and intervals are Student's."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vise_jax.data import datasets
from vise_jax.posts import REACTIONS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
import evidence_report
import pairing


@pytest.fixture(scope="module")
def engagement(tmp_path_factory):
    draw = np.random.default_rng(0)
    lines = []
    for number in range(1200):
        topic = number % 6
        words = [f"word{topic}x{word}" for word in draw.integers(0, 20, 6)]
        counts = dict.fromkeys(REACTIONS, 1) | {REACTIONS[number % 5]: 60}
        lines.append(
            json.dumps({"post_id": str(number), "image": None, "comments": [" ".join(words)], "reactions": counts})
        )
    path = tmp_path_factory.mktemp("posts") / "posts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return pairing.read_engagement(path)


def test_groups_divide_the_messages_and_profiles_the_reactions(engagement):
    for groups, every in ((engagement.groups, engagement.messages), (engagement.profiles, engagement.reactions)):
        assert sorted(np.concatenate(groups).tolist()) == list(range(len(every)))
    # Reactions of one button are of one profile.
    for profile in engagement.profiles:
        assert len(np.unique(engagement.reactions[profile].argmax(axis=1))) == 1


def drawn(engagement, noise: float, labels: np.ndarray, seed: int = 0):
    channel = pairing.draw_channel(engagement, 3, noise, seed)
    return channel, list(pairing.through(channel, engagement, labels, seed))


def share_preferred(engagement, channel, posts, labels) -> tuple[float, float]:
    """Return the fractions of messages and of reactions that are of groups their class prefers."""
    group_of = {engagement.messages[index]: number for number, group in enumerate(engagement.groups) for index in group}
    messages = [
        group_of[text] in channel.groups[label]
        for post, label in zip(posts, labels, strict=True)
        for text in post["comments"]
    ]
    profiles = [
        {
            tuple(engagement.reactions[index])
            for number in channel.profiles[label]
            for index in engagement.profiles[number]
        }
        for label in labels
    ]
    reactions = [tuple(post["reactions"].values()) in of for post, of in zip(posts, profiles, strict=True)]
    return float(np.mean(messages)), float(np.mean(reactions))


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_the_channel_has_its_noise(engagement, noise):
    labels = np.arange(6000) % 3
    channel, posts = drawn(engagement, noise, labels)
    messages, reactions = share_preferred(engagement, channel, posts, labels)
    # A noisy draw falls into a preferred group as often as a message of any class does.
    sizes = np.array([len(group) for group in engagement.groups]) / len(engagement.messages)
    chance = np.mean([sizes[groups].sum() for groups in channel.groups])
    counts = [tuple(row) for row in engagement.reactions]
    chances = []
    for preferred in channel.profiles:
        these = {counts[index] for number in preferred for index in engagement.profiles[number]}
        chances.append(np.mean([row in these for row in counts]))
    assert messages == pytest.approx(1 - noise + noise * chance, abs=0.02)
    assert reactions == pytest.approx(1 - noise + noise * np.mean(chances), abs=0.02)
    lengths = np.bincount([len(post["comments"]) for post in posts])[1:] / len(posts)
    np.testing.assert_allclose(lengths, 1 / pairing.MAX_MESSAGES, atol=0.02)


def test_noise_replaces_draws_and_moves_no_other(engagement):
    labels = np.arange(300) % 3
    _, clean = drawn(engagement, 0.0, labels)
    _, noisy = drawn(engagement, 0.3, labels)
    same = np.mean([one["reactions"] == other["reactions"] for one, other in zip(clean, noisy, strict=True)])
    assert 0.6 < same < 0.9
    assert [len(post["comments"]) for post in clean] == [len(post["comments"]) for post in noisy]
    _, again = drawn(engagement, 0.3, labels)
    assert again == noisy
    assert drawn(engagement, 0.3, labels, seed=1)[1] != noisy


def test_true_labels_are_as_many_directions_as_classes():
    labels = np.arange(31)
    counts = np.array([list(post["reactions"].values()) for post in pairing.true_labels(labels)], float)
    unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    assert len(np.unique(unit.round(6), axis=0)) == 31


def test_posts_keep_image_and_order(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(3):
            from PIL import Image

            Image.new("RGB", (8, 8), (40 * number, 0, 9)).save(tmp_path / "images" / label / f"{number}.png")
    dataset = datasets.open_labeled(tmp_path / "images")
    order = [4, 0, 5]
    with open(tmp_path / "posts.parquet", "wb") as file:
        pairing.write_posts(dataset, order, pairing.true_labels(dataset.labels[order]), file)
    rows = pq.read_table(tmp_path / "posts.parquet").to_pylist()
    assert [row["post_id"] for row in rows] == ["0000004", "0000000", "0000005"]
    assert [row["image_bytes"] for row in rows] == [dataset.read(number) for number in order]
    assert [row["reactions"]["haha"] for row in rows] == [0, 10, 0]


def rows(values: dict[tuple[str, str, int], list[float]]) -> list[dict]:
    return [
        {"cell": cell, "protocol": protocol, "labels": labels, "seed": seed, "accuracy": accuracy}
        for (cell, protocol, labels), of in values.items()
        for seed, accuracy in enumerate(of)
    ]


def test_intervals():
    """Three values: Student's t with 2 degrees of freedom is 4.303, by the table."""
    measured = rows({("x", "linear", 0): [0.3, 0.4, 0.5]})
    found = evidence_report.interval(measured, "x", "linear", 0)
    assert found.mean == pytest.approx(0.4)
    assert found.half == pytest.approx(4.303 * 0.1 / np.sqrt(3), rel=1e-3)
    assert evidence_report.interval(measured, "x", "knn", 0) is None
    assert np.isnan(evidence_report.interval(measured[:1], "x", "linear", 0).half)


def test_tables_and_figures(tmp_path: Path):
    values = {
        (cell, protocol, labels): [0.2 + 0.01 * number, 0.22, 0.25]
        for number, cell in enumerate(("a", "b", "random", "true_labels"))
        for protocol, labels in (("linear", 0), ("knn", 0), ("finetune", 5), ("finetune", 50))
    }
    studies = {
        "size": {"1,000": "a", "45,000": "b"},
        "heads": {"both": "b", "comments": "a"},
        "noise": {"0": "a", "1": "missing"},
        "lowshot": {"VisE": "b"},
    }
    evidence_report.write_report(rows(values), studies, 50, (5, 50), {"pairing": "simulated"}, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "| 1,000 | 22.3 ± " in text
    assert "| 1 | – | – | – |" in text
    assert "| random initialization | 23.0 ± " in text
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{study}.{kind}" for study in studies for kind in ("svg", "png")),
        *("results.csv", "evidence.json", "tables.md"),
    }
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 4 * 4 * 3
    assert "simulated pairing" in (tmp_path / "size.svg").read_text()


DOCS = Path(__file__).parents[2] / "docs" / "evidence"


def committed() -> dict:
    return json.loads((DOCS / "evidence.json").read_text())


def test_the_tables_in_the_docs_are_those_of_their_results():
    about = committed()
    tables = evidence_report.to_markdown(about["rows"], about["cells"], about["tuned"], about["setting"]["shots"])
    assert (DOCS / "tables.md").read_text() == tables
    assert about["pairing"] == "simulated"
    # Each number of the text is one of the tables.
    text = (DOCS / "index.md").read_text()
    for number in re.findall(r"(?<![\d.])\d\d\.\d(?![\d.])", text.split("## What came out")[1]):
        assert number in tables, number


def test_intervals_in_the_docs_by_numpy():
    about = committed()
    values = [row["accuracy"] for row in about["rows"] if row["cell"] == "random" and row["protocol"] == "linear"]
    assert len(values) == 3
    half = 4.303 * np.std(values, ddof=1) / np.sqrt(3)
    assert (
        f"| random initialization | {100 * np.mean(values):.1f} ± {100 * half:.1f} |"
        in (DOCS / "tables.md").read_text()
    )
