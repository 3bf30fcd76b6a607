"""Several processes on one machine: the same losses as one, saved together, ended together."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Enough for a signal to arrive before the end.
STEPS = 60
KEYS = [
    "--config=configs/vise_250m.py:resnet18",
    # Groups of 4 examples with last maps of 2x2: fewer values make batch norm a matter of rounding.
    "--config.data.image_size=64",
    "--config.model.width=4",
    "--config.model.bn_group=4",
    "--config.training.batch_size=16",
    f"--config.training.steps={STEPS}",
    "--config.training.log_every=1",
    # Slow learning, since float32's rounding grows step by step.
    "--config.training.learning_rate=0.001",
    "--config.training.heartbeat_seconds=10",
    "--config.training.checkpoint_every=1000",
]


def environment(devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def command(shards: Path, workdir: Path, *keys: str) -> list[str]:
    words = [f"--config.data.shards={shards}", "--workdir", str(workdir)]
    return [sys.executable, str(ROOT / "scripts" / "train.py"), *KEYS, *words, *keys]


def alone(shards: Path, workdir: Path, devices: int) -> None:
    done = subprocess.run(command(shards, workdir), cwd=ROOT, env=environment(devices), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def two_processes(shards: Path, workdir: Path, *keys: str) -> Iterator[list[subprocess.Popen]]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = []
    for index in range(2):
        where = f"--config.training.distributed=localhost:{port},2,{index}"
        with open(workdir.with_name(f"{workdir.name}-{index}.log"), "w") as log:
            words = command(shards, workdir, where, *keys)
            started.append(subprocess.Popen(words, cwd=ROOT, env=environment(2), stdout=log, stderr=log))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def records(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_step(processes: list[subprocess.Popen], workdir: Path, step: int) -> None:
    while all(process.poll() is None for process in processes) and len(records(workdir)) < step:
        time.sleep(0.02)
    assert all(process.poll() is None for process in processes), workdir.with_name(f"{workdir.name}-0.log").read_text()


@pytest.mark.slow
def test_two_processes_stop_together_and_one_resumes_to_the_same_losses(shards_folder, tmp_path):
    alone(shards_folder, tmp_path / "alone", devices=4)
    with two_processes(shards_folder, tmp_path / "run") as processes:
        wait_for_step(processes, tmp_path / "run", 3)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")]
    assert len(steps) == 1
    assert 3 <= steps[0] < STEPS
    assert f"SIGTERM: saved step {steps[0]}" in (tmp_path / "run-0.log").read_text()
    # One process with half the devices goes on.
    alone(shards_folder, tmp_path / "run", devices=2)
    expected, found = records(tmp_path / "alone"), records(tmp_path / "run")
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    for one, other in zip(expected, found, strict=True):
        for name in ("loss", "loss_comments", "loss_reactions"):
            assert other[name] == pytest.approx(one[name], rel=1e-5), one["step"]
    assert (tmp_path / "run" / "encoder" / "encoder.json").exists()


@pytest.mark.slow
def test_when_one_of_two_is_killed_the_other_ends_with_an_error(shards_folder, tmp_path):
    with two_processes(shards_folder, tmp_path / "run", "--config.training.steps=100000") as processes:
        wait_for_step(processes, tmp_path / "run", 2)
        processes[1].kill()
        # The heartbeat time is 10 s; the rest is patience with a busy machine.
        assert processes[0].wait(timeout=60) != 0
    assert not (tmp_path / "run" / "encoder").exists()
