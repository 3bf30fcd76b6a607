"""Jobs on a small simulated corpus, each in its own process, and what is done to them: signals, a full disk, damage.

After a fault the same call is made again. It has to end with the files of a job that was left alone, or to refuse in a
sentence; what it may never do is end with others.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vise_jax import config
from vise_jax.errors import UserError

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Exit status of a job that refuses, and of one with an error that is none of ours.
REFUSED, BROKEN = 1, 70
# Files of a run that tell when it ran, and how fast.
_TIMES = ("train.log", "tensorboard", "compilation_cache", "checkpoints", "weights", ".lock")
_READING = {"threads": 1, "max_image_pixels": 1_000_000}


def _labels() -> Any:
    labels = config.base().labels
    labels.update(comment_clusters=4, reaction_clusters=3, cluster_fraction=0.3, comment_dim=6, min_comment_count=2)
    labels.update(min_posts_to_stop=0, shard_megabytes=0.05, split_megabytes=0.02)
    return labels


def _posts(inputs: Path) -> list[Path]:
    from vise_jax.posts import expand

    return expand(f"{inputs}/corpus/posts/*.jsonl")


def fit(inputs: Path, output: Path) -> None:
    from vise_jax.labeling.fit import fit

    fit(_posts(inputs), _labels(), output / "labeler")


def label(inputs: Path, output: Path) -> None:
    from vise_jax.labeling.label import label

    label(_posts(inputs), inputs / "labeler", _labels(), output / "shards")


def delete(inputs: Path, output: Path) -> None:
    from vise_jax.labeling.delete import delete

    delete(output / "shards", _labels(), inputs / "labeler", inputs / "ids.txt")


def train(inputs: Path, output: Path) -> None:
    from vise_jax.training import pretrain

    settings = config.base()
    settings.data.update(image_size=32, shards=str(inputs / "shards"), threads=1)
    settings.model.update(name="resnet18", width=4)
    settings.training.update(batch_size=8, steps=40, checkpoint_every=5, log_every=1, keep_checkpoints=2)
    pretrain.train(settings, output / "run")


def convert(inputs: Path, output: Path) -> None:
    from vise_jax import interop

    interop.convert_to(output / "encoder", inputs / "weights.safetensors", "vise_jax")


def extract(inputs: Path, output: Path) -> None:
    from vise_jax.data import datasets
    from vise_jax.encoder import Encoder
    from vise_jax.inference import extract

    encoder, images = Encoder.load(inputs / "encoder"), datasets.open_unlabeled(inputs / "corpus" / "affect")
    # Parts of 32 images.
    extract._PART = 32
    extract.export(encoder, images, encoder.preprocessing, output / "features.npz", batch_size=16, **_READING)


def _evaluate(protocol: str, inputs: Path, output: Path) -> None:
    from vise_jax.evaluation import measure

    settings = config.evaluation()
    settings.update(task="folder", protocol=protocol, threads=1, batch_size=16)
    settings.finetune.update(epochs=2, batch_size=16, learning_rates=(0.01,), weight_decays=(0.0,), checkpoint_every=2)
    measure.measure(settings, str(inputs / "encoder"), inputs / "corpus" / "affect", output / "results", "trained")


def linear(inputs: Path, output: Path) -> None:
    _evaluate("linear", inputs, output)


def finetune(inputs: Path, output: Path) -> None:
    _evaluate("finetune", inputs, output)


def predict(inputs: Path, output: Path) -> None:
    from vise_jax.data import datasets
    from vise_jax.encoder import Encoder
    from vise_jax.engagement import Labeler
    from vise_jax.reporting import predictions

    predictions.write(
        Encoder.load(inputs / "encoder"),
        Labeler.load(inputs / "labeler"),
        datasets.open_unlabeled(inputs / "corpus" / "affect"),
        output / "predictions.jsonl",
        top=2,
        on_page=5,
        batch_size=16,
        **_READING,
    )


def explain(inputs: Path, output: Path) -> None:
    from vise_jax.data import datasets
    from vise_jax.evaluation import explained
    from vise_jax.reporting import explanations

    column = explained.open_column(str(inputs / "encoder"), "clusters", str(inputs / "labeler"), 0, 0)
    images = datasets.open_unlabeled(inputs / "corpus" / "affect")
    explanations.write([explanations.Explained(*column)], images, output / "maps", most=10, **_READING)


JOBS: dict[str, Callable[[Path, Path], None]] = {
    job.__name__: job for job in (fit, label, delete, train, convert, extract, linear, finetune, predict, explain)
}


def prepare(inputs: Path) -> None:
    """Write what the jobs read: corpus, labeler, shards, an encoder, weights to convert, ids to delete."""
    from vise_jax import interop
    from vise_jax.data import shards
    from vise_jax.demo.corpus import make_corpus
    from vise_jax.encoder import Encoder

    make_corpus(inputs / "corpus", posts=150, labeled=120, processes=1)
    fit(inputs, inputs)
    label(inputs, inputs)
    train(inputs, inputs)
    (inputs / "run" / "encoder").rename(inputs / "encoder")
    shutil.rmtree(inputs / "run")
    encoder = Encoder.random("resnet18", 0)
    interop.export(encoder, "torchvision", inputs / "weights.safetensors")
    manifest = shards.read_manifest(inputs / "shards")
    assert manifest["examples"] > 20, "the jobs are too small"
    lines = [line for path in _posts(inputs) for line in path.read_text("utf-8").splitlines()]
    (inputs / "ids.txt").write_text("".join(f"{json.loads(line)['post_id']}\n" for line in lines[::7]))


def digest(output: Path) -> dict[str, str]:
    """Return the SHA-256 of each file, without what tells when the job ran and how fast."""
    from vise_jax.encoder import Encoder

    return {
        name: hashlib.sha256(_content(path)).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and not any(part in _TIMES for part in path.relative_to(output).parts)
        for name in [path.relative_to(output).as_posix()]
    } | {
        # Orbax's files have names that are drawn. Loading compares the weights with the SHA-256 of encoder.json.
        path.parent.relative_to(output).as_posix(): Encoder.load(path.parent).fingerprint
        for path in output.rglob("encoder.json")
    }


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "metrics.jsonl":
        kept = [
            {k: v for k, v in json.loads(line).items() if "second" not in k and k != "goodput"}
            for line in io.BytesIO(content)
        ]
        return json.dumps(kept).encode()
    if path.suffix == ".json" and b'"seconds"' in content:
        return json.dumps({k: v for k, v in json.loads(content).items() if k != "seconds"}).encode()
    return content


def _child(name: str, inputs: Path, output: Path, log: Path) -> None:
    """Run a job as a command does: a sentence and status 1 where it refuses."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        JOBS[name](inputs, output)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(REFUSED)
    except KeyboardInterrupt:
        os._exit(130)
    except Exception:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(BROKEN)


class Start(NamedTuple):
    """A job that was started, and the file of what it prints."""

    process: Any
    log: Path

    def send(self, number: int) -> None:
        """Send a signal, if the process has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self) -> int:
        self.process.join()
        return int(self.process.exitcode)


class Harness:
    """Starts jobs in processes of their own, from one that has imported everything.

    Args:
        directory: inputs, outputs and logs.
        seed: of the moments and places of faults.
    """

    def __init__(self, directory: Path, seed: int = 0):
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        self.directory, self.draw = directory, random.Random(seed)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["tensorflow", "vise_jax.evaluation.measure", "vise_jax.training.pretrain"]
        )
        self.inputs = directory / "inputs"
        if not (self.inputs / "ids.txt").exists():
            process = self._context.Process(target=prepare, args=(self.inputs,))
            process.start()
            process.join()
            assert process.exitcode == 0
        # What did not end well, for the log.
        self.found: list[str] = []
        self._undisturbed: dict[str, tuple[dict[str, str], float]] = {}

    def start(self, job: str, output: Path) -> Start:
        """Start a job in its own process."""
        log = self.directory / f"{job}.log"
        process = self._context.Process(target=_child, args=(job, self.inputs, output, log))
        process.start()
        return Start(process, log)

    def undisturbed(self, job: str) -> tuple[dict[str, str], float]:
        """Return the files of a job that was left alone, and how many seconds it took."""
        if job not in self._undisturbed:
            for _ in range(2):  # the first one compiles
                output = self.empty(job)
                began = time.monotonic()
                started = self.start(job, output)
                assert started.wait() == 0, started.log.read_text()
                self._undisturbed[job] = digest(output), time.monotonic() - began
        return self._undisturbed[job]

    def empty(self, job: str) -> Path:
        """Return a new, empty output directory."""
        output = self.directory / "outputs" / job
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        self._begin(job, output)
        return output

    def _begin(self, job: str, output: Path) -> None:
        """Write what a job changes."""
        if job == "delete":
            shutil.copytree(self.inputs / "shards", output / "shards")

    def finish(self, job: str, output: Path) -> str:
        """Run a job to its end; return "equal", "refused", "broken" (a traceback) or "different"."""
        started = self.start(job, output)
        status = started.wait()
        if status:
            return "refused" if status == REFUSED else "broken"
        ours, theirs = digest(output), self.undisturbed(job)[0]
        if ours != theirs:
            names = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
            self.found.append(f"{job}: other files than undisturbed: {', '.join(names)[:500]}")
        return "equal" if ours == theirs else "different"

    def kills(self, job: str, count: int) -> Counter[str]:
        """Send signals at random moments, one to each start, until `count` have hit; return how the jobs ended."""
        seconds, hits, ends = self.undisturbed(job)[1], 0, Counter[str]()
        output = self.empty(job)
        while hits < count:
            started = self.start(job, output)
            time.sleep(self.draw.uniform(0, seconds))
            if started.process.exitcode is None:
                started.send(SIGNALS[hits % len(SIGNALS)])
                hits += 1
                if (status := started.wait()) in (REFUSED, BROKEN):
                    ends[f"ended with {status}"] += 1
            else:
                ends[self.finish(job, output)] += 1
                output = self.empty(job)
        ends[self.finish(job, output)] += 1
        return ends

    def freezes(self, job: str, count: int) -> Counter[str]:
        """Stop a job for half a second at a random moment, and resume it; return how the jobs ended."""
        seconds, ends = self.undisturbed(job)[1], Counter[str]()
        for _ in range(count):
            output = self.empty(job)
            started = self.start(job, output)
            time.sleep(self.draw.uniform(0, seconds))
            if started.process.exitcode is None:
                started.send(signal.SIGSTOP)
                time.sleep(0.5)
                started.send(signal.SIGCONT)
            started.wait()
            ends[self.finish(job, output)] += 1
        return ends

    def full_disks(self, job: str, count: int) -> Counter[str]:
        """Run a job on a disk that is too small, and again on one that is not; return how the jobs ended.

        The first run has to refuse in a sentence that says so.

        Raises:
            PermissionError: this process may not mount a file system in memory.
        """
        self.undisturbed(job)  # before the output is a mount
        needed, ends = (
            sum(path.stat().st_size for path in self._after(job).rglob("*") if path.is_file()),
            Counter[str](),
        )
        for _ in range(count):
            output = self.empty(job)
            there = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
            # Files take whole pages.
            kilobytes = max(int((needed - there) * self.draw.uniform(0.02, 0.95)) // 1024, 8) + (
                there and 2 * there // 1024
            )
            _mount(output, f"size={kilobytes}k")
            try:
                self._begin(job, output)
                started = self.start(job, output)
                status = started.wait()
                if status == 0:
                    ends["had room"] += 1
                elif status != REFUSED or "disk is full" not in started.log.read_text():
                    ends[f"ended with {status}"] += 1
                    self.found.append(f"{job}, disk of {kilobytes} kB: {started.log.read_text().strip()[-1000:]}")
                _mount(output, "remount,size=4g")
                ends[self.finish(job, output)] += 1
            finally:
                subprocess.run(["umount", str(output)], check=True)
        return ends

    def damages(self, job: str, count: int, flips: bool = True) -> Counter[str]:
        """Kill a job, cut a file that it left, and run it again; return how the jobs ended.

        With `flips`, every other time a bit is flipped instead.
        """
        seconds, ends = self.undisturbed(job)[1], Counter[str]()
        for number in range(count):
            output = self.empty(job)
            started = self.start(job, output)
            time.sleep(self.draw.uniform(0.2, 1.0) * seconds)
            started.process.kill()
            started.wait()
            there = [path for path in sorted(output.rglob("*")) if path.is_file() and path.stat().st_size]
            if not there:
                ends["nothing to damage"] += 1
                continue
            path = self.draw.choice(there)
            content = bytearray(path.read_bytes())
            place = self.draw.randrange(len(content))
            if flipped := flips and number % 2 == 1:
                content[place] ^= 1 << self.draw.randrange(8)
            else:
                del content[place:]
            path.write_bytes(content)
            end = self.finish(job, output)
            ends[end] += 1
            if end in ("different", "broken"):
                self.found.append(
                    f"{job}: {path.relative_to(output)} {'flipped' if flipped else 'cut'} at {place}: {end}"
                )
        return ends

    def _after(self, job: str) -> Path:
        output = self.empty(job)
        assert self.start(job, output).wait() == 0
        return output


def _mount(directory: Path, options: str) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PermissionError(done.stderr.strip())
