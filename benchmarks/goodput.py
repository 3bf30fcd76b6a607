"""Goodput of a run: the fraction of its time in steps, the cost of a save, and the cost of a resume.

    python benchmarks/goodput.py
    python benchmarks/goodput.py --quick

Runs `scripts/train.py` as a user would, on simulated shards of 100,000 examples (2,000 drawn images of 64 pixels, over
and over). First 500 steps with a checkpoint every 50. Then a run that is killed at 10% and at 90% of its first epoch
and started again: steps lost, and seconds from the start of the process and from that of the loop to the first new
step. The last line is one JSON object; its ratio is the restart's time at 10% by that at 90%.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import jax
import numpy as np
from absl import flags
from measuring import ratio
from simulated import pattern, write_shards

from vise_jax import cli

QUICK = flags.DEFINE_bool("quick", False, "2,000 examples, 40 steps, 1 round: a smoke test.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Restarts at each place.", 1)

ROOT = Path(__file__).resolve().parents[1]
_SHARDS, _BATCH = 50, 64


def main(words: list[str]) -> None:
    """Measure, and print."""
    cli.no_words(words)
    examples, steps, every = (2_000, 40, 10) if QUICK.value else (100_000, 500, 50)
    rounds = 1 if QUICK.value else ROUNDS.value
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_shards(directory / "shards", examples)
        train(directory, "steady", steps, every)
        lines = (directory / "steady" / "metrics.jsonl").read_text().splitlines()
        steady = losses_of_time(list(map(json.loads, lines)), every)
        print(", ".join(f"{key} {value:.4f}" for key, value in steady.items()), flush=True)
        resumed = {share: restarts(directory, int(share * examples / _BATCH), rounds) for share in (0.1, 0.9)}
    for share, found in resumed.items():
        print(f"at {share:.0%} of an epoch: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    early, late = (np.array(resumed[share]["seconds"]) for share in (0.1, 0.9))
    result = {
        "benchmark": "goodput",
        "device": jax.devices()[0].device_kind,
        "ratios": {"restart at 90% of an epoch": ratio(late, early)},
        "steady": steady,
        "resumed": resumed,
    }
    print(json.dumps(result))


def make_shards(directory: Path, examples: int) -> None:
    """Write shards of drawn images."""
    draw = np.random.default_rng(0)
    images = [pattern(draw, 6, (72, 64)) for _ in range(min(examples, 2_000))]
    write_shards(directory, lambda number: images[number % len(images)], examples, _SHARDS, comments=40, reactions=8)


def command(directory: Path, run: str, steps: int, every: int) -> list[str]:
    """Return the command of a small run: ResNet-18 of width 16, 64 images of 64 pixels per step."""
    keys = {
        "data.shards": directory / "shards",
        "data.image_size": 64,
        "model.name": "resnet18",
        "model.width": 16,
        "training.batch_size": _BATCH,
        "training.steps": steps,
        "training.checkpoint_every": every,
    }
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    config = f"--config={ROOT}/configs/vise_1m.py:resnet18"
    return [sys.executable, str(ROOT / "scripts" / "train.py"), config, *words, "--workdir", str(directory / run)]


def train(directory: Path, run: str, steps: int, every: int) -> None:
    """Run to the end."""
    subprocess.run(
        command(directory, run, steps, every), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def losses_of_time(records: list[dict], every: int) -> dict[str, float]:
    """Return goodput, seconds per step and seconds that a save blocks, from the records of a run without evaluations.

    Args:
        records: lines of `metrics.jsonl`.
        every: steps between checkpoints.
    """
    blocked, before = [], 0
    for record in records:
        count = record["step"] - before
        # The save after a record's step counts in the time of the next one.
        if before and before % every == 0:
            wall = count * _BATCH / record["images_per_second"]
            blocked.append(wall - count * record["step_seconds"])
        before = record["step"]
    return {
        "goodput": records[-1]["goodput"],
        "step_seconds": float(np.median([record["step_seconds"] for record in records[1:]])),
        "data_seconds": float(np.median([record["data_seconds"] for record in records[1:]])),
        "save_blocks_seconds": float(np.median(blocked)),
        "save_blocks_at_most_seconds": float(np.max(blocked)),
    }


def restarts(directory: Path, stop: int, rounds: int) -> dict:
    """Start a run, kill it a few steps after a checkpoint at the step `stop`, and start it again, a few times."""
    every = max(stop, 2)
    found: dict[str, list[float]] = {"steps_lost": [], "seconds": [], "loop_seconds": []}
    run = f"at-{stop}"
    # As long a run each time, so that each compiles the same step; killed when it has passed the checkpoint.
    words = command(directory, run, 1_000_000, every)
    _kill_behind(words, directory / run, every, until=every + 3)
    for _ in range(rounds):
        start = time.monotonic()
        lost, seconds, loop_seconds = _kill_behind(words, directory / run, every, until=None)
        found["steps_lost"].append(lost)
        found["seconds"].append(round(seconds - start, 2))
        found["loop_seconds"].append(loop_seconds)
    return found


def _kill_behind(words: list[str], run: Path, checkpoint: int, until: int | None) -> tuple[int, float, float]:
    """Run until the metrics have reached a step (None = the first new one), and kill it.

    Returns:
        steps that had been done after the checkpoint before; when the first new step was done (monotonic seconds); and
        how long the loop says that it took.
    """
    before = _last_step(run)
    process = subprocess.Popen(
        [*words, "--config.training.log_every=1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    first, loop_seconds = 0.0, 0.0
    for line in process.stderr or ():
        if match := re.match(r"first step after ([\d.,]+) s", line):
            first, loop_seconds = time.monotonic(), float(match[1].replace(",", ""))
            break
    while (
        until
        and process.poll() is None
        and not (_last_step(run) >= until and (run / "checkpoints" / str(checkpoint)).exists())
    ):
        time.sleep(0.05)
    process.kill()
    process.wait()
    if not first:
        raise RuntimeError(f"{run} ended before its first step")
    return max(before - checkpoint, 0), first, loop_seconds


def _last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
    return steps[-1] if steps else 0


if __name__ == "__main__":
    cli.run(main, __doc__)
