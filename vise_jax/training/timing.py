"""Time of a run by activity, and profiler traces of single steps."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

T = TypeVar("T")


class Clock:
    """Divide the time of a run into steps, waiting for data, and the rest (saves, evaluations).

    Time is counted from the end of the first step on, which compiles. Waiting for data counts only while the devices
    are idle.
    """

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()
        self._lost = {"data": 0.0, "other": 0.0}
        self._lost_before = dict(self._lost)

    def restart(self) -> float:
        """Restart the clock; return the seconds since it was created."""
        seconds = time.monotonic() - self._begin
        self.__init__()  # type: ignore[misc]
        return seconds

    @contextlib.contextmanager
    def lost(self, on: str = "other") -> Iterator[None]:
        """Count the time of the block as lost on "data" or "other"."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._lost[on] += time.monotonic() - start

    def next(self, batches: Iterator[T], idle: Callable[[], bool]) -> T:
        """Return the next batch. The wait for it is lost if the devices are idle when it arrives."""
        start = time.monotonic()
        batch = next(batches)
        if idle():
            self._lost["data"] += time.monotonic() - start
        return batch

    def measure(self, steps: int, images: int) -> dict[str, float]:
        """Return the times of the steps since the last call; `docs/pods.md` explains them.

        Args:
            steps: number of steps.
            images: number of images per step, over all processes.
        """
        now = time.monotonic()
        data, other = (self._lost[key] - self._lost_before[key] for key in ("data", "other"))
        seconds = now - self._last
        values = {
            "images_per_second": steps * images / seconds,
            "step_seconds": (seconds - other) / steps,
            "data_seconds": data / steps,
            "goodput": 1 - sum(self._lost.values()) / (now - self._begin),
        }
        self._last, self._lost_before = now, dict(self._lost)
        return {name: round(value, 4) for name, value in values.items()} | _device_memory()


def _device_memory() -> dict[str, int]:
    """Return the peak bytes in use on this process's first device, if the backend reports them."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {} if peak is None else {"device_bytes": peak}


class Trace:
    """A profiler trace of the steps from `first` to `last`, in the directory `profile` of the run.

    As a context manager, it stops the trace where the run ends before `last`.

    Args:
        workdir: the run directory.
        steps: `first` and `last`, or () for no trace.
    """

    def __init__(self, workdir: Path, steps: tuple[int, ...]):
        self._folder = workdir / "profile"
        self._first, self._last = steps or (0, 0)
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Start the trace if this step belongs to it; a resumed run may begin within it."""
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, state: object) -> None:
        """Stop the trace if it ends with this step."""
        if step >= self._last and self._running:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
