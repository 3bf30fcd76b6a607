"""What training refuses before it starts, and what stops it. An undisturbed run is in tests/test_whole_job.py."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from vise_jax import artifact, models, variables
from vise_jax import config as vise_config
from vise_jax.data import shards
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.models.norm import BatchNorm
from vise_jax.training import loop, pretrain, sharding
from vise_jax.training.checkpoint import DiskCheckpoints
from vise_jax.training.task import Task


@pytest.fixture
def config(shards_folder) -> ConfigDict:
    config = vise_config.base()
    config.data.shards = str(shards_folder)
    config.data.image_size = 32
    config.model.name = "tiny"
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
        ("model.bn_group", 3, "model.bn_group makes groups of 3, which don't divide"),
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
    directory = tmp_path / "shards"
    shutil.copytree(config.data.shards, directory)
    manifest = artifact.read_description(directory, "manifest.json", version=shards.FORMAT_VERSION, made_by="")
    artifact.write_json(directory / "manifest.json", manifest | {"classes": {"comments": 3, "reactions": 0}})
    config.data.shards = str(directory)
    with pytest.raises(UserError, match="no such labels") as caught:
        pretrain.train(config, tmp_path / "run")
    assert "reactions" in str(caught.value)


def test_epochs_become_steps():
    config = vise_config.base()
    assert pretrain.number_of_steps(config, 250_000_000) == 1_627_604
    config.training.steps = 7
    assert pretrain.number_of_steps(config, 250_000_000) == 7


class Toy(nnx.Module):
    """A batch norm and a linear layer, which compile within a second."""

    def __init__(self, bn_group: int):
        self.norm = BatchNorm(3, group=bn_group, momentum=0.9, epsilon=1e-5)
        self.linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def __call__(self, x, *, train: bool):
        return {"class": self.linear(self.norm(x, train=train).mean((1, 2)))}, {}


def toy_task(**changes) -> Task:
    """Classify images by their mean color; example n of 40 has the id n."""

    def batches(step: int, rows: np.ndarray):
        for first in itertools.count(step * 8, 8):
            numbers = (first + rows) % 40
            yield {
                "images": np.random.default_rng(first).integers(0, 256, (8, 4, 4, 3), np.uint8)[rows],
                "label": numbers.astype(np.int32) % 2,
                "example_id": np.char.mod("%d", numbers).astype(bytes),
            }

    def loss_sums(output, batch):
        return {"class": optax.softmax_cross_entropy_with_integer_labels(output["class"], batch["label"]).sum()}

    settings = {
        "build": Toy,
        "batches": batches,
        "examples": 40,
        "normalize": lambda images: images.astype(jnp.float32) / 255.0,
        "loss_sums": loss_sums,
        "counts": lambda batch: {"class": jnp.float32(batch["label"].size)},
        "flip": False,
    }
    return Task(**{**settings, **changes})


def fit(workdir: Path, task: Task | None = None, rate: float = 0.1, **changes) -> nnx.Module:
    settings = {
        "steps": 4,
        "seed": 0,
        "checkpoint_every": 0,
        "checkpoint_minutes": 0.0,
        "keep_checkpoints": 9,
        "log_every": 1,
        "evaluate_every": 0,
        "profile_steps": (),
    }
    optimizer, layout = optax.sgd(rate), sharding.layout(8, 4, bn_group=None)
    workdir.mkdir(exist_ok=True)
    return loop.fit(
        task or toy_task(),
        optimizer,
        lambda _: jnp.float32(rate),
        workdir,
        loop.Settings(**{**settings, **changes}),
        mesh=sharding.data_mesh(),
        layout=layout,
    )


def saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(
        UserError, match=r"^parameter_norm is not finite at step 1 .* with the batch from example 0 of epoch 0"
    ):
        fit(tmp_path, rate=1e30, checkpoint_every=1)
    assert not saved(tmp_path)


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    """The loss is finite: the derivative of a square root at zero is not."""

    def loss_sums(output, batch):
        # Example 24 starts the fourth batch.
        zero = jnp.where((batch["number"] == 24).any(), 0.0, 1.0)
        return {"class": jnp.sqrt(zero * jnp.square(output["class"]).sum())}

    plain = toy_task()

    def batches(step: int, rows: np.ndarray):
        for batch in plain.batches(step, rows):
            yield batch | {"number": batch["example_id"].astype(np.int32)}

    task = replace(plain, loss_sums=loss_sums, batches=batches)
    with pytest.raises(
        UserError, match=r"^gradient_norm is not finite at step 4 \(loss 0\.\d+, .*Step 3 is the last"
    ) as caught:
        fit(tmp_path, task, steps=9, checkpoint_every=1)
    assert "from example 24 of epoch 0" in str(caught.value)
    assert saved(tmp_path) == [1, 2, 3]
    named = json.loads((tmp_path / "nonfinite.json").read_text())
    assert named["example_ids"] == [str(number) for number in range(24, 32)]
    assert named["gradient_norm"] == "nan"
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]


def test_batch_statistics_that_are_not_finite_are_not_saved(tmp_path):
    # A variance that overflows normalizes to zero, so that the loss stays finite.
    task = toy_task(normalize=lambda images: images.astype(jnp.float32) * 1e17)
    with pytest.raises(UserError, match="batch statistics are not finite at step 2"):
        fit(tmp_path, task, rate=0.0, checkpoint_every=2)
    assert not saved(tmp_path)


def test_a_model_that_is_not_finite_is_not_evaluated(tmp_path):
    class Evaluator:
        def run(self, state):
            raise AssertionError("evaluated")

    task = toy_task(evaluators=lambda *_: (Evaluator(),))
    with pytest.raises(UserError, match="parameter_norm is not finite at step 1"):
        fit(tmp_path, task, rate=1e30, evaluate_every=1)


def validating(config: ConfigDict, tmp_path: Path) -> ConfigDict:
    """The same shards, two of which are for validation."""
    directory = tmp_path / "shards"
    shutil.copytree(config.data.shards, directory)
    manifest = shards.read_manifest(directory)
    held, kept = manifest["shards"][:2], manifest["shards"][2:]
    manifest |= {"shards": kept, "examples": 31, "validation": {"shards": held, "examples": 10}}
    artifact.write_json(directory / "manifest.json", manifest)
    config.data.shards = str(directory)
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
    assert seen == [(3, 8)] * 3
    for record in records:
        assert record["loss"] == pytest.approx(record["loss_comments"] + record["loss_reactions"], rel=1e-5)
        assert 0 <= record["validation_top1_comments"] <= record["validation_top5_comments"] <= 1
        assert {"learning_rate", "gradient_norm", "parameter_norm", "step_seconds", "data_seconds"} <= record.keys()
        assert 0 <= record["goodput"] <= 1
    said = caplog.text
    assert (tmp_path / "run" / "train.log").read_text().count("starting from scratch") == 1
    assert "training.evaluate_every = 2 (default 5000)" in said
    assert "starting from scratch: 5 steps of 8 examples out of 31, on 4 x cpu, batch norm over 2" in said
    # The exported encoder has been trained: its norm is not that of the initial weights.
    encoder = Encoder.load(tmp_path / "run" / "encoder")
    assert encoder.feature_dim == 8
    initial = models.build(**encoder.architecture, seed=config.training.seed)
    first = {name: np.asarray(value) for name, value in variables.of_model(initial).items() if name.endswith("kernel")}
    assert len(first) == 8
    assert all(np.abs(np.asarray(encoder.weights[name]) - value).max() > 0 for name, value in first.items())
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
    again = Encoder.load(tmp_path / "run2" / "encoder")
    assert again.provenance["from"]["fingerprint"] == encoder.fingerprint
    assert "from the weights of another encoder" in (tmp_path / "run2" / "encoder" / "README.md").read_text()
    assert encoder.license in again.license
    config.training.steps = 2
    with pytest.raises(UserError, match=r"training\.steps differ"):
        pretrain.train(config, tmp_path / "run2")


def test_a_save_that_fails_is_tried_again(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(loop, "_SECONDS_TO_RETRY", 0.0)
    save, tried = DiskCheckpoints.save, []

    def full_at_first(self, step, state):
        tried.append(step)
        if len(tried) == 1:
            with self._tolerant():
                raise OSError(28, "No space left on device")
        else:
            save(self, step, state)

    monkeypatch.setattr(DiskCheckpoints, "save", full_at_first)
    fit(tmp_path, steps=6, checkpoint_every=2, log_every=3)
    # Requested with the batch of step 3, received with its metrics.
    assert tried == [2, 4, 6]
    assert "could not be saved (the disk is full): the run continues" in caplog.text


def test_a_last_state_that_can_not_be_saved_is_an_error(tmp_path, monkeypatch):
    def full(self, step, state):
        with self._tolerant():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskCheckpoints, "save", full)
    with pytest.raises(UserError, match=r"Step 4 can't be saved \(the disk is full\)"):
        fit(tmp_path, checkpoint_every=2)


def test_metrics_of_evaluators_that_are_not_finite_are_null(tmp_path):
    class Evaluator:
        def run(self, state):
            return {"accuracy": float("nan")}

    fit(tmp_path, toy_task(evaluators=lambda *_: (Evaluator(),)), evaluate_every=4)
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"accuracy": null' in line


def test_damaged_records_are_counted(config, tmp_path):
    directory = tmp_path / "shards"
    shutil.copytree(config.data.shards, directory)
    path = directory / "s-2.tfrecord"
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    config.data.shards, config.data.max_corrupt_fraction, config.training.log_every = str(directory), 0.03, 1
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


def test_a_checkpoint_is_due_by_the_clock(tmp_path):
    fit(tmp_path, checkpoint_minutes=1e-9, checkpoint_every=9)
    # Requested with the batch of step 1, received with its metrics when step 2 is under way.
    assert saved(tmp_path)[0] == 2


def test_an_example_that_two_processes_found_counts_once(tmp_path):
    for name, entries in {"": [("a", 1), ("a", 2)], "-1": [("a", 2), ("b", 0), ("held-out", 5)]}.items():
        lines = [json.dumps({"shard": shard, "record": record, "reason": "cut off"}) for shard, record in entries]
        (tmp_path / f"corrupt_examples{name}.jsonl").write_text("\n".join(lines) + '\n{"sha')
    assert pretrain.count_corrupt(tmp_path, {"a", "b"}) == 3


def test_the_limit_on_corrupt_examples_is_of_all_processes(tmp_path, monkeypatch):
    # Another process has found three; this one finds none.
    lines = [json.dumps({"shard": "s-2.tfrecord", "record": record, "reason": ""}) for record in range(3)]
    control = loop._Loop._control

    def from_both(self, *args):
        inputs = control(self, *args)
        inputs["signals"][1, loop._CORRUPT] = 3
        (tmp_path / "corrupt_examples-1.jsonl").write_text("\n".join(lines) + "\n")
        return inputs

    monkeypatch.setattr(loop._Loop, "_control", from_both)
    manifest = {"examples": 41, "shards": [{"name": "s-2.tfrecord"}]}
    limit = pretrain.corrupt_limit(tmp_path, manifest, max_fraction=2 / 41)
    with pytest.raises(UserError, match="3 of 41 training examples are corrupt"):
        fit(tmp_path, check_corrupt=limit)
