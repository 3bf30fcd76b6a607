"""The demo corpus: determinism, schema, shares, broken images, and nothing hidden that shows."""

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from scipy.stats import chi2_contingency
from sklearn.linear_model import LogisticRegression

from vise_jax.demo import corpus as demo
from vise_jax.demo.comments import comments, reactions
from vise_jax.demo.scenes import AFFECTS, TOPICS, render
from vise_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made() -> list[tuple[dict, bytes | None, tuple[str, str]]]:
    return [demo.make_post(3, number) for number in range(800)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "corpus"
    demo.make_corpus(output, posts=40, labeled=60, seed=5, processes=1)
    return output


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_a_post_depends_on_seed_and_number_alone(made: list) -> None:
    assert demo.make_post(3, 77) == made[77]
    assert demo.make_post(4, 77)[1] != made[77][1]
    assert demo.make_labeled(3, "topic", 5) == demo.make_labeled(3, "topic", 5)
    # Labeled images are not among the posts', nor the topic's among the affect's.
    posts = {content for _, content, _ in made[:20]}
    topic = {demo.make_labeled(3, "topic", number)[1] for number in range(20)}
    affect = {demo.make_labeled(3, "affect", number)[1] for number in range(20)}
    assert not posts & topic
    assert not posts & affect
    assert not topic & affect


def test_posts_follow_the_schema_and_hide_the_truth(made: list) -> None:
    for post, _, (topic, affect) in made:
        assert set(post) == {"post_id", "image", "comments", "reactions"}
        assert all(isinstance(comment, str) and len(comment) < 300 for comment in post["comments"])
        assert len(post["comments"]) <= 12
        if post["reactions"] is not None:
            assert set(post["reactions"]) == {"haha", "sorry", "angry", "wow", "love"}
            assert all(type(count) is int and count >= 0 for count in post["reactions"].values())
        for word in (topic, affect):
            assert word not in f"{post['post_id']} {post['image']}"
    assert len({post["post_id"] for post, _, _ in made}) == len(made)


def test_shares(made: list) -> None:
    posts, contents, _ = zip(*made, strict=True)
    count = len(posts)

    def share(holds: list[bool]) -> float:
        return sum(holds) / count

    assert share([not post["comments"] for post in posts]) == pytest.approx(0.05, abs=0.02)
    assert share([not any((post["reactions"] or {}).values()) for post in posts]) == pytest.approx(0.05, abs=0.02)
    assert share([post["image"] is None for post in posts]) == pytest.approx(0.02, abs=0.012)
    assert share([bool(post["image"]) and _broken(content) for post, content in zip(posts, contents, strict=True)]) == (
        pytest.approx(0.01, abs=0.008)
    )
    totals = [sum(post["reactions"].values()) for post in posts if post["reactions"]]
    assert max(totals) > 20 * np.median(totals)


def test_images_are_jpeg_png_color_and_gray_of_many_sizes(made: list) -> None:
    images = [Image.open(io.BytesIO(content)) for _, content, _ in made if content and not _broken(content)]
    kinds = Counter((image.format, image.mode) for image in images)
    assert set(kinds) == {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")}
    assert kinds["JPEG", "RGB"] > 0.8 * len(images)
    sides = [side for image in images for side in image.size]
    assert min(sides) >= 80
    assert max(sides) <= 160
    assert len(set(sides)) > 60


def test_broken_images_are_cut_text_or_missing(made: list) -> None:
    broken = [content for post, content, _ in made if post["image"] and _broken(content)]
    assert None in broken
    assert any(content and content.startswith(b"This is not") for content in broken)
    assert any(content and not content.startswith(b"This is not") for content in broken)


def test_topic_and_affect_are_independent_and_even(made: list) -> None:
    table = np.zeros((len(TOPICS), len(AFFECTS)))
    for _, _, (topic, affect) in made:
        table[TOPICS.index(topic), AFFECTS.index(affect)] += 1
    assert chi2_contingency(table).pvalue > 0.001
    assert (np.abs(table.sum(axis=1) / len(made) - 1 / len(TOPICS)) < 0.04).all()
    assert (np.abs(table.sum(axis=0) / len(made) - 1 / len(AFFECTS)) < 0.04).all()


def test_reactions_follow_the_affect_and_comments_name_the_topic() -> None:
    for affect in AFFECTS:
        counts = [reactions(rng(number), affect) or {} for number in range(300)]
        sums = Counter({name: sum(count.get(name, 0) for count in counts) for name in AFFECTS})
        assert sums.most_common(1)[0][0] == affect
    texts = [comment for number in range(300) for comment in comments(rng(number), "cat", "love")]
    assert sum(any(word in text.lower() for word in ("cat", "kitt", "meow", "🐱", "🐈")) for text in texts) > 0.7 * len(
        texts
    )
    assert any("😍" in text for text in texts)
    assert any("\u200d" in text for text in texts)
    assert any("@user" in text for text in texts)
    assert any("555-01" in text for text in texts)


@pytest.mark.slow
def test_colors_tell_little() -> None:
    # Linear on color histograms: near chance, which is 1/8 and 1/5.
    hidden = [(TOPICS[number % 8], AFFECTS[number % 5]) for number in range(600)]
    codes = [np.asarray(render(rng(number), *classes)) // 64 @ [16, 4, 1] for number, classes in enumerate(hidden)]
    histograms = np.array([np.bincount(code.ravel(), minlength=64) / code.size for code in codes])
    for labels, limit in zip(zip(*hidden, strict=True), (0.3, 0.38), strict=True):
        model = LogisticRegression(C=100, max_iter=300).fit(histograms[:400], labels[:400])
        assert model.score(histograms[400:], labels[400:]) < limit


def test_each_topic_and_affect_changes_the_scene() -> None:
    # The same draws, so that what differs is the topic or the affect.
    scenes = {(topic, affect): render(rng(1), topic, affect).tobytes() for topic in TOPICS for affect in AFFECTS}
    assert len(set(scenes.values())) == len(TOPICS) * len(AFFECTS)


def test_the_directory(corpus: Path) -> None:
    assert {path.name for path in corpus.iterdir()} == {"posts", "topic", "affect", "truth.csv", "corpus.json"}
    posts = [json.loads(line) for path in sorted((corpus / "posts").glob("*.jsonl")) for line in path.open()]
    truth = list(csv.DictReader((corpus / "truth.csv").open()))
    assert [post["post_id"] for post in posts] == [row["post_id"] for row in truth]
    for number, (post, row) in enumerate(zip(posts, truth, strict=True)):
        expected, content, hidden = demo.make_post(5, number)
        assert post == expected
        assert (row["topic"], row["affect"]) == hidden
        if content is not None:
            assert (corpus / "posts" / post["image"]).read_bytes() == content
    for task, classes in (("topic", TOPICS), ("affect", AFFECTS)):
        for split, count in (("train", 40), ("test", 20)):
            files = list((corpus / task / split).rglob("*.jpg"))
            assert {path.parent.name for path in files} == set(classes)
            assert len(files) == count
            for path in files:
                assert (path.parent.name, path.read_bytes()) == demo.make_labeled(5, task, int(path.stem))
    description = json.loads((corpus / "corpus.json").read_text())
    assert description["simulated"] is True
    assert description["seed"] == 5
    assert description["posts"] == 40


def test_several_processes_write_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    demo.make_corpus(tmp_path / "corpus", posts=40, labeled=60, seed=5, processes=2)

    def files(directory: Path) -> dict[Path, bytes]:
        return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    assert files(tmp_path / "corpus") == files(corpus)


def test_the_same_command_again_does_nothing_and_another_one_is_refused(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert demo.make_corpus(corpus, posts=40, labeled=60, seed=5)["posts"] == 40
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before
    with pytest.raises(UserError, match="holds another demo corpus"):
        demo.make_corpus(corpus, posts=40, labeled=60, seed=6)


@pytest.mark.parametrize(("posts", "seed"), [(0, 0), (2_000_000, 0), (4, -1)])
def test_wrong_numbers_are_refused(posts: int, seed: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a number"):
        demo.make_corpus(tmp_path / "corpus", posts=posts, seed=seed)
    assert not (tmp_path / "corpus").exists()


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        demo.make_corpus(tmp_path, posts=4)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_needs_an_output() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/demo.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "--output is missing" in done.stderr
    assert "Traceback" not in done.stderr


def _broken(content: bytes | None) -> bool:
    if content is None:
        return True
    try:
        Image.open(io.BytesIO(content)).load()
    except (UnidentifiedImageError, OSError, SyntaxError):
        return True
    return False
