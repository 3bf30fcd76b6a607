"""Label posts with images from end to end: one worker, two workers and Apache Beam, and whether their bytes are equal.

    python benchmarks/jobs.py
    python benchmarks/jobs.py --count 20000 --image_size 256

Posts are simulated: Zipf-distributed words and emoji, random reactions, images of noise over gradients. Each way runs
`scripts/label.py run` as a user would, start of the processes included. The last line is one JSON object; its ratios
are posts/s of two workers and of Beam over one worker.
"""

import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import numpy as np
from absl import flags
from measuring import ratio
from PIL import Image

from vise_jax import cli

QUICK = flags.DEFINE_bool("quick", False, "1,000 posts: a smoke test.")
COUNT = flags.DEFINE_integer("count", None, "Posts; by default 200,000.", 1)
ROUNDS = flags.DEFINE_integer("rounds", 1, "Turns that each way takes.", 1)
CLUSTERS = flags.DEFINE_integer("clusters", None, "Clusters of comments; by default 500.", 2)
IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "Side of the images in pixels.", 8)
COMMENTS = flags.DEFINE_integer("comments", 4, "Comments of a post, on average.", 1)
FILES = flags.DEFINE_integer("files", 4, "Posts files.", 1)

ROOT = Path(__file__).resolve().parents[1]
# Posts share images, so that making them takes no longer than labeling them.
_IMAGES = 2_000
_CONFIG = (
    f"--config={ROOT}/configs/vise_1m.py",
    "--config.labels.reaction_clusters=64",
    "--config.labels.shard_megabytes=16",
    "--config.labels.split_megabytes=8",
)
_BEAM = ("--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
# Runs a command and prints the peak memory (KiB) of the largest of its processes.
_MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
_WAYS = {
    "1 worker": ("--workers", "1"),
    "2 workers": ("--workers", "2"),
    "beam": ("--runner", "beam", "--", *_BEAM),
}


def main(words: list[str]) -> None:
    cli.no_words(words)
    count = COUNT.value or (1_000 if QUICK.value else 200_000)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_posts(directory, count, COMMENTS.value, FILES.value, IMAGE_SIZE.value)
        posts = ("--posts", f"{directory}/*.jsonl")
        fit_seconds, fit_peak = _label("fit", *posts, "--output", directory / "labeler")
        print(f"fit: {count / fit_seconds:,.0f} posts/s, {fit_seconds:.1f} s, {fit_peak / 2**20:,.0f} MiB", flush=True)
        seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
        sha256: dict[str, str] = {}
        peak: dict[str, int] = {}
        for _ in range(ROUNDS.value):
            for way, options in _WAYS.items():
                shutil.rmtree(directory / way, ignore_errors=True)
                run = ("run", *posts, "--labeler", directory / "labeler", "--output", directory / way)
                taken, peak[way] = _label(*run, *options)
                seconds[way].append(taken)
                sha256[way] = checksum(directory / way)
                print(
                    f"{way}: {count / taken:,.0f} posts/s, {taken:.1f} s, {peak[way] / 2**20:,.0f} MiB the largest "
                    f"process, {sha256[way][:16]}",
                    flush=True,
                )
        manifest = json.loads((directory / "1 worker" / "manifest.json").read_text())
    speeds = {way: count / np.array(taken) for way, taken in seconds.items()}
    print(
        json.dumps(
            {
                "benchmark": "jobs",
                "device": "cpu",
                "ratios": {way: ratio(speed, speeds["1 worker"]) for way, speed in speeds.items() if way != "1 worker"},
                "rounds": ROUNDS.value,
                "posts": count,
                "examples": manifest["examples"],
                "shards": len(manifest["shards"]),
                "shard_bytes": sum(shard["bytes"] for shard in manifest["shards"]),
                "posts_per_second": {way: float(np.median(speed)) for way, speed in speeds.items()},
                "fit_posts_per_second": count / fit_seconds,
                "peak_bytes": {"fit": fit_peak, **peak},
                "same_bytes": len(set(sha256.values())) == 1,
                "sha256": sha256,
            }
        )
    )


def write_posts(directory: Path, count: int, comments: int, files: int, image_size: int) -> None:
    """Write posts files `0.jsonl` and so on, and their `images`."""
    draw, generator = random.Random(0), np.random.default_rng(0)
    (directory / "images").mkdir()
    ramp = np.linspace(0, 160, image_size)[:, None, None]
    for number in range(min(_IMAGES, count)):
        pixels = ramp * generator.random(3) + generator.integers(0, 96, (image_size, image_size, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=85)
        (directory / "images" / f"{number}.jpg").write_bytes(file.getvalue())
    words = [f"word{number}" for number in range(20_000)] + list("😀😍😢😡😮🎉🔥🙏")
    draw.shuffle(words)
    weights = np.cumsum(1 / np.arange(1, len(words) + 1)).tolist()
    names = ("haha", "sorry", "angry", "wow", "love")
    for file_number in range(files):
        with open(directory / f"{file_number}.jsonl", "w", encoding="utf-8") as posts:
            for number in range(file_number, count, files):
                written = draw.choices(words, cum_weights=weights, k=12 * draw.randint(0, 2 * comments))
                post = {
                    "post_id": f"post {number}",
                    "image": f"images/{number % _IMAGES if count > _IMAGES else number}.jpg",
                    "comments": [" ".join(written[first : first + 12]) for first in range(0, len(written), 12)],
                    "reactions": {name: int(2 ** draw.uniform(0, 8)) for name in names},
                }
                posts.write(json.dumps(post, ensure_ascii=False) + "\n")


def _label(*arguments: str | Path) -> tuple[float, int]:
    """Return the seconds that `scripts/label.py` takes, and the bytes of its largest process."""
    command, *rest = map(str, arguments)
    clusters = f"--config.labels.comment_clusters={CLUSTERS.value or (20 if QUICK.value else 500)}"
    label = [sys.executable, str(ROOT / "scripts" / "label.py"), command, *_CONFIG, clusters, *rest]
    began = time.perf_counter()
    measured = subprocess.run([sys.executable, "-c", _MEASURED, *label], check=True, capture_output=True, text=True)
    return time.perf_counter() - began, int(measured.stdout) * 1024


def checksum(directory: Path) -> str:
    """Return the SHA-256 (hex) of the names and bytes of all files of a directory."""
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(directory)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


if __name__ == "__main__":
    cli.run(main, __doc__)
