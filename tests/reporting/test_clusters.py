"""What the clusters mean: the numbers against other implementations and by hand, the page against hostile words."""

import base64
import html.parser
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity

from vise_jax import artifact, config
from vise_jax.data import shards
from vise_jax.engagement import Labeler
from vise_jax.engagement.comments import CommentEncoder
from vise_jax.engagement.fitting import fit_labeler
from vise_jax.errors import UserError
from vise_jax.posts import Post
from vise_jax.reporting import clusters, duplicates, figures, page

HOSTILE = (
    "$\\oops$",
    "猫",
    "[bold]",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "'\"`",
    "\u2028",
)
VOCABULARY = ["dog", "paw", "🐶", "sea", "🏖", "secret", "👍🏽", ":)", *HOSTILE, "🇫🇷", "1\u20e3", "🏽", "\ue415"]


def make_labeler(**changes: Any) -> Labeler:
    """Five comment clusters, of which the fourth is suppressed, and three reaction clusters."""
    terms = np.full((5, 9), -1, np.int32)
    terms[0, :4] = [2, 0, 1, 7]
    terms[1, :3] = [3, 4, 6]
    terms[2] = range(8, 17)
    terms[3, :1] = [5]
    terms[4, :4] = range(17, 21)
    weights = np.where(terms >= 0, np.linspace(1, 0.2, 9), 0).astype(np.float32)
    fields: dict[str, Any] = {
        "labels": {"reactions": ["haha", "sorry", "angry", "wow", "love"]},
        "salt_check": "",
        "comments": CommentEncoder("lsa", VOCABULARY, np.ones(21, np.float32), np.ones((21, 2), np.float32)),
        "comment_centroids": np.array([[1, 0], [0, 2], [3, 4], [1, 0.01], [-1, 0]], np.float32),
        "reaction_centroids": np.array([[0, 0, 0, 0, 1], [0.6, 0, 0, 0, 0.2], [0, 0.3, 0.1, 0, 0]], np.float32),
        "comment_terms": terms,
        "comment_term_weights": weights,
        "suppressed": np.array([3], np.int32),
    }
    return Labeler(**{**fields, **changes})


def make_statistics() -> dict[str, np.ndarray]:
    """100 examples, 80 of them with a reaction label; the suppressed cluster is no label of any."""
    return {
        "comments": np.array([20, 60, 15, 0, 0]),
        "reactions": np.array([40, 30, 10]),
        "labels_per_post": np.array([30, 52, 18]),
        "pairs": np.array([[5, 10, 1], [30, 6, 4], [5, 4, 4], [0, 0, 0], [0, 0, 0]]),
    }


@pytest.mark.parametrize(
    ("counts", "gini"), [([3, 3, 3], 0), ([0, 0, 0, 8], 3 / 4), ([4, 1, 3, 2], 1 / 4), ([7], 0), ([0, 0], 0), ([], 0)]
)
def test_gini_by_hand(counts: list[int], gini: float) -> None:
    assert clusters.gini(np.array(counts, np.int64)) == pytest.approx(gini)


def test_gini_is_half_the_relative_mean_difference() -> None:
    counts = np.random.default_rng(0).zipf(1.5, 60).clip(max=10**6)
    differences = [abs(int(one) - int(other)) for one in counts for other in counts]
    assert clusters.gini(counts) == pytest.approx(np.mean(differences) / (2 * np.mean(counts)))


def test_balance_by_hand() -> None:
    expected = {"clusters": 3, "empty": 1, "labels": 4, "largest": 0.75, "gini": 0.5}
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert clusters.balance(np.array([1, 0, 3])) == pytest.approx({**expected, "effective": math.exp(entropy)})
    counts = np.arange(50)
    assert clusters.balance(counts)["effective"] == pytest.approx(math.exp(scipy.stats.entropy(counts / counts.sum())))
    nothing = {"clusters": 2, "empty": 2, "labels": 0, "largest": 0, "gini": 0, "effective": 0}
    assert clusters.balance(np.zeros(2, np.int64)) == nothing
    assert clusters.balance(np.zeros(0, np.int64)) == {**nothing, "clusters": 0, "empty": 0}


def test_lift_by_hand() -> None:
    # 3/4 of the first cluster's examples are of a reaction that half of all examples are of.
    lift = clusters.lift(np.array([[30, 10], [5, 4], [0, 0]]), np.array([50, 50]))
    np.testing.assert_allclose(lift, [[1.5, 0.5], [10 / 9, np.nan], [np.nan, np.nan]])


def test_lift_counted_from_examples() -> None:
    draw = np.random.default_rng(1)
    examples = [(set(draw.integers(0, 6, draw.integers(0, 4)).tolist()), int(draw.integers(-1, 3))) for _ in range(400)]
    pairs = np.array(
        [[sum(c in labels and r == label for labels, label in examples) for r in range(3)] for c in range(6)]
    )
    reacted = [(labels, label) for labels, label in examples if label >= 0]
    lift = clusters.lift(pairs, np.array([sum(label == r for _, label in reacted) for r in range(3)]))
    for c in range(6):
        ours = [label for labels, label in reacted if c in labels]
        for r in range(3):
            overall = np.mean([label == r for _, label in reacted])
            assert lift[c, r] == pytest.approx(np.mean([label == r for label in ours]) / overall)


@pytest.mark.parametrize("count", [1, 4, 100])
def test_nearest_against_all_cosines(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(clusters, "_CHUNK", 8)
    centroids = np.random.default_rng(2).normal(size=(30, 5)).astype(np.float32)
    centroids[7] = 0
    indices, cosines = clusters.nearest(centroids, count)
    for row, cosine in enumerate(cosine_similarity(centroids)):
        others = [other for other in np.argsort(-cosine) if other != row][:count]
        np.testing.assert_allclose(cosines[row], cosine[others], atol=1e-6)
        if row != 7:
            assert indices[row].tolist() == others
        assert row not in indices[row]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_lone_row_has_no_neighbors(rows: int) -> None:
    indices, cosines = clusters.nearest(np.ones((rows, 3), np.float32), 4)
    assert indices.shape == cosines.shape == (rows, 0)


def test_summary_by_hand() -> None:
    summary = clusters.summarize(make_labeler(), make_statistics())
    assert summary["examples"] == 100
    assert summary["buttons"] == ["haha", "sorry", "angry", "wow", "love"]
    assert summary["labels_per_post"] == [30, 52, 18]
    assert summary["balance"]["comments"] == clusters.balance(np.array([20, 60, 15, 0]))
    assert summary["balance"]["reactions"]["largest"] == 0.5
    assert [row["number"] for row in summary["comments"]] == [1, 0, 2, 4]
    sea, dog, hostile, silent = summary["comments"]
    assert (sea["examples"], sea["share"]) == (60, 0.6)
    assert sea["words"] == [["sea", 1.0]]
    assert sea["emoji"] == [["🏖", 0.9], ["👍🏽", 0.8]]
    assert dog["words"] == [["dog", 0.9], ["paw", 0.8], [":)", 0.7]]
    assert dog["emoji"] == [["🐶", 1.0]]
    assert [term for term, _ in hostile["words"]] == list(HOSTILE)
    # 30 of its 40 examples with a reaction, where 40 of all 80 are; 10 of 16, where 30 of 80 are; 5 of 13, where 40 of
    # 80 are, and otherwise too few to say.
    assert sea["reaction"] == {"number": 0, "lift": 1.5, "together": 30}
    assert dog["reaction"] == {"number": 1, "lift": 1.667, "together": 10}
    assert hostile["reaction"] is silent["reaction"] is None
    assert sea["nearest"] == [[2, 0.8], [0, 0.0], [4, 0.0]]
    assert silent["nearest"] == [[1, 0.0], [2, -0.6], [0, -1.0]]
    assert silent["examples"] == 0
    assert [term for term, _ in silent["emoji"]] == ["🇫🇷", "1\u20e3", "🏽"]
    assert [term for term, _ in silent["words"]] == ["U+E415"]  # of a phone before there were emoji in Unicode
    assert [(row["number"], row["share"]) for row in summary["reactions"]] == [(0, 0.5), (1, 0.375), (2, 0.125)]
    assert [row["profile"] for row in summary["reactions"]] == [
        [0, 0, 0, 0, 1],
        [0.75, 0, 0, 0, 0.25],
        [0, 0.75, 0.25, 0, 0],
    ]
    assert [row["name"] for row in summary["reactions"]] == ["love 100%", "haha 75%, love 25%", "sorry 75%, angry 25%"]
    assert summary["heat"]["comments"] == [1, 0, 2]
    assert summary["heat"]["reactions"] == [0, 1, 2]
    sea_row, dog_row, hostile_row = summary["heat"]["log2_lift"]
    assert sea_row == [pytest.approx(math.log2(1.5)), pytest.approx(math.log2(6 / 40 / (30 / 80))), None]
    assert dog_row[:2] == [pytest.approx(math.log2(5 / 16 / 0.5)), pytest.approx(math.log2(5 / 3))]
    assert hostile_row == [pytest.approx(math.log2(5 / 13 / 0.5)), None, None]


def test_of_suppressed_clusters_only_their_number_is_known() -> None:
    summary = clusters.summarize(make_labeler(), make_statistics())
    assert summary["suppressed"] == 1
    assert "secret" not in json.dumps(summary)
    assert not any(
        row["number"] == 3 or any(number == 3 for number, _ in row["nearest"]) for row in summary["comments"]
    )
    open_ = clusters.summarize(make_labeler(suppressed=np.zeros(0, np.int32)), make_statistics())
    assert "secret" in json.dumps(open_)
    assert open_["comments"][1]["nearest"][0][0] == 3


class Reader(html.parser.HTMLParser):
    """What a browser makes of the page: its elements, and the text of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.comments: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and data.strip():
            self.scripts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def render(labeler: Labeler, statistics: dict[str, np.ndarray], examples: dict[int, list[str]] | None = None) -> str:
    summary = clusters.summarize(labeler, statistics)
    return page.render(summary, dict.fromkeys(figures.FIGURES, b"png"), examples or {})


def test_words_stay_words() -> None:
    said = ["<script>alert(2)</script>", "</ul><b>bold</b> <user>"]
    text = render(make_labeler(), make_statistics(), {2: said})
    read = Reader(text)
    assert [tag for tag, _ in read.elements].count("script") == len(read.scripts) == 2
    assert not {tag for tag, _ in read.elements} & {"b", "iframe", "object", "link"}
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)
    assert not read.comments
    data = json.loads(read.scripts[0])
    hostile = next(row for row in data["comments"] if row["number"] == 2)
    assert [term for term, _ in hostile["words"]] == list(HOSTILE)
    assert hostile["sample"] == said
    assert data["reactions"] == {"0": "love 100%", "1": "haha 75%, love 25%", "2": "sorry 75%, angry 25%"}
    summary = clusters.summarize(make_labeler(), make_statistics()) | {"labeler": "<b>"}
    assert "<b>" not in page.render(summary, dict.fromkeys(figures.FIGURES, b""), {})
    # People's words come into the document as text only.
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text


def test_near_duplicates_are_on_the_page_when_requested(tmp_path: Path) -> None:
    directory, sizes = tmp_path / "shards", (300, 200)
    directory.mkdir()
    colors = ((200, 0, 0), (0, 0, 200), (0, 200, 0))
    examples = []
    for color in colors:
        file = io.BytesIO()
        Image.new("RGB", sizes, color).save(file, "PNG")
        labels = {"comments/labels": [0], "comments/weights": [1.0], "reactions/label": 0}
        examples.append({"image/encoded": file.getvalue(), "post_id": b"%032d" % len(examples), **labels})
    written = shards.write_shard(examples, directory / "a-00000.tfrecord")
    largest = [
        {"posts": 70, "members": [{"shard": written["name"], "record": record} for record in (0, 2)]},
        {"posts": 3, "members": [{"shard": written["name"], "record": 1}]},
    ]
    manifest = {
        "format_version": shards.FORMAT_VERSION,
        "posts": 3,
        "examples": 3,
        "max_comment_labels": 1,
        "classes": {"comments": 1, "reactions": 1},
        "shards": [written],
        "labeler": "",
        "fingerprint": "",
        "validation": {"examples": 0, "shards": []},
        "duplicates": {"groups": 2, "examples": 71, "left_out": 0, "largest": largest},
    }
    artifact.write_json(directory / "manifest.json", manifest)
    summary = clusters.summarize(make_labeler(), make_statistics())
    drawn = dict.fromkeys(figures.FIGURES, b"png")
    text = page.render(summary, drawn, {}, duplicates.read(directory, 0))
    assert "2 images came with several posts" in text
    assert "70, 3" in text
    assert "data:image/jpeg" not in text
    read = Reader(page.render(summary, drawn, {}, duplicates.read(directory, 1)))
    sources = [attributes["src"] for tag, attributes in read.elements if tag == "img"]
    shown = [source.partition(",")[2] for source in sources if source.startswith("data:image/jpeg")]
    images = [Image.open(io.BytesIO(base64.b64decode(source))) for source in shown]
    assert [image.size for image in images] == [(112, 75)] * 2
    for image, color in zip(images, (colors[0], colors[2]), strict=True):
        np.testing.assert_allclose(image.getpixel((5, 5)), color, atol=3)


def test_the_page_needs_nothing_else_and_shows_no_comments_unless_requested() -> None:
    text = render(make_labeler(), make_statistics())
    read = Reader(text)
    assert "://" not in text
    links = [value for _, attributes in read.elements for name in ("src", "href") if (value := attributes.get(name))]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert {link[1:] for link in links if link[0] == "#"} <= {attributes.get("id") for _, attributes in read.elements}
    assert "default-src 'none'" in text
    assert "secret" not in text
    assert "Suppressed: 1." in text
    assert "comments as people wrote them" not in text
    assert "comments as people wrote them" in render(make_labeler(), make_statistics(), {0: ["so cute"]})
    assert all(row["sample"] == [] for row in json.loads(read.scripts[0])["comments"])


def test_columns_that_can_be_sorted_by_are_in_the_data() -> None:
    read = Reader(render(make_labeler(), make_statistics()))
    keys = {attributes["data-key"] for tag, attributes in read.elements if tag == "button" and "data-key" in attributes}
    made = {"reactionName", "lift", "cosine"}
    assert made < keys
    assert keys - made <= json.loads(read.scripts[0])["comments"][0].keys()
    assert all(f"cluster.{key} =" in read.scripts[1] for key in made)


@pytest.mark.filterwarnings("error")
def test_files_are_written_and_the_same_each_time(tmp_path: Path) -> None:
    summary = clusters.summarize(make_labeler(), make_statistics())
    for directory in ("a", "b", "b"):
        page.write(summary, {}, tmp_path / directory)
    names = {"index.html", "reactions.png", "labels_per_post.png", "balance.png", "co_occurrence.png"}
    assert (
        {path.name for path in (tmp_path / "a").iterdir()}
        == {path.name for path in (tmp_path / "b").iterdir()}
        == names
    )
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name in names - {"index.html"}:
        with Image.open(tmp_path / "a" / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
            assert len(np.unique(np.asarray(image.convert("L")))) > 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("missing", ["comments", "reactions", "examples"])
def test_one_engagement_alone_has_a_page(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labeler, statistics = make_labeler(), make_statistics()
    if missing == "comments":
        empty = {"comment_centroids": np.zeros((0, 5), np.float32), "suppressed": np.zeros(0, np.int32)}
        terms = {"comment_terms": np.zeros((0, 9), np.int32), "comment_term_weights": np.zeros((0, 9), np.float32)}
        labeler = make_labeler(comments=None, **empty, **terms)
        statistics |= {"comments": np.zeros(0, np.int64), "pairs": np.zeros((0, 3), np.int64)}
        statistics["labels_per_post"] = np.array([80])
    elif missing == "reactions":
        labeler = make_labeler(reaction_centroids=np.zeros((0, 5), np.float32))
        statistics |= {"reactions": np.zeros(0, np.int64), "pairs": np.zeros((5, 0), np.int64)}
    else:
        statistics = {name: np.zeros_like(counts) for name, counts in statistics.items()}
    summary = clusters.summarize(labeler, statistics)
    page.write(summary, {}, tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert ("the labeler's posts had no comments" in text) == (missing == "comments")
    assert ("the labeler's posts had no reactions" in text) == (missing == "reactions")
    assert len(list(tmp_path.glob("*.png"))) == 4
    clusters.show(summary)
    printed = capsys.readouterr().out
    assert ("the largest of 0 comment clusters" in printed) == (missing == "comments")
    assert ("sea" in printed) == (missing != "comments")


def test_many_reaction_clusters_fit_into_the_figure() -> None:
    draw = np.random.default_rng(3)
    labeler = make_labeler(reaction_centroids=draw.random((200, 5), np.float32))
    statistics = {**make_statistics(), "reactions": np.arange(50, 250), "pairs": draw.integers(0, 9, (5, 200))}
    summary = clusters.summarize(labeler, statistics)
    drawn = figures.draw(summary)
    with Image.open(io.BytesIO(drawn["reactions"])) as image:
        assert max(image.size) < 2000
    assert len(summary["heat"]["reactions"]) == 20
    assert render(labeler, statistics).count("<li>") == 200


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    clusters.show(clusters.summarize(make_labeler(), make_statistics()))
    printed = capsys.readouterr().out.splitlines()
    row = next(line for line in printed if "sea" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "1",
        "60",
        "60.0%",
        "sea",
        "🏖 👍🏽",
        "love 100% (x1.5)",
    ]
    assert any("[bold]" in line and "<img src=x onerror=alert(1)>" in line for line in printed)
    assert not any("secret" in line for line in printed)


TOPICS = ("cat dog paw 🐶 fur", "sea sand wave 🏖 sun", "goal match team ⚽ win")


def make_posts(count: int = 240) -> list[Post]:
    draw = np.random.default_rng(4)
    return [
        Post(
            f"post-{number}",
            comments=tuple(f"{' '.join(draw.permutation(TOPICS[number % 3].split())[:3])} @ann{n}" for n in range(2)),
            reactions=(number % 3, 0, 0, 1, 2),
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def fitted() -> Labeler:
    labels = config.base().labels
    labels.update(comment_clusters=3, reaction_clusters=3, cluster_fraction=0.5, comment_dim=4, min_comment_count=2)
    return fit_labeler(make_posts(), labels)


def test_examples_are_masked_of_their_cluster_and_the_same_in_any_order(fitted: Labeler) -> None:
    drawn = clusters.draw_examples(fitted, make_posts(), 4)
    assert drawn == clusters.draw_examples(fitted, make_posts()[::-1], 4)
    assert sorted(drawn) == [0, 1, 2]
    for cluster, said in drawn.items():
        assert len(set(said)) == len(said) == 4
        assert all(comment.endswith(" <user>") for comment in said)
        assert {label.comment_labels[0] for label in fitted.label([Post("x", comments=(c,)) for c in said])} == {
            cluster
        }
    long = clusters.draw_examples(fitted, [Post("x", comments=("dog " * 100,))], 1)
    assert [len(said[0]) for said in long.values()] == [200]


def test_examples_of_suppressed_clusters_are_never_drawn(fitted: Labeler) -> None:
    drawn = clusters.draw_examples(replace(fitted, suppressed=np.array([1], np.int32)), make_posts(), 2)
    assert sorted(drawn) == [0, 2]


def test_shards_of_another_labeler_are_refused(fitted: Labeler, shards_folder: Path, tmp_path: Path) -> None:
    fitted.save(tmp_path / "labeler")
    with pytest.raises(UserError, match=r"shards .* were not labeled with the labeler .*labeler"):
        clusters.read(tmp_path / "labeler", shards_folder)
