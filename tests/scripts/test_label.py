"""scripts/label.py as people run it: fit, run, run again, and one clear sentence for each mistake."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from vise_jax.data import perceptual
from vise_jax.data.images import FORMATS
from vise_jax.engagement.hashing import image_line

ROOT = Path(__file__).parents[2]
KEYS = (
    "--config.labels.comment_clusters=3",
    "--config.labels.reaction_clusters=2",
    "--config.labels.comment_dim=4",
    "--config.labels.min_comment_count=2",
)


def label(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command; a path of this machine is no part of what it needs, so it runs elsewhere."""
    command = [sys.executable, str(ROOT / "scripts" / "label.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env={**os.environ, "COLUMNS": "120"})


def config() -> str:
    return f"--config={ROOT / 'configs' / 'demo.py'}"


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("posts")
    lines = []
    for number in range(60):
        Image.new("RGB", (16, 16), (number * 4, 0, 0)).save(directory / f"{number}.jpg")
        comments = [f"w{number % 3}a w{number % 3}b word{number % 7}"]
        reactions = {"love": number % 5 + 1, "wow": number % 3}
        lines.append({"post_id": f"p{number}", "image": f"{number}.jpg", "comments": comments, "reactions": reactions})
    (directory / "posts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory / "posts.jsonl"


@pytest.fixture(scope="module")
def labeler(posts: Path) -> Path:
    fitted = label("fit", config(), *KEYS, "--posts", posts, "--output", posts.parent / "labeler")
    assert fitted.returncode == 0, fitted.stderr
    assert "60, of them" in fitted.stdout
    return posts.parent / "labeler"


@pytest.mark.slow
def test_fit_and_run_write_shards_and_running_again_changes_nothing(posts: Path, labeler: Path, tmp_path: Path) -> None:
    command = ("run", config(), "--posts", posts, "--labeler", labeler, "--output", tmp_path / "shards")
    first = label(*command)
    assert first.returncode == 0, first.stderr
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert f"{manifest['examples']:,} in 1 shards" in first.stdout
    assert manifest["classes"] == {"comments": 3, "reactions": 2}
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.*")}
    again = label(*command)
    assert again.returncode == 0
    assert "complete already" in again.stderr
    assert again.stdout == first.stdout
    written_again = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.*")}
    assert {path.suffix for path in written} == {".tfrecord", ".json", ".safetensors"}
    assert all(written_again[path] == written[path] for path in written if path.name != "job.json")


@pytest.mark.slow
def test_mistakes_get_one_sentence_and_no_traceback(posts: Path, labeler: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "new")
    (tmp_path / "bad.jsonl").write_text('{"post_id": "a"\n' * 3)
    many = "--config.labels.comment_clusters=1000"
    cases = {
        "nothing-*": ("fit", config(), "--posts", tmp_path / "nothing-*", *output),
        "malformed_json 3": ("fit", config(), "--posts", tmp_path / "bad.jsonl", *output),
        "labels.comment_clusters: 1,000 clusters": ("fit", config(), *KEYS, many, "--posts", posts, *output),
        "--labeler is missing": ("run", config(), "--posts", posts, *output),
        "no labeler.json": ("run", config(), "--posts", posts, "--labeler", tmp_path, *output),
        "is no flag of this command": ("run", config(), "--posts", posts, *output, "--", "--runner=DirectRunner"),
        "fit, run, relabel or hash": ("label", config(), "--posts", posts, *output),
        "--exclude is missing": ("relabel", config(), "--labeler", labeler, *output),
        "can't be read": ("fit", config(), "--posts", posts, "--exclude", tmp_path / "none.txt", *output),
    }
    for words, command in cases.items():
        result = label(*command)
        assert result.returncode == 1, (words, result.stderr)
        assert words in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
    # Too many clusters keep what was read, for the next attempt.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.fit", "bad.jsonl"]


@pytest.mark.slow
def test_beam_gives_the_same_shards_and_relabel_takes_posts_out(posts: Path, labeler: Path, tmp_path: Path) -> None:
    run = ("run", config(), "--posts", posts, "--labeler", labeler)
    beam = ("--runner", "beam", "--", "--runner=DirectRunner")
    for output, options in (("local", ("--workers", "1")), ("beam", beam)):
        result = label(*run, "--output", tmp_path / output, *options)
        assert result.returncode == 0, result.stderr
    manifests = [json.loads((tmp_path / output / "manifest.json").read_text()) for output in ("local", "beam")]
    assert manifests[0] == manifests[1]
    (tmp_path / "ids.txt").write_text("".join(f"p{number}\n" for number in range(0, 60, 2)))
    relabel = ("relabel", config(), "--labeler", labeler, "--exclude", tmp_path / "ids.txt")
    result = label(*relabel, "--output", tmp_path / "local")
    assert result.returncode == 0, result.stderr
    after = json.loads((tmp_path / "local" / "manifest.json").read_text())
    assert 0 < after["deleted"] == manifests[0]["examples"] - after["examples"]
    assert f"0, {after['deleted']}" in result.stdout


@pytest.mark.slow
def test_workers_end_with_a_killed_job_and_the_next_run_ends_with_the_same_bytes(
    posts: Path, labeler: Path, tmp_path: Path
) -> None:
    keys = ("--config.labels.shard_megabytes=0.001", "--config.labels.split_megabytes=0.002")
    run = ("run", config(), *keys, "--posts", posts, "--labeler", labeler, "--workers", "2")
    assert label(*run, "--output", tmp_path / "expected").returncode == 0
    command = [sys.executable, str(ROOT / "scripts" / "label.py"), *map(str, run), "--output", str(tmp_path / "shards")]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("shards/*.tfrecord")) and job.poll() is None:
        time.sleep(0.01)
    workers = psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []
    job.kill()
    job.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert label(*run, "--output", tmp_path / "shards").returncode == 0
    expected, found = (
        {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        for directory in (tmp_path / "expected", tmp_path / "shards")
    )
    assert found == expected


def test_a_photo_has_a_line_for_the_exclusion_list(posts: Path) -> None:
    photo = next(posts.parent.rglob("*.jpg"))
    done = label("hash", photo, photo)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == lines[1] == image_line(perceptual.hash_file(photo.read_bytes(), FORMATS))
    refused = label("hash", posts)
    assert refused.returncode
    assert "has no hash (image_not_an_image)" in refused.stderr


def test_help_has_an_example() -> None:
    result = label("--help")
    assert result.returncode == 0
    assert "python scripts/label.py fit --config configs/demo.py --posts" in result.stdout
