"""What benchmarks share."""

import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# Takes a number of steps, and returns their seconds; and describes the variant afterwards.
Prepared = tuple[Callable[[int], float], Callable[[], Any]]


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Return the median of the rounds' ratios, and its 95% interval by bootstrap over rounds."""
    ratios = ours / theirs
    draws = np.random.default_rng(0).integers(0, len(ratios), (10_000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def timed(run: Callable[[int], None]) -> Callable[[int], float]:
    """Return a function that takes a number of steps as `run` does, and returns their seconds."""

    def turn(steps: int) -> float:
        start = time.perf_counter()
        run(steps)
        return time.perf_counter() - start

    return turn


def peak_bytes(process: int | str = "self") -> int:
    """Return the peak memory of a process since it started its program; getrusage counts that of its parent, too."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def processor() -> str:
    """Return what distinguishes this machine's processor in measurements: its number of cores, vendor and model."""
    file = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in file.read_text().split("\n\n")[0].splitlines()] if file.exists() else []
    about = {name.strip(): value.strip() for name, _, value in lines}
    if not {"vendor_id", "cpu family", "model"} <= about.keys():
        return f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
    return f"{os.cpu_count()} x {about['vendor_id']}, family {about['cpu family']}, model {about['model']}"


class Variant:
    """A variant in a process of its own, so that no library's threads or memory are another's.

    It has taken two steps when this returns: the first one compiles.

    Args:
        prepare: an importable function that makes the variant.
        args: its arguments.
    """

    def __init__(self, prepare: Callable[..., Prepared], *args: Any):
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(prepare, *args))
        self.turn(2)

    def turn(self, steps: int) -> float:
        """Return the seconds of a number of steps."""
        return self._process.submit(_turn, steps).result()

    def end(self) -> Any:
        """End the process, and return what describes the variant."""
        about = self._process.submit(_about).result()
        self._process.shutdown()
        return about


# In the process of a variant.
_prepared: list[Prepared] = []


def _prepare(prepare: Callable[..., Prepared], *args: Any) -> None:
    _prepared.append(prepare(*args))


def _turn(steps: int) -> float:
    return _prepared[0][0](steps)


def _about() -> Any:
    return _prepared[0][1]()


def take_turns(variants: dict[str, Variant], rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Return the seconds of each variant for a number of steps in every round, [rounds], interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            seconds[name].append(variant.turn(steps))
    return {name: np.array(times) for name, times in seconds.items()}
