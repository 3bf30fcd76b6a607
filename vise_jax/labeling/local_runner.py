"""Map a function over input splits on one machine: in this process, or in a pool of processes."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized

import jax

from vise_jax.errors import Interrupted
from vise_jax.labeling.input_split import InputSplit
from vise_jax.progress import Progress

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
# Seconds between updates of the progress bar.
_UPDATE_SECONDS = 0.5

# Counter of the posts that all workers have read; set when a worker starts.
_posts: Synchronized | None = None

Work = Callable[[InputSplit, Callable[[], None]], None]


def each(work: Work, input_splits: Sequence[InputSplit], workers: int, description: str) -> None:
    """Call `work(input_split, after_post)` for each input split. The first error cancels those that have not started.

    Args:
        work: importable, and so are its arguments if it is a `partial`.
        input_splits: the input splits.
        workers: number of processes; 0 = this process.
        description: for the progress bar.

    Raises:
        UserError: `work` raised it, or a worker died.
    """
    if not input_splits:
        return
    with Progress(description, None, "posts") as progress:
        if workers == 0:
            for number, input_split in enumerate(input_splits):
                progress.advance(0, note=f"{number:,} of {len(input_splits):,} splits")
                work(input_split, progress.advance)
        else:
            _in_processes(work, input_splits, min(workers, len(input_splits)), progress)


def _in_processes(work: Work, input_splits: Sequence[InputSplit], workers: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    seen = 0
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(counter,)) as pool:
        running = {pool.submit(_call, work, input_split) for input_split in input_splits}
        try:
            while running:
                done, running = wait(running, timeout=_UPDATE_SECONDS, return_when=FIRST_COMPLETED)
                now = counter.value
                progress.advance(
                    now - seen, note=f"{len(input_splits) - len(running):,} of {len(input_splits):,} splits"
                )
                seen = now
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise Interrupted(
                "A worker process died, perhaps for lack of memory: run the same command again to resume, with fewer "
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
    """Keep this process to one core and off accelerators.

    Libraries read the variables when they are first used. JAX has read its own by then, and has used no device.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Threads that TensorStore has for requests. With one, a request takes two thirds of the CPU time.
    os.environ["TENSORSTORE_HTTP_THREADS"] = "1"
    # These threads don't interrupt the one that decodes: half of the system time of requests was switching to them.
    with contextlib.suppress(AttributeError, OSError):  # other systems, and sandboxes that forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    jax.config.update("jax_platforms", "cpu")
    flags = os.environ.get("XLA_FLAGS", "")
    if _ONE_THREAD not in flags:  # a Beam worker calls this for each input split
        os.environ["XLA_FLAGS"] = f"{flags} {_ONE_THREAD}"


def _end_with_parent() -> None:
    """Exit when the parent has ended: one that was killed can't stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(work: Work, input_split: InputSplit) -> None:
    work(input_split, _count)


def _count() -> None:
    if _posts is not None:
        with _posts.get_lock():
            _posts.value += 1
