"""The benchmark of the training step runs where neither torch nor TensorFlow is, and its last line can be read."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

# Python runs it when it starts, in the processes of the variants, too. A module that is None in sys.modules can't be
# imported; find_spec then says that it isn't there.
WITHOUT = """
import importlib.util, sys
sys.modules["tensorflow"] = sys.modules["vise_jax.data"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
"""


@pytest.mark.slow
def test_quick_run_alone(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    words = ["--quick", "--encoders", "resnet18", "--batch", "2", "--image_size", "32", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "benchmarks/step.py", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "torch is not installed" in done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "step"
    assert result["ratios"] == {}
    ours = result["encoders"]["resnet18"]["vise_jax"]
    assert ours["images_per_second"] > 0
    # Parameters, momenta and gradients of 14 million weights take 4 bytes each.
    assert 3 * 4 * 11_000_000 < ours["peak_bytes"] < 1e9


def test_unknown_peer_is_reported():
    command = [sys.executable, "benchmarks/step.py", "--quick", "--peers", "lazy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "--peers has no 'lazy'" in done.stderr


@pytest.fixture(scope="module")
def step(load_benchmark):
    return load_benchmark("step")


def test_ratio_pairs_the_rounds(step):
    theirs = np.array([1.0, 2.0, 4.0, 8.0, 16.0])  # a machine that gets faster and faster
    found = step.ratio(1.5 * theirs, theirs)
    assert found == {"median": 1.5, "low": 1.5, "high": 1.5}
    noisy = step.ratio(np.array([1.0, 1.2, 0.9, 1.1, 3.0]), np.ones(5))
    assert noisy["median"] == 1.1
    assert noisy["low"] < 1.0 < 1.2 < noisy["high"]


def test_a_variant_is_warm_before_its_first_turn(step, monkeypatch: pytest.MonkeyPatch):
    calls = []
    measuring = sys.modules[step.Variant.__module__]
    monkeypatch.setattr(measuring, "ProcessPoolExecutor", lambda count, _, **keys: ThreadPoolExecutor(count, **keys))
    monkeypatch.setattr(measuring, "_prepared", [])
    variant = step.Variant(lambda unit: (lambda steps: calls.append(steps) or unit * steps, lambda: "about"), 0.5)
    assert calls == [2]
    assert variant.turn(3) == 1.5
    assert calls == [2, 3]
    assert variant.end() == "about"


def test_variants_take_turns(step):
    calls = []

    class Variant:
        def __init__(self, name: str):
            self.name = name

        def turn(self, steps: int) -> float:
            calls.append((self.name, steps))
            return len(calls)

    seconds = step.take_turns({name: Variant(name) for name in "ab"}, rounds=2, steps=3)
    assert calls == [("a", 3), ("b", 3), ("a", 3), ("b", 3)]
    assert {name: values.tolist() for name, values in seconds.items()} == {"a": [1, 3], "b": [2, 4]}
