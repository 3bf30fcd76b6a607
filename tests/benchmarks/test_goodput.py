"""The parts of the benchmark of what a run loses."""

import pytest

from vise_jax.data import shards


@pytest.fixture(scope="module")
def goodput(load_benchmark):
    return load_benchmark("goodput")


def test_what_a_save_blocks_is_found_in_the_record_after_it(goodput):
    # 64 images a step; steps of 0.5 s, and 2 s more in the record that follows the save at step 20.
    seconds = {10: 5.0, 20: 5.0, 30: 7.0, 40: 5.0}
    records = [
        {
            "step": step,
            "images_per_second": 640 / wall,
            "step_seconds": 0.5,
            "data_seconds": 0.1,
            "goodput": 0.9,
        }
        for step, wall in seconds.items()
    ]
    found = goodput.losses_of_time(records, every=20)
    assert found["save_blocks_seconds"] == pytest.approx(2.0)
    assert found["save_blocks_at_most_seconds"] == pytest.approx(2.0)
    assert (found["step_seconds"], found["data_seconds"], found["goodput"]) == (0.5, 0.1, 0.9)


def test_shards_are_complete(goodput, tmp_path):
    goodput.make_shards(tmp_path / "shards", 100)
    manifest = shards.read_manifest(tmp_path / "shards")
    assert (manifest["examples"], len(manifest["shards"])) == (100, 50)
