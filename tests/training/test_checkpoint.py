"""Checkpoints that can't be written or read."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vise_jax.errors import UserError
from vise_jax.training import sharding
from vise_jax.training.checkpoint import Checkpoints


def state(number: float) -> dict[str, jax.Array]:
    """Something on all devices, and something on each of them."""
    mesh = sharding.data_mesh()
    return {
        "params": jax.device_put(jnp.full((3, 5), float(number)), sharding.replicated(mesh)),
        "stats": jax.device_put(jnp.arange(8.0) + number, sharding.split(mesh)),
    }


def same(found, number: float) -> bool:
    return all(np.array_equal(found[name], value) for name, value in state(number).items())


@pytest.fixture
def three(tmp_path) -> Path:
    """A run directory with the steps 10, 20 and 30."""
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state(step))
        checkpoints.wait()
        assert not checkpoints.problem()
    return tmp_path


def test_the_newest_are_kept_and_the_newest_is_read(three):
    with Checkpoints(three, keep=2) as checkpoints:
        checkpoints.save(40, state(40))
        checkpoints.wait()
        assert checkpoints.latest() == 40
        step, found = checkpoints.restore(like=state(0))
    assert step == 40
    assert same(found, 40)
    assert sorted(path.name for path in (three / "checkpoints").glob("[0-9]*")) == ["30", "40"]
    assert found["stats"].sharding == state(0)["stats"].sharding


def test_other_devices_read_it_too(three):
    few = sharding.data_mesh(jax.devices()[:2])
    like = {
        "params": jax.device_put(jnp.zeros((3, 5)), sharding.replicated(few)),
        "stats": jax.device_put(jnp.zeros(8), sharding.split(few)),
    }
    with Checkpoints(three, keep=2) as checkpoints:
        _, found = checkpoints.restore(like)
    assert same(found, 30)
    assert len(found["stats"].devices()) == 2


@pytest.mark.parametrize("gone", ["default/d", "default", "default/_METADATA", "default/manifest.ocdbt"])
def test_a_half_deleted_checkpoint_is_set_aside_and_the_one_before_is_read(three, gone):
    path = three / "checkpoints" / "30" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if gone == "default/d":
        shutil.rmtree(three / "checkpoints" / "30" / "default" / "ocdbt.process_0" / "d")
    with Checkpoints(three, keep=3) as checkpoints:
        step, found = checkpoints.restore(like=state(0))
        assert step == 20
        assert same(found, 20)
        # Its place is free again.
        checkpoints.save(30, state(31))
        checkpoints.wait()
        assert same(checkpoints.restore(like=state(0))[1], 31)
    assert (three / "damaged" / "30").exists()


def test_when_none_can_be_read_it_is_reported_each_time(three):
    for step in (10, 20, 30):
        shutil.rmtree(three / "checkpoints" / str(step) / "default")
    for words in (r"No checkpoint in .* can be read \(step 30: .*step 10: ", "holds no checkpoint, but .*damaged some"):
        with Checkpoints(three, keep=3) as checkpoints, pytest.raises(UserError, match=words):
            checkpoints.restore(like=state(0))


def test_a_new_run_has_none(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.restore(like=state(0)) is None


def test_another_models_checkpoint_is_refused(three):
    with (
        Checkpoints(three, keep=3) as checkpoints,
        pytest.raises(UserError, match="of another model: more, stats differ"),
    ):
        checkpoints.restore({**state(0), "stats": jnp.zeros(9), "more": jnp.zeros(1)})
    assert not (three / "damaged").exists()


def test_a_save_that_fails_is_reported_once_and_the_next_one_succeeds(tmp_path, monkeypatch, caplog):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.wait()
        directory = tmp_path / "checkpoints"

        def full(*_, **__):
            (directory / "2.orbax-checkpoint-tmp").mkdir()
            raise ValueError('RESOURCE_EXHAUSTED: Error writing "a/0": No space left on device [os_error_code=28]')

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints._disk._manager, "save", full)
            checkpoints.save(2, state(2))
        assert checkpoints.problem() == "the disk is full"
        assert not list(directory.glob("*tmp*"))
        assert checkpoints.problem() == ""
        assert checkpoints.latest() == 1
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert checkpoints.problem() == ""
        assert same(checkpoints.restore(like=state(0))[1], 3)


def test_a_disk_without_room_is_not_even_tried(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        with monkeypatch.context() as patched:
            # The state has 15 + 8 numbers of 4 bytes.
            patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 909, 91))
            checkpoints.save(1, state(1))
            assert checkpoints.problem() == "the disk is full"
            assert not list(tmp_path.rglob("*.orbax*"))
            patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 908, 92))
            checkpoints.save(2, state(2))
        checkpoints.wait()
        assert checkpoints.problem() == ""
        assert checkpoints.latest() == 2


def test_a_step_that_is_there_is_not_saved_again(three):
    with Checkpoints(three, keep=3) as checkpoints:
        checkpoints.save(30, state(99))
        checkpoints.wait()
        assert not checkpoints.problem()
        assert same(checkpoints.restore(like=state(0))[1], 30)


@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("a bug"), AttributeError("a bug")])
def test_an_error_of_the_program_sets_no_checkpoint_aside(three, monkeypatch, error):
    def broken(*_, **__):
        raise error

    with Checkpoints(three, keep=3) as checkpoints:
        monkeypatch.setattr(checkpoints._disk._manager, "restore", broken)
        with pytest.raises(type(error), match="a bug"):
            checkpoints.restore(like=state(0))
        assert checkpoints.latest() == 30
    assert not (three / "damaged").exists()


def test_a_damaged_array_is_set_aside(three):
    largest = max((three / "checkpoints" / "30" / "default" / "d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x55
    largest.write_bytes(content)
    with Checkpoints(three, keep=3) as checkpoints:
        assert checkpoints.restore(like=state(0))[0] == 20


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_array_in_a_file_of_its_own_is_set_aside(tmp_path, damage):
    """OCDBT keeps arrays of up to 1 KiB with their names; Orbax wraps the errors of larger ones."""
    large = {"weights": jax.random.normal(jax.random.key(0), (100, 100))}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, large)
        checkpoints.wait()
    path = max((tmp_path / "checkpoints" / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    assert path.stat().st_size > 30_000
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    if damage == "gone":
        path.unlink()
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        step, restored = checkpoints.restore(like=large)
    assert step == 1
    np.testing.assert_array_equal(restored["weights"], large["weights"])


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), ValueError("PERMISSION_DENIED: to open")])
def test_a_checkpoint_without_the_right_to_read_it_is_left_where_it_is(three, monkeypatch, error):
    def refused(*_, **__):
        raise Exception("Encountered error while reading array index") from error

    with Checkpoints(three, keep=3) as checkpoints:
        monkeypatch.setattr(checkpoints._disk._manager, "restore", refused)
        with pytest.raises(UserError, match=r"checkpoints/30 can't be read \(permission denied\): give this user"):
            checkpoints.restore(like=state(0))
        assert checkpoints.latest() == 30
    assert not (three / "damaged").exists()


@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("a bug"), RuntimeError("a bug")])
def test_an_error_of_the_program_is_raised(tmp_path, monkeypatch, error):
    def broken(*_, **__):
        raise error

    with Checkpoints(tmp_path, keep=3) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints._disk._manager, "save", broken)
            with pytest.raises(type(error), match="a bug"):
                checkpoints.save(1, state(1))
        checkpoints.save(2, state(2))
        checkpoints.wait()
        assert checkpoints.latest() == 2
