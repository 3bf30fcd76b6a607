"""Simulated engagement shards for benchmarks."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vise_jax import artifact
from vise_jax.data import shards


def pattern(draw: np.random.Generator, cells: int, size: tuple[int, int]) -> bytes:
    """Return a JPEG file of `cells` x `cells` random colors, blurred into each other, of a width and height."""
    file = io.BytesIO()
    coarse = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_shards(
    directory: Path, image: Callable[[int], bytes], examples: int, count: int, *, comments: int, reactions: int
) -> None:
    """Write a directory of shards whose examples have one label of each kind.

    Args:
        directory: a new directory.
        image: from an example's number to its encoded image.
        examples: how many.
        count: of shards, of about the same size.
        comments: clusters of comments, which take turns.
        reactions: clusters of reactions.
    """
    directory.mkdir()

    def example(number: int) -> dict[str, Any]:
        return {
            "image/encoded": image(number),
            "post_id": b"%016d" % number,
            "comments/labels": [number % comments],
            "comments/weights": [1.0],
            "reactions/label": number % reactions,
        }

    written = [
        shards.write_shard(map(example, numbers.tolist()), directory / f"s-{shard:05d}.tfrecord")
        for shard, numbers in enumerate(np.array_split(np.arange(examples), count))
    ]
    manifest = {
        "format_version": shards.FORMAT_VERSION,
        "posts": examples,
        "examples": examples,
        "classes": {"comments": comments, "reactions": reactions},
        "max_comment_labels": 1,
        "shards": written,
        "validation": {"examples": 0, "shards": []},
        "labeler": "simulated",
        "fingerprint": artifact.fingerprint(written),
    }
    artifact.write_json(directory / "manifest.json", manifest)
