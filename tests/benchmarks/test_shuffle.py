"""The benchmark of the shuffle: its measures by hand, and a quick run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vise_jax.data.epoch_order import Shuffle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shuffle(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("shuffle")


def test_a_uniform_draw_by_simulation(shuffle: ModuleType) -> None:
    draw = np.random.default_rng(0)
    pages = [len(np.unique(draw.permutation(1000)[: shuffle.GROUP] // 20)) for _ in range(4000)]
    assert shuffle.uniform_pages(1000) == pytest.approx(np.mean(pages), rel=5e-3)


def test_one_block_per_window_has_few_pages(shuffle: ModuleType) -> None:
    few = shuffle.distinct_pages(64, Shuffle(shards=1, block=64, slots=1, window=64))
    assert few.mean() < 4
    assert shuffle.distinct_pages(64, Shuffle(shards=16, block=1, slots=8, window=128)).mean() > 20


def test_blocks_at_the_border_of_two_slots_are_read_twice(shuffle: ModuleType) -> None:
    aligned = Shuffle(shards=16, block=8, slots=8, window=128)
    assert shuffle.blocks_read_twice(64, aligned, processes=8) == 0
    # A single slot: every process reads every block.
    assert shuffle.blocks_read_twice(64, Shuffle(shards=16, block=64, slots=1, window=1024), processes=8) > 6


@pytest.mark.slow
def test_quick_run() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/shuffle.py", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "shuffle"
    assert result["ratios"].keys() == {"uniform draw", "late start"}
