"""CPUs and memory of a process."""

import math
import os
import platform
import subprocess
import sys

import pytest

from vise_jax import machine


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu.max": "nonsense"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_quota_of_the_control_group_limits(tmp_path, monkeypatch, files, quota):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine.available_cpus(tmp_path) == min(128, math.ceil(quota) if quota < math.inf else 128)


def test_the_affinity_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    (tmp_path / "cpu.max").write_text("800000 100000")
    assert machine.available_cpus(tmp_path) == 2


def test_a_group_above_limits_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)), raising=False)
    mount, own = tmp_path / "mount", tmp_path / "own"
    (mount / "jobs" / "mine").mkdir(parents=True)
    own.write_text("0::/jobs/mine\n")
    (mount / "jobs" / "cpu.max").write_text("400000 100000")
    assert machine.available_cpus(mount, own) == 4
    (mount / "jobs" / "mine" / "cpu.max").write_text("100000 100000")
    assert machine.available_cpus(mount, own) == 1
    assert machine.available_cpus(mount, tmp_path / "none") == 128


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    script = """
import resource, sys, threading
from vise_jax import machine
def work():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(50):
        blocks = [bytearray(b"x") * 2**20 for _ in range(4)]
        del blocks
    print((resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) * resource.getpagesize() >> 20)
if sys.argv[1] == "keep":
    machine.keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    cleared = {
        how: int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True).stdout)
        for how in ("keep", "give back")
    }
    # Megabytes: four at a time, of 200 in all.
    assert cleared["keep"] < 10
    assert cleared["give back"] > 100
