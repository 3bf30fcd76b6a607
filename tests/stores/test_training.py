"""Training in a bucket, from shards in a bucket: the bits of the same run on disk."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vise_jax import artifact
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.training import run_dir
from vise_jax.training.mirror import Mirror, MirroredCheckpoints

# Each trains.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KEYS = [
    "--config=configs/vise_250m.py:resnet18",
    "--config.data.image_size=64",
    "--config.model.width=4",
    "--config.model.bn_group=4",
    "--config.training.batch_size=16",
    "--config.training.steps=60",
    "--config.training.log_every=1",
    "--config.training.learning_rate=0.001",
    "--config.training.checkpoint_every=10",
    "--config.training.keep_checkpoints=2",
]
# Metrics that differ from run to run.
TIMES = {"images_per_second", "step_seconds", "data_seconds", "goodput"}


def start(shards: object, workdir: object, log: Path, *keys: str, devices: int = 2) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "TMPDIR": str(log.parent)}
    words = [*KEYS, f"--config.data.shards={shards}", f"--workdir={workdir}", *keys]
    with open(log, "a") as output:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "train.py"), *words],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )


def records(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_bytes().decode().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def steps(workdir: Path) -> list[int]:
    return sorted(int(name) for name in artifact.entries(workdir / "checkpoints") if name.isdigit())


@pytest.fixture(scope="session")
def on_disk(shards_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("disk")
    assert start(shards_folder, directory / "run", directory / "log").wait() == 0, (directory / "log").read_text()
    return directory / "run"


@pytest.fixture
def shards(store: Any, shards_folder: Path) -> str:
    root = artifact.location(store.root)
    root.fs.put(str(shards_folder), f"{root.path.rstrip('/')}/shards", recursive=True)
    return f"{store.root}/shards"


def test_a_run_that_is_killed_five_times_ends_as_on_disk(
    store: Any, shards: str, on_disk: Path, tmp_path: Path
) -> None:
    workdir, log = artifact.location(f"{store.root}/run"), tmp_path / "log"
    store.faults.refused, store.faults.cut = 0.02, 0.02
    draw = random.Random(store.scheme)
    for kill in range(5):
        process = start(shards, workdir, log)
        # A new checkpoint each time, and then anywhere, also while the next one is uploaded.
        before = max(steps(workdir), default=0)
        while process.poll() is None and max(steps(workdir), default=0) == before:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 0.5))
        assert process.poll() is None, f"{kill}: {log.read_text()}"
        process.kill()
        process.wait()
    assert start(shards, workdir, log).wait() == 0, log.read_text()
    # The first ones may end during the upload of the first checkpoint.
    assert log.read_text().count("resuming from step") >= 3
    assert records(workdir) == records(on_disk)
    assert steps(workdir) == [50, 60]
    found, expected = Encoder.load(workdir / "encoder"), Encoder.load(on_disk / "encoder")
    assert found.fingerprint == expected.fingerprint
    assert (workdir / "encoder" / "encoder.json").read_bytes() == (on_disk / "encoder" / "encoder.json").read_bytes()
    assert {"config.json", "train.log", "tensorboard"} <= artifact.entries(workdir)
    # Nothing is left on this disk.
    assert not list(tmp_path.glob("vise_jax-*"))


def test_two_processes_train_in_the_bucket_and_one_resumes(
    store: Any, shards: str, on_disk: Path, tmp_path: Path, free_port: int
) -> None:
    if store.scheme == "gs":
        pytest.skip("what differs between the stores is in the tests of files")
    workdir = artifact.location(f"{store.root}/run")
    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    processes = [
        start(shards, workdir, log, f"--config.training.distributed=localhost:{free_port},2,{index}", devices=1)
        for index, log in enumerate(logs)
    ]
    try:
        while all(process.poll() is None for process in processes) and not steps(workdir):
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=120) for process in processes] == [0, 0], logs[0].read_text()
    finally:
        for process in processes:
            process.kill()
    saved = steps(workdir)[-1]
    assert saved < 60
    assert f"SIGTERM: saved step {saved}" in logs[0].read_text()
    assert {"train.log", "train-1.log"} <= artifact.entries(workdir)
    assert start(shards, workdir, logs[0]).wait() == 0, logs[0].read_text()
    assert f"resuming from step {saved}" in logs[0].read_text()
    for one, other in zip(records(on_disk), records(workdir), strict=True):
        assert one["step"] == other["step"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_a_run_of_another_experiment_and_what_is_no_run_are_refused(store: Any) -> None:
    workdir, config = artifact.location(f"{store.root}/run"), {"training.momentum": 0.9}
    with run_dir.acquire(workdir, config, ["shards"], 8) as run:
        (run.path / "train.log").write_text("begun")
    assert (workdir / "train.log").read_text() == "begun"
    with run_dir.acquire(workdir, config, ["shards"], 4) as run:
        assert run.bn_group == 8
        assert (run.path / "train.log").read_text() == "begun"
    with (
        pytest.raises(UserError, match=rf"{workdir} holds another experiment \(training.momentum differ\)"),
        run_dir.acquire(workdir, {"training.momentum": 0.5}, ["shards"], 8),
    ):
        pass
    artifact.write_text(workdir.parent / "other" / "thesis.tex", "")
    with (
        pytest.raises(UserError, match="is no run directory"),
        run_dir.acquire(workdir.parent / "other", config, ["shards"], 8),
    ):
        pass


def test_a_checkpoint_that_was_cut_while_it_was_uploaded_is_none(store: Any) -> None:
    workdir = artifact.location(f"{store.root}/run")
    artifact.write_text(workdir / "checkpoints" / "100" / "d" / "part", "x")
    # The run begins anew, from training.init_from where that is given.
    assert run_dir.checkpoints(workdir) == []
    artifact.write_text(workdir / "checkpoints" / "100" / "_CHECKPOINT_METADATA", "x")
    assert run_dir.checkpoints(workdir) == [100]


def test_a_log_of_another_process_is_not_uploaded_by_the_first(store: Any) -> None:
    workdir = artifact.location(f"{store.root}/run")
    with Mirror(workdir) as mirror:
        artifact.write_text(workdir / "corrupt_examples-1.jsonl", "one\n")
        mirror.exchange("corrupt_examples.jsonl")
        assert (mirror.local / "corrupt_examples-1.jsonl").read_text() == "one\n"
        artifact.write_text(workdir / "corrupt_examples-1.jsonl", "one\ntwo\n")
        mirror.upload()
    assert (workdir / "corrupt_examples-1.jsonl").read_text() == "one\ntwo\n"


def test_a_checkpoint_that_cannot_be_read_is_left_out(store: Any, tmp_path: Path) -> None:
    state = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(-1) * np.ones((), np.int32)}
    workdir = artifact.location(f"{store.root}/run")
    with Mirror(workdir) as mirror, MirroredCheckpoints(mirror, keep=2) as checkpoints:
        assert checkpoints.restore(like=jax.device_put(state)) is None
        for step in (1, 2, 3):
            checkpoints.save(step, jax.device_put({**state, "step": np.full((), step, np.int32)}))
        checkpoints.wait()
        assert checkpoints.problem() == ""
        assert mirror.steps() == steps(workdir) == [2, 3]
    for name in artifact.tree(workdir / "checkpoints" / "3"):
        if "/d/" in name:
            (workdir / "checkpoints" / "3" / name).write_bytes(b"damaged")
    with Mirror(workdir) as mirror, MirroredCheckpoints(mirror, keep=2) as checkpoints:
        step, restored = checkpoints.restore(like=jax.device_put(state))
        assert (step, int(restored["step"])) == (2, 2)
        np.testing.assert_array_equal(restored["weights"], state["weights"])
        # Written again, it is complete again.
        checkpoints.save(3, jax.device_put(state))
        checkpoints.wait()
    with Mirror(workdir) as mirror, MirroredCheckpoints(mirror, keep=2) as checkpoints:
        assert checkpoints.restore(like=jax.device_put(state))[0] == 3
    for step in (2, 3):
        (workdir / "checkpoints" / str(step) / "default" / "manifest.ocdbt").write_bytes(b"damaged")
    with (
        Mirror(workdir) as mirror,
        MirroredCheckpoints(mirror, keep=2) as checkpoints,
        pytest.raises(UserError, match=f"No checkpoint in {workdir}/checkpoints can be read"),
    ):
        checkpoints.restore(like=jax.device_put(state))


def test_a_bucket_that_vanishes_is_a_failed_save(store: Any) -> None:
    problems = []

    def train() -> None:
        workdir = artifact.location(f"{store.root}/run")
        with Mirror(workdir) as mirror, MirroredCheckpoints(mirror, keep=2) as checkpoints:
            (mirror.local / "metrics.jsonl").write_text("{}")
            workdir.fs.rm(store.root, recursive=True)
            checkpoints.save(1, jax.device_put({"step": np.zeros((), np.int32)}))
            checkpoints.wait()
            problems.extend([checkpoints.problem(), checkpoints.problem()])

    # What has changed at the end can't be uploaded either.
    with pytest.raises(UserError, match="can't be written"):
        train()
    assert "can't be written" in problems[0]
    assert problems[1] == ""
