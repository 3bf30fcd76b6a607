"""CPUs that a process may use."""

import math
import os

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
