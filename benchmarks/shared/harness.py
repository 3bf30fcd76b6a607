"""What is done to the jobs of `faulty_jobs`, each in processes of its own.

After a fault the same call is made again. It has to end with the files of a job that was left alone, or to refuse in a
sentence; what it may never do is end with others.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from faulty_jobs import JOBS, STEPS, begin, digest, prepare
from two_hosts import TwoHosts

from vise_jax import cli

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Exit status of a job that refuses, of one with an error that is none of ours, and of one that had to be ended.
REFUSED, BROKEN, HUNG = 1, 70, 71
# Seconds after which a job that should have ended hangs.
_PATIENCE = 600
_PAGE = 4096


def _child(name: str, inputs: Path, output: Path, log: Path, hosts: TwoHosts | None, index: int) -> None:
    """Run a job as a command does, see `cli.run`."""
    # Its own processes are of its group.
    os.setpgid(0, 0)
    _obey_modes()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        if hosts:
            hosts.enter(index)
        words = (index,) if hosts else ()
        cli.guarded(name, functools.partial(JOBS[name], inputs, output, *words))
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    except Exception:
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
        for log in logs:
            log.write_text("")
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
        begin(job, self.inputs, output)
        return output

    def finish(self, job: str, output: Path) -> str:
        """Run a job to its end; return "equal", "refused", "broken" (a traceback), "hung" or "different"."""
        end, names = self._finish(job, output)
        if end == "different":
            self.found.append(f"{job}: other files than undisturbed: {', '.join(names)[:500]}")
        return end

    def _finish(self, job: str, output: Path) -> tuple[str, list[str]]:
        """Run a job to its end; return how it ended, and the names of the files that differ."""
        started = self.start(job, output)
        status = started.wait()
        if status:
            end = {REFUSED: "refused", HUNG: "hung"}.get(status, "broken")
            self.found.append(f"{job}, {end}: {started.printed()[-500:]}")
            return end, []
        ours, theirs = digest(output), self._undisturbed[job]
        names = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
        return ("different" if names else "equal"), names

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
                status = started.wait()
                # Python itself ends with status 1 when it is interrupted before the job, and prints nothing here.
                if status in (BROKEN, HUNG) or (status == REFUSED and started.printed()):
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
                begin(job, self.inputs, output)
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
        instead. "alone" are jobs after which only the damaged file differs: nothing was made of it.
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
            end, names = self._finish(job, output)
            if names == [path.relative_to(output).as_posix()]:
                end = "alone"
            ends[end] += 1
            if end not in ("equal", "refused"):
                how = f"{path.relative_to(output)} {'flipped' if flipped else 'cut'} at {place}"
                self.found.append(f"{job}: {how}: {end} {', '.join(names)[:500]}")
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
            output, step = self.empty("train_two"), self.draw.randrange(1, STEPS - 10)
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
