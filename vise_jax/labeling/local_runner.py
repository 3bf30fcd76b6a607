"""A function mapped over parts of the posts on one machine: in this process, or in a pool of processes."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized

from vise_jax.errors import Interrupted
from vise_jax.labeling.input_split import Part
from vise_jax.progress import Progress

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
# Seconds between two looks at how far the workers have come.
_LOOK = 0.5

# What a worker process counts its posts with; set when it starts.
_posts: Synchronized | None = None

Work = Callable[[Part, Callable[[], None]], None]


def each(work: Work, parts: Sequence[Part], workers: int, description: str) -> None:
    """Call `work(part, after_post)` for each part; the first error stops what has not begun.

    Args:
        work: importable, and so are its arguments where it is a `partial`.
        parts: the parts.
        workers: processes; 0 = none but this one.
        description: for the progress bar.

    Raises:
        UserError: `work` raised it, or a worker died.
    """
    if not parts:
        return
    with Progress(description, None, "posts") as progress:
        if workers == 0:
            for number, part in enumerate(parts):
                progress.advance(0, note=f"{number:,} of {len(parts):,} parts")
                work(part, progress.advance)
        else:
            _in_processes(work, parts, min(workers, len(parts)), progress)


def _in_processes(work: Work, parts: Sequence[Part], workers: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    seen = 0
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(counter,)) as pool:
        running = {pool.submit(_call, work, part) for part in parts}
        try:
            while running:
                done, running = wait(running, timeout=_LOOK, return_when=FIRST_COMPLETED)
                now = counter.value
                progress.advance(now - seen, note=f"{len(parts) - len(running):,} of {len(parts):,} parts")
                seen = now
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise Interrupted(
                "A worker process died, perhaps for want of memory: run the same command again to go on, with fewer "
                "--workers if it happens again."
            ) from error
        finally:
            for future in running:
                future.cancel()


def _start(counter: Synchronized) -> None:
    global _posts
    _posts = counter
    use_one_core()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def use_one_core() -> None:
    """Keep this process to a core of its own, and off accelerators; libraries look at this when they are first used."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    if _ONE_THREAD not in flags:  # a worker of Beam's comes here with each part
        os.environ["XLA_FLAGS"] = f"{flags} {_ONE_THREAD}"


def _end_with_parent() -> None:
    """A killed parent can't tell its workers to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(work: Work, part: Part) -> None:
    work(part, _count)


def _count() -> None:
    if _posts is not None:
        with _posts.get_lock():
            _posts.value += 1
