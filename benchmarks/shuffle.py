"""How random a batch-norm group is, and what the shuffle costs.

    python benchmarks/shuffle.py
    python benchmarks/shuffle.py --quick

Posts of 50 pages in page order, 16 shards of 4,096 simulated examples, a batch of 256 on 8 devices. Prints the number
of distinct pages in a device's group of 32 with one process and with 8, beside that of a uniform draw; the record
blocks that 8 processes read twice; and, in processes of their own, the seconds to the first batch at the start and at
90% of an epoch and the peak memory after 40 batches. The last line is one JSON object; its ratios are distinct pages by
those of a uniform draw, and the seconds to the first batch at the start by those at 90%.
"""

import io
import json
import math
import multiprocessing
import platform
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import numpy as np
from absl import flags
from measuring import peak_bytes, ratio
from PIL import Image
from simulated import write_shards

from vise_jax import cli, config
from vise_jax.data.epoch_order import Shuffle, windows

QUICK = flags.DEFINE_bool("quick", False, "256 examples per shard, 1 round: a smoke test.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Starts at each position.", 1)

PAGES, SHARDS, DEVICES, GROUP = 50, 16, 8, 32
BATCH = DEVICES * GROUP
# Batches after which the peak memory is measured.
BATCHES = 40
# Bytes of a simulated image: about those of a photo of 500 pixels.
IMAGE_BYTES = 60_000


def main(words: list[str]) -> None:
    """Measure and print."""
    cli.no_words(words)
    examples, rounds = (256, 1) if QUICK.value else (4_096, ROUNDS.value)
    data = config.base().data
    shuffle = Shuffle(data.shuffle_shards, data.shuffle_block, data.shuffle_slots, data.shuffle_window)
    distinct, uniform = distinct_pages(examples, shuffle), uniform_pages(SHARDS * examples)
    twice = blocks_read_twice(examples, shuffle, processes=8)
    print(f"distinct pages in a group of {GROUP}: {distinct.mean():.2f}, of a uniform draw {uniform:.2f}")
    print(f"record blocks that 8 processes read twice: {twice:.1%}")
    steps = {"start": 0, "90%": int(0.9 * SHARDS * examples / BATCH)}
    starts: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "shards"
        write_shards(directory, image, SHARDS * examples, SHARDS, comments=4, reactions=2)
        for _ in range(rounds):
            for position, step in steps.items():
                starts[position].append(in_process(directory, shuffle, step))
    for position, measured in starts.items():
        seconds = [one["seconds"] for one in measured]
        peak = max(one["peak_bytes"] for one in measured)
        print(f"first batch at {position} of an epoch: {np.median(seconds):.2f} s, peak memory {peak / 2**30:.2f} GiB")
    first, late = (np.array([one["seconds"] for one in starts[position]]) for position in steps)
    result = {
        "benchmark": "shuffle",
        "device": platform.processor() or platform.machine(),
        "ratios": {"uniform draw": ratio(distinct, np.full_like(distinct, uniform)), "late start": ratio(first, late)},
        "distinct_pages": float(distinct.mean()),
        "blocks_read_twice": twice,
        "starts": starts,
    }
    print(json.dumps(result))


def image(number: int) -> bytes:
    """Return a small JPEG image, padded to the size of a photo."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256 % 256, 0)).save(file, "JPEG")
    return file.getvalue().ljust(IMAGE_BYTES, b"\0")


def distinct_pages(examples: int, shuffle: Shuffle) -> np.ndarray:
    """Return the number of distinct pages in each group of an epoch, float64 [G]."""
    total = SHARDS * examples
    order = [shard * examples + record for shard, record in windows([examples] * SHARDS, shuffle, 0, 0, BATCH)]
    pages = np.concatenate(order) * PAGES // total
    return np.array([len(np.unique(group)) for group in pages.reshape(-1, GROUP)], np.float64)


def uniform_pages(total: int) -> float:
    """Return the expected number of distinct pages in a uniform draw of a group without replacement."""
    per_page = total // PAGES
    return PAGES * (1 - math.comb(total - per_page, GROUP) / math.comb(total, GROUP))


def blocks_read_twice(examples: int, shuffle: Shuffle, processes: int) -> float:
    """Return the fraction of record blocks that more than one process reads."""
    reads = blocks = 0
    for shard, record in windows([examples] * SHARDS, shuffle, 0, 0, BATCH):
        process = np.arange(len(shard)) % BATCH * processes // BATCH
        block = shard * examples + record // shuffle.block
        reads += len(np.unique(np.stack([process, block]), axis=1).T)
        blocks += len(np.unique(block))
    return reads / blocks - 1


def in_process(directory: Path, shuffle: Shuffle, step: int) -> dict[str, float]:
    """Measure in a process of its own: peak memory is that of a process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=_measure, args=(directory, shuffle, step, sender))
    process.start()
    measured = receiver.recv()
    process.join()
    return measured


def _measure(directory: Path, shuffle: Shuffle, step: int, sender: Connection) -> None:
    from vise_jax.data import loader, shards
    from vise_jax.data.records import CorruptExamples

    manifest = shards.read_manifest(directory)
    before = peak_bytes()
    start = time.perf_counter()
    batches = loader.batches(
        directory,
        manifest,
        batch_size=BATCH,
        seed=0,
        corrupt=CorruptExamples(directory / "corrupt_examples.jsonl"),
        shuffle=shuffle,
        image_size=8,
        crop_area=(0.5, 1.0),
        crop_ratio=(1.0, 1.0),
        antialias=False,
        first_step=step,
    )
    next(batches)
    seconds = time.perf_counter() - start
    for _ in range(BATCHES):
        next(batches)
    sender.send({"seconds": seconds, "peak_bytes": peak_bytes() - before})


if __name__ == "__main__":
    cli.run(main, __doc__)
