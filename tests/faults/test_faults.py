"""Jobs that are killed, stopped, damaged, or lose disk, rights or network end as if left alone, or refuse."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
from harness import Harness
from two_hosts import TwoHosts

# The long form is benchmarks/faults.py.
pytestmark = pytest.mark.slow

WELL = {"equal", "refused", "nothing to damage"}


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        yield Harness(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("job", ["fit", "label", "delete", "train", "extract"])
def test_a_job_that_is_killed_ends_as_one_that_was_left_alone(harness: Harness, job: str) -> None:
    ends = harness.kills(job, 2 if job == "train" else 6)
    assert set(ends) == {"equal"}, ends


@pytest.mark.parametrize("job", ["fit", "label", "delete", "convert", "predict"])
def test_a_full_disk_is_a_sentence_and_costs_nothing(harness: Harness, job: str) -> None:
    try:
        ends = harness.full_disks(job, 2)
    except PermissionError as error:
        pytest.skip(f"no file system in memory can be mounted: {error}")
    assert ends == {"equal": 2}, (ends, harness.found)


@pytest.mark.parametrize("job", ["fit", "delete", "extract"])
def test_a_file_that_was_cut_is_mended_or_named(harness: Harness, job: str) -> None:
    ends = harness.damages(job, 4, flips=False)
    assert set(ends) <= WELL, (ends, harness.found)


@pytest.mark.parametrize("job", ["label", "delete"])
def test_without_the_right_to_a_file_a_job_refuses_or_does_without_and_with_it_ends_alike(
    harness: Harness, job: str
) -> None:
    ends = harness.lockouts(job, 4)
    assert set(ends) <= {"needed it", "did without", "equal"}, (ends, harness.found)
    assert ends["equal"] == 4


def test_two_processes_without_a_network_between_them_end_and_resume(harness: Harness) -> None:
    try:
        with TwoHosts() as hosts:
            harness.hosts = hosts
            ends = harness.cuts(1)
    except PermissionError as error:
        pytest.skip(f"no network namespace can be made: {error}")
    assert ends == {"was noticed": 1, "equal": 1}, (ends, harness.found)
