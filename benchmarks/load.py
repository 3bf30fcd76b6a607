"""Run long jobs, and watch their memory and open files: labeling, an epoch of training, extraction; and eight at once.

    python benchmarks/load.py
    python benchmarks/load.py --posts 100000 --images 10000 --only labeling,extraction

Posts and images are simulated, small, and distinct. Every second the memory (resident, of the job and its workers) and
the number of open files are read. Slopes are those of straight lines through the middle half of a job: MB and files per
minute. Eight labeling jobs in eight directories run at once and have to finish with the same manifest. Afterwards no
process may be left. The last line is one JSON object; the exit status is 1 where a job failed or left a process.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import numpy as np
import psutil
from absl import flags
from rich.console import Console
from rich.table import Table
from simulated import pattern

from vise_jax import cli

QUICK = flags.DEFINE_bool("quick", False, "Few posts and images: a smoke test.")
POSTS = flags.DEFINE_integer("posts", 1_000_000, "Posts to label.", 1)
IMAGES = flags.DEFINE_integer("images", 100_000, "Images of an epoch, and of extraction.", 100)
ONLY = flags.DEFINE_list("only", None, "Jobs; by default labeling, training, extraction and eight.")
WORKERS = flags.DEFINE_integer("workers", 2, "Processes of labeling.", 0)

ROOT = Path(__file__).resolve().parents[1]
_KEYS = (
    f"--config={ROOT}/configs/demo.py",
    "--config.labels.comment_clusters=16",
    "--config.labels.reaction_clusters=8",
    "--config.labels.comment_dim=16",
    "--config.labels.max_fit_comments=20000",
    "--config.labels.max_fit_reactions=20000",
    "--config.labels.shard_megabytes=16",
    "--config.labels.split_megabytes=16",
    "--config.data.image_size=16",
    "--config.model.width=4",
    "--config.model.stem=cifar",
    "--config.training.batch_size=256",
    "--config.training.evaluate_every=0",
)


def picture(number: int) -> bytes:
    """Return a JPEG file of 32 x 32 pixels that no other number has."""
    return pattern(np.random.default_rng(number), 4, (32, 32))


def _write_posts(directory: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir()
    draw = np.random.default_rng(0)
    for first in range(0, count, 50_000):
        words = draw.integers(0, 500, (min(50_000, count - first), 6))
        rows = [
            {
                "post_id": f"p{number}",
                "image_bytes": picture(number),
                "comments": [f"w{row[0]} w{row[1]}", f"w{row[2] % 20} w{row[3]} 😀"],
                "reactions": {"love": int(row[4]), "haha": int(row[5] % 7)},
            }
            for number, row in enumerate(words, first)
        ]
        pq.write_table(pa.Table.from_pylist(rows), directory / f"{first:08d}.parquet", row_group_size=5_000)


def _write_images(directory: Path, count: int) -> None:
    import zipfile

    with zipfile.ZipFile(directory, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number:07d}.jpg", picture(number))


def _watch(command: list[str]) -> dict[str, Any]:
    """Run a command; return its status, seconds, and the course of its memory and open files."""
    began, times, memory, files = time.monotonic(), [], [], []
    with tempfile.TemporaryFile() as log:
        job = psutil.Popen(command, stdout=log, stderr=log)
        while job.poll() is None:
            resident, opened = 0, 0
            for process in _with_children(job):
                try:
                    # Shared pages would count in each of the workers.
                    resident += process.memory_full_info().uss
                    opened += process.num_fds()
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue
            times.append(time.monotonic() - began)
            memory.append(resident / 2**20)
            files.append(opened)
            time.sleep(1)
        log.seek(0)
        said = log.read().decode(errors="replace")
    half = len(times) // 2

    def slope(values: Sequence[float]) -> float:
        # Start and end, when workers come and go, are no part of the course.
        steady = slice(len(times) // 4, 3 * len(times) // 4)
        return float(60 * np.polyfit(times[steady], values[steady], 1)[0]) if len(times) >= 8 else 0.0

    return {
        "status": job.returncode,
        "seconds": round(time.monotonic() - began),
        "peak_mb": round(max(memory, default=0)),
        "half_mb": round(memory[half]) if memory else 0,
        "mb_per_minute": round(slope(memory), 1),
        "peak_files": max(files, default=0),
        "files_per_minute": round(slope(files), 2),
        "said": said[-500:] if job.returncode else "",
    }


def _with_children(job: psutil.Popen) -> Iterator[psutil.Process]:
    try:
        yield from (job, *job.children(recursive=True))
    except psutil.NoSuchProcess:
        return


def _script(name: str, *words: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / name), *map(str, words)]


def _label(posts: Path, labeler: Path, output: Path, workers: int) -> list[str]:
    command = ("run", *_KEYS, f"--posts={posts}/*.parquet", f"--labeler={labeler}", f"--output={output}")
    return _script("label.py", *command, f"--workers={workers}")


def _run(root: Path, posts: int, images: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """Write what all jobs need; return the jobs by name."""
    _write_posts(root / "few", 2_000)
    fitted = _script("label.py", "fit", *_KEYS, f"--posts={root}/few/*.parquet", f"--output={root}/labeler")
    subprocess.run(fitted, check=True, capture_output=True)

    def labeling() -> dict[str, Any]:
        _write_posts(root / "posts", posts)
        return _watch(_label(root / "posts", root / "labeler", root / "shards", WORKERS.value))

    def training() -> dict[str, Any]:
        shards = root / "shards"
        if posts != images or not shards.exists():
            _write_posts(root / "epoch", int(images * 1.1))
            shards = root / "epoch_shards"
            subprocess.run(_label(root / "epoch", root / "labeler", shards, 2), check=True, capture_output=True)
        steps = f"--config.training.steps={-(-images // 256)}"
        return _watch(_script("train.py", *_KEYS, steps, f"--config.data.shards={shards}", f"--workdir={root}/run"))

    def extraction() -> dict[str, Any]:
        _write_images(root / "images.zip", images)
        words = (f"--encoder={_encoder(root)}", f"--images={root}/images.zip", f"--output={root}/features.parquet")
        return _watch(_script("extract.py", *words, "--image_size=32", "--batch_size=256"))

    def eight() -> dict[str, Any]:
        began = time.monotonic()
        jobs = [
            subprocess.Popen(_label(root / "few", root / "labeler", root / f"eight{n}", 0), stdout=-3, stderr=-3)
            for n in range(8)
        ]
        statuses = [job.wait() for job in jobs]
        manifests = {(root / f"eight{n}" / "manifest.json").read_bytes() for n in range(8)}
        status = max(statuses) if len(manifests) == 1 else 1
        return {"status": status, "seconds": round(time.monotonic() - began), "said": ""}

    return {"labeling": labeling, "training": training, "extraction": extraction, "eight": eight}


def _encoder(root: Path) -> Path:
    from vise_jax import models
    from vise_jax.encoder import Encoder
    from vise_jax.preprocessing import Preprocessing

    if not (root / "encoder").exists():
        architecture: dict[str, Any] = {"name": "resnet18", "width": 8, "stem": "cifar"}
        model = models.build(**architecture, seed=0)
        how = Preprocessing.imagenet(32)
        Encoder.from_model(model, architecture=architecture, preprocessing=how, provenance={}, license="CC0").save(
            root / "encoder"
        )
    return root / "encoder"


def main(words: list[str]) -> None:
    cli.no_words(words)
    posts, images = (3_000, 1_000) if QUICK.value else (POSTS.value, IMAGES.value)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    columns = ("status", "seconds", "peak_mb", "half_mb", "mb_per_minute", "peak_files", "files_per_minute")
    table, measured = Table("job", *columns), {}
    with tempfile.TemporaryDirectory() as directory:
        jobs = _run(Path(directory), posts, images)
        for name in ONLY.value or list(jobs):
            measured[name] = jobs[name]()
            table.add_row(name, *(str(measured[name].get(column, "-")) for column in columns))
            print(name, measured[name], flush=True)
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    Console(width=140).print(table)
    about = {"benchmark": "load", "posts": posts, "images": images, "processes_left": len(left)}
    print(json.dumps({**about, "jobs": measured}))
    if left or any(of_job["status"] for of_job in measured.values()):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, __doc__)
