"""What training refuses before it starts, and what stops it. The undisturbed way is in tests/test_whole_job.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax import config as vise_config
from vise_jax.data import loader, shards
from vise_jax.data.records import CorruptExamples
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.training import loop, pretrain
from vise_jax.training.checkpoint import Checkpoints


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
        ("training.batch_size", 44, "hold 41 examples, fewer than a batch"),
        ("training.microbatches", 3, "4 devices in 3 microbatches can't share"),
        ("model.bn_group", 3, "model.bn_group makes groups of 3, but they must divide"),
        ("training.distributed", "node1", "training.distributed is 'node1'"),
        ("model.name", "resnet19", "resnet19"),
        ("training.momentum", 2.0, "training.momentum is 2.0"),
    ],
)
def test_a_wrong_key_is_named_before_anything_is_written(config, tmp_path, key, value, sentence):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=sentence):
        pretrain.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_engagement_without_labels_is_named(config, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(config.data.shards, folder)
    manifest = artifact.read_description(folder, "manifest.json", version=shards.FORMAT_VERSION, made_by="")
    artifact.write_json(folder / "manifest.json", manifest | {"classes": {"comments": 3, "reactions": 0}})
    config.data.shards = str(folder)
    with pytest.raises(UserError, match="no such labels") as caught:
        pretrain.train(config, tmp_path / "run")
    assert "reactions" in str(caught.value)


def test_epochs_become_steps():
    config = vise_config.base()
    assert pretrain.number_of_steps(config, 250_000_000) == 1_627_604
    config.training.steps = 7
    assert pretrain.number_of_steps(config, 250_000_000) == 7


def test_parameters_that_are_not_finite_stop_the_run_and_name_the_batch(config, tmp_path: Path):
    config.training.learning_rate = 1e30
    config.training.checkpoint_every = 1
    with pytest.raises(
        UserError, match=r"^parameter_norm is not finite at step 1 .* with the batch from example 0 of epoch 0"
    ):
        pretrain.train(config, tmp_path / "run")
    # The parameters are broken, so that they are not saved, and nothing is exported.
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert not (tmp_path / "run" / "encoder").exists()
    named = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    batches = loader.batches(
        Path(config.data.shards),
        shards.read_manifest(config.data.shards),
        batch_size=8,
        seed=0,
        corrupt=CorruptExamples(tmp_path / "none"),
        first_step=named["step"] - 1,
        **pretrain.loader_settings(config.data),
    )
    assert named["post_ids"] == [post_id.decode() for post_id in next(batches)["post_id"]]


def validating(config: ConfigDict, tmp_path: Path) -> ConfigDict:
    """The same shards, two of which are for validation."""
    folder = tmp_path / "shards"
    shutil.copytree(config.data.shards, folder)
    manifest = shards.read_manifest(folder)
    held, kept = manifest["shards"][:2], manifest["shards"][2:]
    manifest |= {"shards": kept, "examples": 31, "validation": {"shards": held, "examples": 10}}
    artifact.write_json(folder / "manifest.json", manifest)
    config.data.shards = str(folder)
    return config


def test_a_run_is_evaluated_and_logged(config, tmp_path, caplog):
    config = validating(config, tmp_path)
    config.training.steps = 5
    config.training.log_every = 4
    config.training.evaluate_every = 2
    seen = []

    def evaluator(encode):
        features = encode(np.zeros((3, 32, 32, 3), np.uint8))
        seen.append(features.shape)
        return {"made_up": float(len(seen))}

    pretrain.train(config, tmp_path / "run", lambda: evaluator)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 5]
    assert [record["made_up"] for record in records] == [1, 2, 3]
    assert seen == [(3, 32)] * 3
    for record in records:
        assert record["loss"] == pytest.approx(record["loss_comments"] + record["loss_reactions"], rel=1e-5)
        assert 0 <= record["validation_top1_comments"] <= record["validation_top5_comments"] <= 1
        assert {"learning_rate", "gradient_norm", "parameter_norm", "step_seconds", "data_seconds"} <= record.keys()
        assert 0 <= record["goodput"] <= 1
    said = caplog.text
    assert (tmp_path / "run" / "train.log").read_text().count("starting from scratch") == 1
    assert "training.evaluate_every = 2 (default 5000)" in said
    assert "starting from scratch: 5 steps of 8 images out of 31, on 4 x cpu, batch norm over 2" in said
    # The exported encoder is the last step's, with merged statistics: its validation loss is the last one's.
    encoder = Encoder.load(tmp_path / "run" / "encoder")
    assert encoder.feature_dim == 32
    # Where the run was and who watched it stay in the run directory.
    published = json.dumps(encoder.provenance)
    assert str(tmp_path) not in published
    kept = encoder.provenance["trained"]["config"].keys()
    assert not {"training.init_from", "training.probe", "training.distributed"} & kept

    # The same command has nothing left to do; a run of its own can start from there.
    pretrain.train(config, tmp_path / "run", lambda: evaluator)
    assert "nothing left to train" in caplog.text
    config.training.init_from = str(tmp_path / "run" / "encoder")
    config.training.steps = 1
    pretrain.train(config, tmp_path / "run2")
    assert f"starting from the encoder {tmp_path}/run/encoder: 1 steps" in caplog.text
    config.training.steps = 2
    with pytest.raises(UserError, match=r"training\.steps differ"):
        pretrain.train(config, tmp_path / "run2")


def test_a_save_that_fails_is_tried_again(config, tmp_path, monkeypatch, caplog):
    config.training.steps, config.training.checkpoint_every = 6, 2
    monkeypatch.setattr(loop, "_SECONDS_TO_RETRY", 0.0)
    save, asked = Checkpoints.save, []

    def full_at_first(self, step, state):
        asked.append(step)
        if len(asked) == 1:
            with self._tolerant():
                raise OSError(28, "No space left on device")
        else:
            save(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", full_at_first)
    pretrain.train(config, tmp_path / "run")
    # Asked with the batch of step 3, told with its metrics.
    assert asked == [2, 4, 6]
    assert "could not be saved (the disk is full): the run continues" in caplog.text


def test_a_last_state_that_can_not_be_saved_is_an_error(config, tmp_path, monkeypatch):
    def full(self, step, state):
        with self._tolerant():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(UserError, match=r"Step 4 can't be saved \(the disk is full\)"):
        pretrain.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "encoder").exists()


def test_damaged_records_are_counted(config, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(config.data.shards, folder)
    path = folder / "s-2.tfrecord"
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    config.data.shards, config.data.max_corrupt_fraction, config.training.log_every = str(folder), 0.03, 1
    config.training.steps = 6
    pretrain.train(config, tmp_path / "run")
    counts = [
        json.loads(line)["corrupt_examples"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert counts[-1] == 1
    assert len((tmp_path / "run" / "corrupt_examples.jsonl").read_text().splitlines()) == 1
    config.data.max_corrupt_fraction = 0.02
    with pytest.raises(UserError, match=r"1 of 41 training examples are corrupt"):
        pretrain.train(config, tmp_path / "other")


def test_a_checkpoint_is_due_by_the_clock(config, tmp_path):
    config.training.checkpoint_minutes = 1e-9
    config.training.keep_checkpoints = 9
    pretrain.train(config, tmp_path / "run")
    # Asked with the batch of step 1, told with its metrics, when step 2 is under way.
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*"))[0] == "2"


def test_an_example_that_two_processes_found_counts_once(tmp_path):
    for name, entries in {"": [("a", 1), ("a", 2)], "-1": [("a", 2), ("b", 0), ("held-out", 5)]}.items():
        lines = [json.dumps({"shard": shard, "record": record, "reason": "cut off"}) for shard, record in entries]
        (tmp_path / f"corrupt_examples{name}.jsonl").write_text("\n".join(lines) + '\n{"sha')
    assert pretrain.count_corrupt(tmp_path, {"a", "b"}) == 3


def test_the_limit_on_corrupt_examples_is_of_all_processes(config, tmp_path, monkeypatch):
    # Another process has found three; this one finds none.
    lines = [json.dumps({"shard": "s-2.tfrecord", "record": record, "reason": ""}) for record in range(3)]
    control = loop._Loop._control

    def from_both(self, *args):
        inputs = control(self, *args)
        inputs["signals"][1, loop._CORRUPT] = 3
        (tmp_path / "run" / "corrupt_examples-1.jsonl").write_text("\n".join(lines) + "\n")
        return inputs

    monkeypatch.setattr(loop._Loop, "_control", from_both)
    config.data.max_corrupt_fraction = 2 / 41
    with pytest.raises(UserError, match="3 of 41 training examples are corrupt"):
        pretrain.train(config, tmp_path / "run")
