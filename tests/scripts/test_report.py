"""scripts/report.py as people run it: a table, a page, both, and one clear sentence for each mistake."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from PIL import Image

from vise_jax import config
from vise_jax.labeling.fit import fit as fit_job
from vise_jax.labeling.label import label as label_job

ROOT = Path(__file__).parents[2]
FIGURES = {"reactions.png", "labels_per_post.png", "balance.png", "co_occurrence.png"}


def report(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def make_labels() -> ConfigDict:
    labels = config.base().labels
    labels.update(comment_clusters=3, reaction_clusters=2, comment_dim=3, min_comment_count=2, cluster_fraction=0.5)
    return labels


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_result: Callable[..., dict]) -> Path:
    """A directory with posts, a labeler, its shards, another labeler, and results."""
    directory = tmp_path_factory.mktemp("made")
    lines = []
    for number in range(90):
        Image.new("RGB", (16, 16), (number * 2, 0, 0)).save(directory / f"{number}.jpg")
        comments = [f"topic{number % 3} 🐶 @jane{number} word{number % 7} unique{number}"]
        reactions = {"love": number % 5 + 1} if number % 2 else {"angry": 3, "sorry": number % 4}
        lines.append({"post_id": f"p{number}", "image": f"{number}.jpg", "comments": comments, "reactions": reactions})
    (directory / "posts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    labeler = fit_job([directory / "posts.jsonl"], make_labels(), directory / "labeler")
    label_job([directory / "posts.jsonl"], directory / "labeler", make_labels(), directory / "shards")
    replace(labeler, reaction_centroids=labeler.reaction_centroids[::-1].copy()).save(directory / "other")
    (directory / "results").mkdir()
    (directory / "results" / "one.json").write_text(json.dumps({"format_version": 3, **make_result()}))
    return directory


def test_results_alone(made: Path, tmp_path: Path) -> None:
    result = report("--results", made / "results", "--output", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    assert "50.00" in result.stdout
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        *("table.md", "table.csv", "sensitivity.html", "sensitivity-one.png")
    }


@pytest.mark.slow
def test_clusters_without_anyone_s_comments(made: Path, tmp_path: Path) -> None:
    command = ("--labeler", made / "labeler", "--shards", made / "shards", "--output", tmp_path / "report")
    result = report(*command)
    assert result.returncode == 0, result.stderr
    assert "the largest of 3 comment clusters" in result.stdout
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"index.html", *FIGURES}
    page = (tmp_path / "report" / "index.html").read_text()
    manifest = json.loads((made / "shards" / "manifest.json").read_text())
    assert f"Pseudo-labels of {manifest['examples']:,} training examples" in page
    assert all(f"topic{number}" in page for number in range(3))
    assert "jane" not in page + result.stdout
    assert "unique" not in page + result.stdout
    again = report("--results", made / "results", *command)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "report" / "index.html").read_text() == page
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"index.html", "table.md", "table.csv", "sensitivity.html", "sensitivity-one.png", *FIGURES}


def test_examples_are_masked(made: Path, tmp_path: Path) -> None:
    given = ("--labeler", made / "labeler", "--shards", made / "shards", "--output", tmp_path)
    result = report(*given, "--posts", made / "posts.jsonl", "--show-examples=2")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "index.html").read_text()
    assert page.count("\\u003cuser\\u003e word") == 6
    assert "jane" not in page
    assert "comments as people wrote them" in page


@pytest.mark.slow
def test_excluded_posts_are_no_examples(made: Path, tmp_path: Path) -> None:
    given = ("--labeler", made / "labeler", "--shards", made / "shards", "--output", tmp_path / "report")
    (tmp_path / "ids").write_text("".join(f"p{number}\n" for number in range(90) if number != 4))
    result = report(*given, "--posts", made / "posts.jsonl", "--show-examples=2", "--exclude", tmp_path / "ids")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "report" / "index.html").read_text().count("\\u003cuser\\u003e word") == 1


def make_run(directory: Path, rate: float) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"config": {"training.learning_rate": rate, "training.seed": 0}}))
    lines = [json.dumps({"step": step, "loss": 5 - step / 10, "goodput": 0.97}) for step in (10, 20)]
    (directory / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3']))
    return directory


@pytest.mark.slow
def test_runs(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "a" / "run", 0.1), make_run(tmp_path / "b" / "run", 0.2)
    result = report("--runs", f"{one},{other}", "--output", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    for words in (
        ("a/run", "b/run"),
        ("last step", "20", "20"),
        ("goodput", "97.00%"),
        ("learning_rate", "0.1", "0.2"),
    ):
        assert any(all(word in line for word in words) for line in result.stdout.splitlines()), words
    assert "training.seed" not in result.stdout
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"training.html", "training_loss.png", "training_speed.png"}


@pytest.mark.slow
def test_mistakes_get_one_sentence_and_write_nothing(made: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "new")
    labeler, shards = ("--labeler", made / "labeler"), ("--shards", made / "shards")
    results = ("--results", made / "results")
    cases = {
        "--output is missing": results,
        "say what to report": output,
        "'shards' is not a flag": ("shards", *results, *output),
        "holds no results": (*labeler, *shards, "--results", tmp_path, *output),
        "--shards is missing": (*labeler, *results, *output),
        "--labeler is missing": (*shards, *results, *output),
        "no labeler.json": ("--labeler", made / "shards", *shards, *output),
        "no manifest.json": (*labeler, "--shards", made / "labeler", *results, *output),
        "were not labeled with the labeler": ("--labeler", made / "other", *shards, *results, *output),
        "--show-examples": (*labeler, *shards, "--posts", made / "posts.jsonl", *output),
        "--reference is for --results": (*labeler, *shards, "--reference=one", *output),
        "go together": (*labeler, *shards, "--show-examples=2", *output),
        "--exclude is for --posts": (*labeler, *shards, "--exclude=ids.txt", *output),
        "is no run: it has no config.json": ("--runs", made / "labeler", *output),
        "is named twice": ("--runs", f"{made / 'run'},{made / 'run'}", *output),
        "No posts file matches": (*labeler, *shards, "--posts", tmp_path / "none-*", "--show-examples=2", *output),
    }
    for words, command in cases.items():
        result = report(*command)
        assert result.returncode == 1, (words, result.stderr)
        assert words in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stdout == ""
    assert report(*labeler, *shards, "--show-examples=-1", *output).returncode == 2
    assert not list(tmp_path.iterdir())


def test_help_has_examples() -> None:
    result = report("--help")
    assert result.returncode == 0
    assert "python scripts/report.py --results RESULTS --output REPORT" in result.stdout
    assert "python scripts/report.py --labeler LABELER --shards SHARDS --output REPORT" in result.stdout
    assert "python scripts/report.py --runs RUN,OTHER_RUN --output REPORT" in result.stdout
    assert "--show-examples" in result.stdout
