"""The demo corpus: simulated posts whose images have a hidden topic and a hidden affect.

Everything is made up: scenes are drawn (`demo_scenes`), comments come from a grammar and reactions from a
distribution (`demo_comments`). A post is a function of (seed, its number) alone.

    OUTPUT/posts/part-*.jsonl, posts/images/     posts, as `scripts/label.py` reads them
    OUTPUT/topic/{train,test}/<topic>/NNNN.jpg   labeled images that are in no post, as `scripts/evaluate.py` reads
    OUTPUT/affect/{train,test}/<affect>/NNNN.jpg them
    OUTPUT/truth.csv                             hidden topic and affect of each post; never trained on
    OUTPUT/corpus.json                           settings, counts, and the fingerprint of all files
"""

import contextlib
import csv
import hashlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vise_jax import artifact
from vise_jax.demo.comments import comments, reactions
from vise_jax.demo.scenes import AFFECTS, TOPICS, render
from vise_jax.errors import UserError
from vise_jax.machine import available_cpus
from vise_jax.progress import Progress

FORMAT_VERSION = 1
_MADE_BY = "scripts/demo.py"
_POST_FILES = 4
_CLASSES = {"topic": TOPICS, "affect": AFFECTS}
# Of a task's labeled images; the others are for testing.
_TRAIN_SHARE = 2 / 3

T = TypeVar("T")


def make_corpus(
    output: Path, *, posts: int = 4000, labeled: int = 1200, seed: int = 0, processes: int | None = None
) -> dict[str, Any]:
    """Write the corpus atomically, unless it exists.

    Args:
        output: a new directory.
        posts: how many posts.
        labeled: how many labeled images for each of the two tasks.
        seed: the same seed gives the same bytes (with the same versions of NumPy and Pillow).
        processes: how many draw at a time; None = one per core.

    Returns:
        The corpus' description, as in `corpus.json`.

    Raises:
        UserError: `posts`, `labeled` or `seed` is out of range, or `output` holds something else.
    """
    if not 1 <= posts <= 1_000_000:
        raise UserError(f"--posts is {posts}: give a number from 1 to 1,000,000.")
    if not 1 <= labeled <= 1_000_000:
        raise UserError(f"--labeled is {labeled}: give a number from 1 to 1,000,000.")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed is {seed}: give a number from 0 to 2^63 - 1.")
    settings = {"format_version": FORMAT_VERSION, "simulated": True, "seed": seed, "posts": posts, "labeled": labeled}
    output = Path(output)
    if (output / "corpus.json").exists():
        description = artifact.read_description(output, "corpus.json", version=FORMAT_VERSION, made_by=_MADE_BY)
        if any(description.get(key) != value for key, value in settings.items()):
            raise UserError(f"{output} holds another demo corpus: name a new directory, or delete it first.")
        return description
    with artifact.atomic_directory(output) as directory:
        written = {
            "posts": _write_posts(directory, posts, seed, processes),
            **{task: _write_labeled(directory, task, labeled, seed, processes) for task in _CLASSES},
        }
        description = {
            **settings,
            "topics": list(TOPICS),
            "affects": list(AFFECTS),
            "fingerprint": artifact.fingerprint(written),
        }
        artifact.write_json(directory / "corpus.json", description)
    return description


def make_post(seed: int, number: int) -> tuple[dict[str, Any], bytes | None, tuple[str, str]]:
    """Make one post.

    Returns:
        The post as a line of JSONL has it; the bytes of its image file, None where there is no such file; its hidden
        topic and affect.
    """
    rng = _generator(seed, 0, number)
    topic, affect = TOPICS[rng.integers(len(TOPICS))], AFFECTS[rng.integers(len(AFFECTS))]
    suffix, file = _encode(rng, render(rng, topic, affect))
    image: str | None = f"images/{number:07d}.{suffix}"
    content: bytes | None = file
    chance = rng.random()
    if chance < 0.02:
        image, content = None, None
    elif chance < 0.03:
        image, content = f"images/{number:07d}.jpg", _break(rng, file)
    post = {
        "post_id": f"demo-{seed}-{number:07d}",
        "image": image,
        "comments": comments(rng, topic, affect),
        "reactions": reactions(rng, affect),
    }
    return post, content, (topic, affect)


def make_labeled(seed: int, task: str, number: int) -> tuple[str, bytes]:
    """Draw one labeled image: return its class of `task` ("topic" or "affect") and the bytes of a JPEG file.

    Classes alternate by number; the attribute that is not the task's is drawn at random.
    """
    rng = _generator(seed, 1 + list(_CLASSES).index(task), number)
    scene = {name: classes[rng.integers(len(classes))] for name, classes in _CLASSES.items()}
    scene[task] = _CLASSES[task][number % len(_CLASSES[task])]
    return scene[task], _jpeg(rng, render(rng, **scene))


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, (stream << 40) + number]))


def _jpeg(rng: np.random.Generator, image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(75, 96)))
    return buffer.getvalue()


def _encode(rng: np.random.Generator, image: Image.Image) -> tuple[str, bytes]:
    """Return the suffix and the bytes of an image file: mostly JPEG, some PNG, some grayscale."""
    kind = rng.random()
    if kind < 0.06:
        image = image.convert("L")
    if 0.03 < kind < 0.1:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return "png", buffer.getvalue()
    return "jpg", _jpeg(rng, image)


def _break(rng: np.random.Generator, content: bytes) -> bytes | None:
    """Return a damaged image file: its first quarter, some text, or nothing at all."""
    return (content[: len(content) // 4], b"This is not an image.\n", None)[rng.integers(3)]


def _write_posts(directory: Path, posts: int, seed: int, processes: int | None) -> dict[str, str]:
    """Write posts, images and truth.csv; returns the SHA-256 of the files by name."""
    (directory / "posts" / "images").mkdir(parents=True)
    hashes: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        parts = [
            stack.enter_context(open(directory / "posts" / f"part-{part}.jsonl", "w", encoding="utf-8"))
            for part in range(_POST_FILES)
        ]
        truth = csv.writer(
            stack.enter_context(open(directory / "truth.csv", "w", encoding="utf-8", newline="")), lineterminator="\n"
        )
        truth.writerow(("post_id", "topic", "affect"))
        written_posts = _spread(partial(_write_post, directory / "posts", seed), posts, processes, "posts")
        for number, (post, image_hash, hidden) in enumerate(written_posts):
            parts[number * _POST_FILES // posts].write(json.dumps(post, ensure_ascii=False) + "\n")
            truth.writerow((post["post_id"], *hidden))
            if image_hash:
                hashes[post["image"]] = image_hash
    for path in [directory / "truth.csv", *sorted((directory / "posts").glob("*.jsonl"))]:
        hashes[path.name] = artifact.file_sha256(path)
    return hashes


def _write_post(directory: Path, seed: int, number: int) -> tuple[dict[str, Any], str | None, tuple[str, str]]:
    post, content, truth = make_post(seed, number)
    if content is None:
        return post, None, truth
    (directory / post["image"]).write_bytes(content)
    return post, hashlib.sha256(content).hexdigest(), truth


def _write_labeled(directory: Path, task: str, count: int, seed: int, processes: int | None) -> dict[str, str]:
    """Write the labeled images of one task; returns the SHA-256 of the files by name."""
    for split in ("train", "test"):
        for label in _CLASSES[task]:
            (directory / task / split / label).mkdir(parents=True)
    write = partial(_write_one_labeled, directory, task, count, seed)
    return dict(_spread(write, count, processes, f"scenes labeled with their {task}"))


def _write_one_labeled(directory: Path, task: str, count: int, seed: int, number: int) -> tuple[str, str]:
    label, content = make_labeled(seed, task, number)
    split = "train" if number < _TRAIN_SHARE * count else "test"
    name = f"{task}/{split}/{label}/{number:04d}.jpg"
    (directory / name).write_bytes(content)
    return name, hashlib.sha256(content).hexdigest()


def _spread(function: Callable[[int], T], count: int, processes: int | None, what: str) -> Iterator[T]:
    """Map over 0 to `count` in processes, in order.

    They are spawned, not forked: the caller's threads (JAX has some) don't survive a fork.
    """
    processes = processes or available_cpus()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(f"drawing {what}", count, "images"))
        if processes == 1:
            results: Iterator[T] = map(function, range(count))
        else:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=context))
            results = pool.map(function, range(count), chunksize=32)
        for result in results:
            progress.advance()
            yield result
