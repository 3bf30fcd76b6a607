"""Progress on standard error: a bar on a terminal, a plain line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Count up to `total`, and show progress, rate and remaining time.

    Args:
        description: name of the work, e.g. `labeling`.
        total: number of units, or None if unknown.
        unit: counted unit, e.g. `posts`.
        done: number of units of earlier runs, of a resumed job.
        quiet: print nothing, as on all but the first process.
    """

    def __init__(self, description: str, total: int | None, unit: str, done: int = 0, quiet: bool = False):
        self._quiet = quiet
        self._description, self._total, self._unit = description, total, unit
        self._start_count = self._count = self._printed = done
        self._start = self._last_line = time.monotonic()
        self._note = ""
        console = Console(file=sys.stderr)
        self._bar = None
        if console.is_terminal and not quiet:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task(description, total=total, completed=done, rate="", note="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None and self._count > self._printed:
            self._print_line()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Add `count` units; `note` is shown after them, e.g. the current loss."""
        self._count += count
        self._note = self._note if note is None else note
        if self._bar:
            self._bar.update(self._task, completed=self._count, rate=self._rate(), note=self._note)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._print_line()

    def print(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        elif not self._quiet:
            print(line, file=sys.stderr, flush=True)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{(self._count - self._start_count) / seconds:,.1f} {self._unit}/s"

    def _print_line(self) -> None:
        self._last_line, self._printed = time.monotonic(), self._count
        if self._quiet:
            return
        parts = [f"{self._description}: {self._count:,}"]
        if self._total is not None:
            parts[0] += f" of {self._total:,}"
        parts[0] += f" {self._unit}"
        parts.append(self._rate())
        fresh = self._count - self._start_count
        if self._total is not None and fresh and self._count < self._total:
            left = (self._last_line - self._start) / fresh * (self._total - self._count)
            parts.append(f"{left:,.0f} s left")
        if self._note:
            parts.append(self._note)
        print(", ".join(parts), file=sys.stderr, flush=True)


def track(items: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show the progress."""
    with Progress(description, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
