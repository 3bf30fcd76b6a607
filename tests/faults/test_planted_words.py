"""Words, names, addresses and paths, planted in posts and images, are searched for in everything that is written."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
POSTS = 90
KEYS = [
    "--config=configs/demo.py",
    "--config.labels.comment_clusters=3",
    "--config.labels.reaction_clusters=2",
    "--config.labels.comment_dim=4",
    "--config.labels.min_comment_count=3",
    "--config.labels.max_rejected_fraction=0.2",
    "--config.training.steps=4",
    "--config.training.batch_size=8",
    "--config.training.log_every=1",
    "--config.training.checkpoint_every=2",
    "--config.model.width=4",
    "--config.data.image_size=16",
]
EVALUATION = ["--config=configs/eval.py:folder,linear", "--config.splits=1"]
# What no one may read anywhere: the comments, the metadata of images, the authors, and the ids of posts.
WORDS = ["plantedword", "plantedhandle", "planted.example", "plantedmail", "1701234567", "plantedpost", "plantedauthor"]
WORDS += ["plantedexif", "plantednote", "plantedbroken", "plantedphoto"]
# The directory of everything, in what is passed on. The run directory, which stays, names the shards it was trained on.
PATH = "plantedpath"
PASSED_ON = ["labeler", "shards", "run/encoder", "results", "features.npz", "predictions.jsonl", "predictions.html"]
PASSED_ON += ["report", "maps"]


def write_inputs(root: Path) -> None:
    random, lines = np.random.default_rng(0), []
    (root / "posts").mkdir(parents=True)
    for number in range(POSTS):
        pixels = random.integers(0, 64, (24, 24, 3)) + np.array([number % 3 * 80, 60, number % 2 * 100])
        exif = Image.Exif()
        exif[0x010E], exif[0x013B] = "plantedexif", "plantedauthor"
        image = Image.fromarray(pixels.astype(np.uint8))
        image.save(root / "posts" / f"plantedphoto{number}.jpg", exif=exif, comment=b"plantednote")
        comments = [
            f"so nice word{number % 7} other{number % 5}",
            f"plantedword{number} word{number % 3}",
            f"@plantedhandle https://planted.example/{number} plantedmail@planted.example word{number % 4}",
            "call 1701234567",
        ]
        reactions = {"love": number % 5 + 1, "haha": number % 3}
        post = {"post_id": f"plantedpost{number}", "image": f"plantedphoto{number}.jpg", "user": "plantedauthor"}
        lines.append(json.dumps({**post, "comments": comments, "reactions": reactions}))
    broken = [
        {"post_id": "plantedpost", "image": "plantedphoto.jpg", "comments": ["plantedbroken"]},
        {"post_id": "plantedpost", "image": "plantedphoto1.jpg", "comments": "plantedbroken"},
    ]
    lines += [json.dumps(post) for post in broken] + ['{"post_id": "plantedpost", "comments": ["plantedbroken"']
    (root / "posts" / "posts.jsonl").write_text("\n".join(lines))
    for name in "ab":
        (root / "images" / name).mkdir(parents=True)
        for number in range(16):
            image = Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8))
            exif = Image.Exif()
            exif[0x010E] = "plantedexif"
            image.save(root / "images" / name / f"{number}.jpg", exif=exif, comment=b"plantednote")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a whole run, and everything that its commands printed."""
    root = tmp_path_factory.mktemp(PATH)
    write_inputs(root)
    encoder, labeler, images = f"--encoder={root}/run/encoder", f"--labeler={root}/labeler", f"--images={root}/images"
    commands = [
        ["label.py", "fit", *KEYS, f"--posts={root}/posts/*.jsonl", f"--output={root}/labeler"],
        ["label.py", "run", *KEYS, f"--posts={root}/posts/*.jsonl", labeler, f"--output={root}/shards"],
        ["train.py", *KEYS, f"--config.data.shards={root}/shards", f"--workdir={root}/run"],
        ["evaluate.py", *EVALUATION, encoder, f"--data={root}/images", f"--output={root}/results"],
        ["extract.py", encoder, images, f"--output={root}/features.npz"],
        ["predict.py", encoder, labeler, images, f"--output={root}/predictions.jsonl"],
        ["explain.py", encoder, "--head=clusters", labeler, images, f"--output={root}/maps", "--most=2"],
        ["report.py", f"--results={root}/results", f"--runs={root}/run", f"--output={root}/report"],
        ["report.py", labeler, f"--shards={root}/shards", f"--output={root}/report"],
    ]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    printed = []
    for script, *words in commands:
        command = [sys.executable, str(ROOT / "scripts" / script), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout + done.stderr)
    return root, "\n".join(printed)


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            yield str(file), gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def found(path: Path, words: list[str]) -> list[tuple[str, str]]:
    return [(name, word) for name, content in contents(path) for word in words if word.encode() in content.lower()]


@pytest.mark.slow
def test_no_words_of_people_are_written_or_printed(written: tuple[Path, str]) -> None:
    root, printed = written
    assert found(root / "posts", WORDS), "the words were not planted"
    outputs = [path for path in root.iterdir() if path.name not in ("posts", "images")]
    assert len(outputs) == 9
    assert not [hit for path in outputs for hit in found(path, WORDS)]
    assert not [word for word in WORDS if word in printed.lower()]
    # The broken posts were reached.
    assert "comments_text" in printed


@pytest.mark.slow
def test_what_is_passed_on_names_no_directory(written: tuple[Path, str]) -> None:
    root, _ = written
    assert found(root / "run" / "config.json", [PATH]), "the path was not planted"
    assert not [hit for name in PASSED_ON for hit in found(root / name, [PATH])]
