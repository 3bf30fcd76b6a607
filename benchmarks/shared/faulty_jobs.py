"""Jobs on a small simulated corpus, each in processes of its own, and what is done to them.

After a fault the same call is made again. It has to end with the files of a job that was left alone, or to refuse in a
sentence; what it may never do is end with others.
"""

import contextlib
import ctypes
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import miniatures
from two_hosts import TwoHosts

from vise_jax import config
from vise_jax.errors import UserError

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Exit status of a job that refuses, of one with an error that is none of ours, and of one that had to be ended.
REFUSED, BROKEN, HUNG = 1, 70, 71
# Seconds after which a job that should have ended hangs.
_PATIENCE = 600
# Files of a run that tell when it ran, and how fast.
_TIMES = (
    *("train.log", "train-1.log", "tensorboard", "compilation_cache", "compiled"),
    *("checkpoints", "weights", ".lock"),
)
_PAGE = 4096
# Of a run.
_STEPS = 40
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


def train(inputs: Path, output: Path, distributed: str = "off") -> None:
    from vise_jax.training import pretrain

    settings = config.base()
    settings.data.update(image_size=32, shards=str(inputs / "shards"), threads=1)
    settings.model.update(name="resnet18", width=4)
    settings.training.update(batch_size=8, steps=_STEPS, checkpoint_every=5, log_every=1, keep_checkpoints=2)
    settings.training.update(distributed=distributed, heartbeat_seconds=5)
    pretrain.train(settings, output / "run")


def train_two(inputs: Path, output: Path, index: int) -> None:
    """The same run by two processes, each on its own host. This is the one of an index."""
    train(inputs, output, f"{TwoHosts.addresses[0]}:8476,2,{index}")


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


def reproduce(inputs: Path, output: Path) -> None:
    """Table 3 on a miniature dataset with one encoder: two evaluations, each in a process of its own, and a page."""
    from vise_jax.reporting import study
    from vise_jax.reproduction import paper, plan, run

    changes = "finetune.epochs=1", "finetune.learning_rates=(0.1,)", "finetune.weight_decays=(1e-4,)", "splits=2"
    planned = plan.Plan(paper.EXPERIMENTS["table3"], output / "study", plan.Settings(evaluation=changes))
    try:
        run.run(planned, Path(__file__).parents[2])
    finally:
        study.write(planned, output / "study" / "table3")


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job
    for job in (
        *(fit, label, delete, train, train_two, convert),
        *(extract, linear, finetune, predict, explain, reproduce),
    )
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
    miniatures.unbiased_emotion(inputs / "study" / "data" / "unbiased_emotion")
    shutil.copytree(inputs / "encoder", inputs / "study" / "encoders" / "vise_1m-resnet50")
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


def _child(name: str, inputs: Path, output: Path, log: Path, hosts: TwoHosts | None, index: int) -> None:
    """Run a job as a command does: a sentence and status 1 where it refuses."""
    # Its own processes are of its group.
    os.setpgid(0, 0)
    _obey_modes()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        if hosts:
            hosts.enter(index)
            JOBS[name](inputs, output, index)
        else:
            JOBS[name](inputs, output)
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:
        # As `cli.run` does: what the system refuses about a path is a sentence, too.
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None):
            print(error, file=sys.stderr, flush=True)
            os._exit(REFUSED)
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(BROKEN)


def _obey_modes() -> None:
    """Give up the right to read and write files whose modes forbid it, which root has."""
    libc = ctypes.CDLL(None, use_errno=True)
    # struct __user_cap_header_struct of version 3 for this process, and two of __user_cap_data_struct.
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, rights):
        raise OSError(ctypes.get_errno(), "capget")
    # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are bits 1 and 2, and the first three words those of low bits.
    for word in range(3):
        rights[word] &= ~0b110
    if libc.capset(header, rights):
        raise OSError(ctypes.get_errno(), "capset")


class Start(NamedTuple):
    """A job that was started.

    Attributes:
        processes: of the job.
        target: the one that signals go to.
        logs: files of what the processes print.
    """

    processes: list[Any]
    target: Any
    logs: list[Path]

    def is_running(self) -> bool:
        return self.target.exitcode is None

    def send(self, number: int) -> None:
        """Send a signal, if the process has not ended: to its own processes, too, as a terminal and schedulers do."""
        for call in (os.killpg, os.kill):  # a process that has just begun has no group yet
            with contextlib.suppress(ProcessLookupError):
                call(self.target.pid, number)
                return

    def wait(self) -> int:
        """Wait until all have ended; return the status of the target, or another's if that is 0."""
        statuses = [_status(process) for process in (self.target, *self.processes)]
        return next((status for status in statuses if status), 0)

    def printed(self) -> str:
        return "".join(log.read_text() for log in self.logs).strip()


def _status(process: Any) -> int:
    process.join(_PATIENCE)
    if process.exitcode is not None:
        return int(process.exitcode)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return HUNG


class Harness:
    """Starts jobs in processes of their own, from one that has imported everything.

    Args:
        directory: inputs, outputs and logs.
        seed: of the moments and places of faults.
        hosts: on which `train_two` runs.
    """

    def __init__(self, directory: Path, seed: int = 0, hosts: TwoHosts | None = None):
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        self.directory, self.draw, self.hosts = directory, random.Random(seed), hosts
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
        self._undisturbed: dict[str, dict[str, str]] = {}
        self._seconds: dict[str, float] = {}

    def start(self, job: str, output: Path) -> Start:
        """Start a job in its own process."""
        hosts = self.hosts if job == "train_two" else None
        logs = [self.directory / f"{job}-{index}.log" for index in range(2 if hosts else 1)]
        processes = [
            self._context.Process(target=_child, args=(job, self.inputs, output, log, hosts, index))
            for index, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        return Start(processes, self.draw.choice(processes), logs)

    def undisturbed(self, job: str) -> dict[str, str]:
        """Return the files of a job that was left alone."""
        if job not in self._undisturbed:
            self._undisturbed[job] = digest(self._after(job))
        return self._undisturbed[job]

    def seconds(self, job: str) -> float:
        """Return how long a job takes that is left alone, once it is compiled."""
        if job not in self._seconds:
            self.undisturbed(job)
            began = time.monotonic()
            self._after(job)
            self._seconds[job] = time.monotonic() - began
        return self._seconds[job]

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
        # Links, so that damage is done to what it writes only.
        if job == "reproduce":
            (output / "study").mkdir()
            for path in (self.inputs / "study").iterdir():
                (output / "study" / path.name).symlink_to(path)

    def finish(self, job: str, output: Path) -> str:
        """Run a job to its end; return "equal", "refused", "broken" (a traceback) or "different"."""
        started = self.start(job, output)
        status = started.wait()
        if status:
            end = {REFUSED: "refused", HUNG: "hung"}.get(status, "broken")
            self.found.append(f"{job}, {end}: {started.printed()[-500:]}")
            return end
        ours, theirs = digest(output), self._undisturbed[job]
        if ours != theirs:
            names = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
            self.found.append(f"{job}: other files than undisturbed: {', '.join(names)[:500]}")
        return "equal" if ours == theirs else "different"

    def kills(self, job: str, count: int) -> Counter[str]:
        """Send signals at random moments, one to each start, until `count` have hit; return how the jobs ended."""
        seconds, hits, ends = self.seconds(job), 0, Counter[str]()
        output = self.empty(job)
        while hits < count:
            started = self.start(job, output)
            time.sleep(self.draw.uniform(0, seconds))
            if started.is_running():
                started.send(number := SIGNALS[hits % len(SIGNALS)])
                hits += 1
                if (status := started.wait()) in (REFUSED, BROKEN, HUNG):
                    ends[f"ended with {status}"] += 1
                    self.found.append(f"{job}, signal {number}: {started.printed()[-500:]}")
            else:
                ends[self.finish(job, output)] += 1
                output = self.empty(job)
        ends[self.finish(job, output)] += 1
        return ends

    def freezes(self, job: str, count: int) -> Counter[str]:
        """Stop a job for half a second at a random moment, and resume it; return how the jobs ended."""
        seconds, ends = self.seconds(job), Counter[str]()
        for _ in range(count):
            output = self.empty(job)
            started = self.start(job, output)
            time.sleep(self.draw.uniform(0, seconds))
            if started.is_running():
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
        needed, ends = sum(_pages(self._after(job))), Counter[str]()
        for _ in range(count):
            there = _pages(self.empty(job))
            # A job that changes files writes one after the other anew.
            pages = sum(there) + int((max(there) if there else needed) * self.draw.uniform(0.02, 0.95))
            output, kilobytes = self.empty(job), max(pages, 2) * _PAGE // 1024
            _mount(output, f"size={kilobytes}k")
            try:
                self._begin(job, output)
                started = self.start(job, output)
                status = started.wait()
                if status == 0:
                    ends["had room"] += 1
                elif status != REFUSED or "disk is full" not in started.printed():
                    ends[f"ended with {status}"] += 1
                    self.found.append(f"{job}, disk of {kilobytes} kB: {started.printed()[-1000:]}")
                _mount(output, "remount,size=4g")
                ends[self.finish(job, output)] += 1
            finally:
                subprocess.run(["umount", str(output)], check=True)
        return ends

    def damages(self, job: str, count: int, flips: bool = True) -> Counter[str]:
        """Kill a job, cut a file that it left, and run it again; return how the jobs ended.

        All kinds of files are as likely, however many there are of one. With `flips`, every other time a bit is flipped
        instead.
        """
        ends = Counter[str]()
        for number in range(count):
            output = self._killed(job)
            there = [path for path in sorted(output.rglob("*")) if path.is_file() and path.stat().st_size]
            if not there:
                ends["nothing to damage"] += 1
                continue
            kinds: dict[str, list[Path]] = {}
            for path in there:
                kinds.setdefault(re.sub(r"[0-9a-f]{8,}|[0-9]+", "", path.name), []).append(path)
            path = self.draw.choice(kinds[self.draw.choice(sorted(kinds))])
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

    def lockouts(self, job: str, count: int) -> Counter[str]:
        """Kill a job, forbid to read and write a file or directory of its own or of what it reads, and run it twice.

        The second time it may. Images that can't be read are bad examples, which jobs count and leave out: they are
        not chosen. The first run may refuse. Returns how the jobs ended.
        """
        ends = Counter[str]()
        for number in range(count):
            output = self._killed(job)
            inside = self.draw.choice(
                list(filter(_is_locked, sorted((self.inputs, output)[number % 2].iterdir()))) or [output]
            )
            path = self.draw.choice([inside, *filter(_is_locked, sorted(inside.rglob("*")))])
            mode = path.stat().st_mode
            path.chmod(0)
            try:
                started = self.start(job, output)
                status = started.wait()
            finally:
                with contextlib.suppress(FileNotFoundError):  # a part of what was left, which it removed
                    path.chmod(mode)
            if status not in (0, REFUSED):
                ends[f"ended with {status}"] += 1
                self.found.append(f"{job}, without the right to {path}: {started.printed()[-1000:]}")
            ends["needed it" if status == REFUSED else "did without"] += 1
            ends[self.finish(job, output)] += 1
        return ends

    def cuts(self, count: int, seconds: float | None = None) -> Counter[str]:
        """Cut the network between the two processes of `train_two` at a random step; return how the jobs ended.

        Args:
            count: number of cuts.
            seconds: after which the network is whole again; by default once both have ended.
        """
        assert self.hosts is not None
        self.undisturbed("train_two")
        ends = Counter[str]()
        for _ in range(count):
            output, step = self.empty("train_two"), self.draw.randrange(1, _STEPS - 10)
            started, metrics = self.start("train_two", output), output / "run" / "metrics.jsonl"
            while started.is_running() and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= step):
                time.sleep(0.02)
            self.hosts.cut()
            try:
                if seconds is None:
                    started.wait()
                else:
                    time.sleep(seconds)
            finally:
                self.hosts.join()
            # The coordination service of JAX aborts a process whose peers are silent.
            if (status := started.wait()) not in (0, REFUSED, -signal.SIGABRT):
                ends[f"ended with {status}"] += 1
                self.found.append(f"train_two, network cut: {started.printed()[-1000:]}")
            ends["was noticed" if status else "was survived"] += 1
            ends[self.finish("train_two", output)] += 1
        return ends

    def _killed(self, job: str) -> Path:
        """Kill a job at a random moment; return its output directory."""
        delay = self.draw.uniform(0.2, 1.0) * self.seconds(job)
        output = self.empty(job)
        started = self.start(job, output)
        time.sleep(delay)
        started.send(signal.SIGKILL)
        started.wait()
        return output

    def _after(self, job: str) -> Path:
        output = self.empty(job)
        started = self.start(job, output)
        assert started.wait() == 0, started.printed()
        return output


def _pages(directory: Path) -> list[int]:
    """Return how many pages each file takes in memory."""
    return [-(-path.stat().st_size // _PAGE) for path in directory.rglob("*") if path.is_file()]


def _is_locked(path: Path) -> bool:
    """Return whether `Harness.lockouts` may choose a path: no image, and nothing that the next start removes."""
    return path.suffix not in (".jpg", ".png") and ".tmp-" not in path.as_posix()


def _mount(directory: Path, options: str) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PermissionError(done.stderr.strip())
