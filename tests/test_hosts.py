"""When a process looks for others."""

import jax
import pytest

from vise_jax import hosts
from vise_jax.errors import UserError

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n[1-2]"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.fixture
def calls(monkeypatch):
    made = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: made.append(how))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    return made


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (SLURM, True),
        # In the script of a job, outside srun; and a job of one task.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        (KUBERNETES, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ],
)
def test_the_environment_says_whether_there_are_others(calls, environment, expected):
    hosts.initialize("auto", 17, environment)
    assert calls == ([{"heartbeat_timeout_seconds": 17}] if expected else [])


def test_off_is_off(calls):
    hosts.initialize("off", 100, SLURM)
    assert not calls


def test_a_coordinator_can_be_named(calls):
    hosts.initialize("node1:1234,4,3", 100, {})
    where = {"coordinator_address": "node1:1234", "num_processes": 4, "process_id": 3}
    assert calls == [where | {"heartbeat_timeout_seconds": 100}]


@pytest.mark.parametrize("where", ["on", "node1:1234", "node1,2,0", "node1:1234,2,x"])
def test_another_value_is_refused(calls, where):
    with pytest.raises(UserError, match="give auto, off or HOST:PORT,PROCESSES,INDEX"):
        hosts.initialize(where, 100, {})
    assert not calls


def test_processes_that_can_not_be_joined_are_reported(calls, monkeypatch):
    def refuse(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=r"can't be joined \(DEADLINE_EXCEEDED: Barrier timed out\)"):
        hosts.initialize("auto", 100, SLURM)


@pytest.mark.parametrize(
    "message",
    [
        "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read error [10.0.0.2]:28388: "
        "Connection reset by peer",
        "INTERNAL: NCCL operation ncclAllReduce() failed: unhandled system error",
        "DEADLINE_EXCEEDED: Barrier timed out",
        "UNAVAILABLE: the coordination service is not reachable",
    ],
)
def test_a_process_that_is_gone_is_a_sentence_to_the_others(monkeypatch, message):
    @hosts.explained()
    def collective():
        raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(jax.errors.JaxRuntimeError):
        collective()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"has ended or can't be reached .* start all of them again"):
        collective()


def test_another_error_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="shapes"), hosts.explained():
        raise ValueError("shapes differ")
