"""Fitting on several processes: the labeler of one, and one end for all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vise_jax.demo.corpus import make_corpus
from vise_jax.engagement import Labeler

ROOT = Path(__file__).parents[2]
KEYS = ("--config=configs/demo.py", "--config.labels.cluster_fraction=0.9", "--config.labels.comment_dim=8")


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    make_corpus(directory, posts=400, labeled=1)
    return directory / "posts" / "*.jsonl"


def fit(posts: Path, output: Path, processes: int, devices: int, *keys: str) -> list[subprocess.CompletedProcess[str]]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "scripts" / "label.py"), "fit", *KEYS, *keys]
    command += ["--posts", str(posts), "--output", str(output), "--workers=0"]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started = []
    for index in range(processes):
        # They share nothing but the output.
        environment["TMPDIR"] = str(output.parent / "temporary" / str(index))
        Path(environment["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        where = f"--distributed=localhost:{port},{processes},{index}" if processes > 1 else "--distributed=off"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen([*command, where], cwd=ROOT, env=environment, text=True, **pipes))
    ended = []
    for process in started:
        output_text, errors = process.communicate(timeout=240)
        ended.append(subprocess.CompletedProcess(command, process.returncode, output_text, errors))
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("languages", ["shared", "separate"])
def test_processes_and_devices_decide_nothing_of_a_labeler(posts: Path, tmp_path: Path, languages: str) -> None:
    labelers = []
    for name, processes, devices in (("one", 1, 4), ("three", 3, 1)):
        for ended in fit(posts, tmp_path / name, processes, devices, f"--config.labels.languages={languages}"):
            assert ended.returncode == 0, ended.stderr
        labelers.append(Labeler.load(tmp_path / name))
    one, three = labelers
    assert one.fingerprint == three.fingerprint
    assert one.fitted == three.fitted
    np.testing.assert_array_equal(one.comment_centroids, three.comment_centroids)
    np.testing.assert_array_equal(one.reaction_centroids, three.reaction_centroids)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "three", "temporary"}
    assert not list((tmp_path / "temporary").glob("*/vise_jax-*"))


@pytest.mark.slow
def test_an_error_ends_every_process(posts: Path, tmp_path: Path) -> None:
    first, second = fit(posts, tmp_path / "labeler", 2, 1, "--config.labels.reaction_clusters=100000")
    for ended in (first, second):
        assert ended.returncode == 1
        assert "labels.reaction_clusters: 100,000 clusters need as many points" in ended.stderr
    first, second = fit(posts.with_name("none"), tmp_path / "labeler", 2, 1)
    assert (first.returncode, second.returncode) == (1, 1)
    assert "none" in first.stderr
