"""Time training input and labeling from an object store with a latency, beside the same from the local disk.

    python benchmarks/object_stores.py
    python benchmarks/object_stores.py --width 1024 --height 768 --latency 0.1

The store is a server on this machine that answers S3's requests from the same files after a latency (50 ms). It has one
core, and what is timed another one, from the disk as from the store: a store elsewhere takes no cores. Training input:
batches of 224-pixel crops of simulated photographs. Labeling: one worker, from posts to shards on the local disk, where
the images are in a tar with the posts, or objects of their own, which take a request each. Their number is about that
of a WebDataset tar (10,000 by img2dataset), since each file begins with a few requests in turn. Both places take turns,
round by round.
Needs `pip install -e '.[s3]'`.
The last line is one JSON object; a ratio of 1 means as fast as the local disk.
"""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import numpy as np
from absl import flags
from measuring import ratio
from simulated import pattern, write_shards

from vise_jax import artifact, cli, config
from vise_jax.labeling.local_runner import use_one_core

QUICK = flags.DEFINE_bool("quick", False, "Few images, 2 rounds: a smoke test.")
LATENCY = flags.DEFINE_float("latency", 0.05, "Seconds before each answer.", 0.0)
EXAMPLES = flags.DEFINE_integer("examples", None, "Images; by default 12,000.", 64)
ROUNDS = flags.DEFINE_integer("rounds", None, "Turns that each takes; by default 5.", 1)
BATCHES = flags.DEFINE_integer("batches", None, "Batches of 64 in a turn; by default 25.", 1)
WIDTH = flags.DEFINE_integer("width", 400, "Width of the photographs in pixels.", 1)
HEIGHT = flags.DEFINE_integer("height", 300, "Their height.", 1)


def main(words: list[str]) -> None:
    cli.no_words(words)
    # As a worker of `label.py` does. Before any thread is started.
    use_one_core()
    ours, theirs = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {ours})
    quick = QUICK.value
    count = EXAMPLES.value or (300 if quick else 12_000)
    rounds, turns = ROUNDS.value or (2 if quick else 5), BATCHES.value or (3 if quick else 25)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        total = _write(directory / "bucket", count)
        print(f"{count:,} images of {WIDTH.value} x {HEIGHT.value} pixels, {total / count / 1000:.0f} KB", flush=True)
        server = Path(__file__).parent / "shared" / "s3_server.py"
        command = [sys.executable, str(server), str(directory / "bucket"), str(LATENCY.value)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
            os.sched_setaffinity(process.pid, {theirs})
            assert process.stdin
            assert process.stdout
            address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}
            os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
            found, in_flight = {}, {}
            measured = {"training input": _input(directory, turns), **_labeling(directory)}
            for what, timed in measured.items():
                places = {"disk": directory / "bucket", "store": artifact.location("s3://bucket")}
                speeds: dict[str, list[float]] = {place: [] for place in places}
                for number in range(rounds + 1):
                    for place, root in places.items():
                        speed = timed(root, place)
                        if number:  # the first one opens files and connections
                            speeds[place].append(speed)
                process.stdin.write("\n")
                in_flight[what] = int(process.stdout.readline())
                found[what] = ratio(np.array(speeds["store"]), np.array(speeds["disk"]))
                medians = {place: float(np.median(speed)) for place, speed in speeds.items()}
                print(
                    f"{what}: {medians['store']:,.0f} images/s from the store, {medians['disk']:,.0f} from the disk: "
                    f"{found[what]['median']:.2f} ({found[what]['low']:.2f} to {found[what]['high']:.2f}), with up to "
                    f"{in_flight[what]} requests in flight",
                    flush=True,
                )
            process.kill()
    print(
        json.dumps(
            {
                "benchmark": "object_stores",
                "device": "1 CPU, and 1 of the server",
                "ratios": found,
                "requests_in_flight": in_flight,
                "latency": LATENCY.value,
                "images": count,
                "size": [WIDTH.value, HEIGHT.value],
                "rounds": rounds,
            }
        )
    )


def _write(bucket: Path, count: int) -> int:
    """Write shards, and posts with images, of the same simulated photographs; return the bytes of the images."""
    draw = np.random.default_rng(0)
    (bucket / "images").mkdir(parents=True)
    photos = [pattern(draw, 60, (WIDTH.value, HEIGHT.value)) for _ in range(min(count, 500))]
    lines = []
    with tarfile.open(bucket / "posts.tar", "w") as archive:
        for number in range(count):
            (bucket / "images" / f"{number}.jpg").write_bytes(photos[number % len(photos)])
            words = " ".join(f"w{word}" for word in draw.integers(0, 50, 6))
            reactions = {"love": int(draw.integers(1, 9)), "wow": 1}
            post = {"post_id": f"{number}", "comments": [words] * 4, "reactions": reactions}
            lines.append(json.dumps({**post, "image": f"images/{number}.jpg"}))
            archive.add(bucket / "images" / f"{number}.jpg", f"{number}.jpg")
            content = json.dumps(post).encode()
            member = tarfile.TarInfo(f"{number}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (bucket / "posts.jsonl").write_text("\n".join(lines) + "\n")
    write_shards(bucket / "shards", lambda n: photos[n % len(photos)], count, 8, comments=50, reactions=10)
    return sum(len(photos[number % len(photos)]) for number in range(count))


def _input(directory: Path, turns: int) -> Callable[[Path, str], float]:
    from vise_jax.data import loader, shards
    from vise_jax.data.epoch_order import Shuffle
    from vise_jax.data.records import CorruptExamples

    data, running = config.base().data, {}

    def batches(root: Path, place: str) -> Iterator[Any]:
        return loader.batches(
            root / "shards",
            shards.read_manifest(root / "shards"),
            batch_size=64,
            seed=0,
            corrupt=CorruptExamples(directory / f"{place}.jsonl"),
            shuffle=Shuffle(data.shuffle_shards, data.shuffle_block, 1, 512),
            image_size=data.image_size,
            crop_area=data.crop_area,
            crop_ratio=data.crop_ratio,
            antialias=True,
        )

    def timed(root: Path, place: str) -> float:
        if place not in running:
            running[place] = batches(root, place)
        # What was read ahead while the other had its turn is not timed.
        for _ in itertools.islice(running[place], 12):
            pass
        began = time.perf_counter()
        for _ in itertools.islice(running[place], turns):
            pass
        return 64 * turns / (time.perf_counter() - began)

    return timed


def _labeling(directory: Path) -> dict[str, Callable[[Path, str], float]]:
    from vise_jax.labeling.fit import fit
    from vise_jax.labeling.label import label

    labels = config.base().labels
    labels.update(comment_clusters=20, reaction_clusters=5, comment_dim=8, cluster_fraction=0.2, min_comment_count=1)
    fit([directory / "bucket" / "posts.jsonl"], labels, directory / "labeler")

    def timed(posts: str, root: Path, place: str) -> float:
        output = directory / f"labeled-{place}"
        shutil.rmtree(output, ignore_errors=True)
        began = time.perf_counter()
        manifest = label([root / posts], directory / "labeler", labels, output)
        return manifest["examples"] / (time.perf_counter() - began)

    return {"labeling, tar": partial(timed, "posts.tar"), "labeling, an object an image": partial(timed, "posts.jsonl")}


if __name__ == "__main__":
    cli.run(main, __doc__)
