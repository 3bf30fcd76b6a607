"""What training refuses before it starts, and what stops it. The undisturbed way is in tests/test_whole_job.py."""

import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from vise_jax import artefact
from vise_jax import config as vise_config
from vise_jax.data import shards
from vise_jax.errors import UserError
from vise_jax.training import loop


@pytest.fixture
def config(shards_folder) -> ConfigDict:
    config = vise_config.base()
    config.data.shards = str(shards_folder)
    config.data.image_size = 32
    config.model.name = "resnet18"
    config.model.width = 4
    config.training.batch_size = 8
    config.training.steps = 4
    return config


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("data.shards", "", "data.shards is empty"),
        ("training.batch_size", 9, "4 devices can't share"),
        ("model.bn_group", 3, "model.bn_group is 3, but must divide"),
        ("model.name", "resnet19", "resnet19"),
        ("training.momentum", 2.0, "training.momentum is 2.0"),
    ],
)
def test_a_wrong_key_is_named_before_anything_is_written(config, tmp_path, key, value, sentence):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=sentence):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_engagement_without_labels_is_named(config, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(config.data.shards, folder)
    manifest = artefact.read_description(folder, "manifest.json", version=shards.FORMAT_VERSION, made_by="")
    artefact.write_json(folder / "manifest.json", manifest | {"classes": {"comments": 3, "reactions": 0}})
    config.data.shards = str(folder)
    with pytest.raises(UserError, match="no such labels") as caught:
        loop.train(config, tmp_path / "run")
    assert "reactions" in str(caught.value)


def test_a_folder_that_is_no_run_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="no run folder"):
        loop.train(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_of_other_shards_is_refused(config, tmp_path):
    loop._claim(tmp_path / "run", config, "these shards")
    loop._claim(tmp_path / "run", config, "these shards")
    config.training.checkpoint_every = 17
    config.labels.seed = 9
    loop._claim(tmp_path / "run", config, "these shards")
    with pytest.raises(UserError, match="the shards differ"):
        loop._claim(tmp_path / "run", config, "other shards")


def test_epochs_become_steps():
    config = vise_config.base()
    assert loop.number_of_steps(config, 250_000_000) == 1_627_604
    config.training.steps = 7
    assert loop.number_of_steps(config, 250_000_000) == 7


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path: Path):
    config.training.learning_rate = 1e30
    config.training.checkpoint_every = 3
    with pytest.raises(UserError, match=r"not finite at step [23]"):
        loop.train(config, tmp_path / "run")
    # The state of step 3 is broken, so that it is not saved, and nothing is exported.
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert not (tmp_path / "run" / "encoder").exists()
