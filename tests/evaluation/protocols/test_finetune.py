"""Fine-tuning: what moves, what is selected, resuming to the same bits, and equality with the linear protocol."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from PIL import Image

from vise_jax import config as vise_config
from vise_jax import models, variables
from vise_jax.data import augmented
from vise_jax.data.augmented import Augmentation
from vise_jax.data.datasets import open_labeled
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.evaluation import logistic_regression, measure, predictions
from vise_jax.preprocessing import Preprocessing
from vise_jax.training import finetune
from vise_jax.training.finetune import FineTuner, Settings

ROOT = Path(__file__).parents[3]
ARCHITECTURE = {"name": "tiny", "width": 8, "stem": "cifar"}
CENTER = Augmentation("center", (0.08, 1.0), (3 / 4, 4 / 3))


def make_encoder(**architecture) -> Encoder:
    architecture = {**ARCHITECTURE, **architecture}
    return Encoder.from_model(
        models.build(**architecture),
        architecture=architecture,
        preprocessing=Preprocessing.imagenet(16),
        provenance={},
        license="CC0",
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "encoder"
    # The heads of pre-training are no part of the classifier.
    make_encoder(heads={"comments": 3}).save(directory)
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """80 images of stripes, across or along."""
    directory, random = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    for name in ("across", "along"):
        (directory / name).mkdir(parents=True)
        for number in range(40):
            wave = 90 * np.sin(np.arange(20) * 1.2 + random.uniform(0, 6))
            pixels = 128 + np.broadcast_to(wave[:, None], (20, 20)) + random.normal(0, 15, (20, 20))
            pixels = pixels if name == "across" else pixels.T
            rgb = np.repeat(pixels.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
            Image.fromarray(rgb).save(directory / name / f"{number}.png")
    return directory


def configured(**changes):
    config = vise_config.evaluation()
    config.update({"protocol": "finetune", "splits": 1, "batch_size": 16, "train_fraction": 0.5})
    config.validation_fraction = 0.2
    defaults = {"learning_rates": (0.5,), "weight_decays": (1e-4,), "batch_size": 8, "epochs": 4.0, "augment": "flip"}
    config.finetune.update({**defaults, **changes})
    return config


def settings(**changes) -> Settings:
    values = {"batch_size": 8, "epochs": 2.0, "momentum": 0.9, "warmup_fraction": 0.0, "trainable": "all"}
    values |= {"batch_norm": "train", "evaluate_every": 1.0, "checkpoint_every": 1000}
    return Settings(**{**values, **changes})


def train(encoder: Encoder, pictures: Path, workdir: Path, *, rate=0.5, decay=1e-4, **changes):
    dataset = open_labeled(pictures)
    tuner = FineTuner(
        encoder, None, encoder.preprocessing, frozen_dim=0, classes=2, settings=settings(**changes), dtype="float32"
    )

    def batches(first_step, local_rows):
        def columns(indices):
            return {"labels": dataset.labels[indices], "example_id": np.array([b"x"] * len(indices))}

        return augmented.batches(
            dataset,
            np.arange(len(dataset)),
            batch_size=changes.get("batch_size", 8),
            seed=0,
            first_step=first_step,
            local_rows=local_rows,
            columns=columns,
            preprocessing=encoder.preprocessing,
            augmentation=CENTER,
            threads=1,
            max_image_pixels=100_000,
        )

    weights = tuner.train(batches, len(dataset), workdir, learning_rate=rate, weight_decay=decay, seed=0, measure=None)
    return weights, tuner, dataset


def moved(weights, encoder: Encoder) -> dict[str, bool]:
    before = {f"image/{name}": np.asarray(value) for name, value in encoder.weights.items()}
    return {name: bool((weights[name] != value).any()) for name, value in before.items()}


def test_all_parameters_and_statistics_of_the_encoder_move(pictures, tmp_path):
    encoder = make_encoder()
    weights, _, _ = train(encoder, pictures, tmp_path / "run")
    assert weights.keys() == {f"image/{name}" for name in encoder.weights} | {"head/kernel", "head/bias"}
    # Convolutions of the identity blocks of a new network get a gradient after the first step.
    assert all(moved(weights, encoder).values())


def test_frozen_batch_norms_stay(pictures, tmp_path):
    encoder = make_encoder()
    weights, _, _ = train(encoder, pictures, tmp_path / "run", batch_norm="frozen")
    for name, has_moved in moved(weights, encoder).items():
        is_norm = "bn" in name or "downsample/1" in name
        # A zero scale of a last batch norm that stays blocks the gradient of its branch.
        assert not has_moved if is_norm else has_moved or "/conv" in name, name
    assert moved(weights, encoder)["image/conv1/kernel"]


@pytest.mark.slow
def test_training_the_head_alone_is_the_linear_protocol(pictures, tmp_path):
    encoder, l2 = make_encoder(zero_init_last_bn=False), 0.2
    weights, tuner, dataset = train(
        encoder, pictures, tmp_path / "run", rate=2.0, decay=l2, trainable="head", batch_size=80, epochs=150.0
    )
    assert not any(moved(weights, encoder).values())
    images = np.stack(
        [
            augmented.decode_augmented(dataset.read(index), encoder.preprocessing, CENTER, np.zeros(41))
            for index in range(len(dataset))
        ]
    )
    features = encoder.features(images)
    solved = logistic_regression.solve(
        features[None],
        dataset.labels[None],
        np.ones((1, 80), np.float32),
        np.array([l2], np.float32),
        classes=2,
        iterations=500,
        tolerance=1e-7,
    )
    np.testing.assert_allclose(weights["head/kernel"], solved.kernel[0, 0], atol=2e-3)
    probabilities = tuner.predict(weights)({"images": images})
    logits = features @ np.asarray(solved.kernel[0, 0]) + np.asarray(solved.bias[0, 0])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=2e-3)


def test_a_measurement(encoder, pictures, tmp_path):
    config = configured(learning_rates=(0.5, 1e-5), epochs=6.0, seeds=2)
    result, path = measure.measure(config, str(encoder), pictures, tmp_path)
    assert result["metrics"]["accuracy"]["mean"] > 0.9
    assert len(result["splits"]) == 2
    for split in result["splits"]:
        assert split["selected"]["settings"]["learning_rate"] == 0.5
        assert split["selected"]["test"] == split["metrics"]["accuracy"]
        assert len(split["sweep"]) == 2
        assert 0 < split["selected"]["details"]["best_step"] <= 30
    # Nothing of the runs is left.
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, predictions.path_of(path).name, "features"}
    for one in predictions.read(predictions.path_of(path)):
        np.testing.assert_allclose(one.scores.sum(axis=1), 1, atol=1e-5)


def test_runs_share_one_program(encoder, pictures, tmp_path, monkeypatch):
    from vise_jax.training import finetune

    made = []
    original = finetune.make_train_step
    monkeypatch.setattr(finetune, "make_train_step", lambda *a, **k: made.append(1) or original(*a, **k))
    config = configured(learning_rates=(0.1, 0.5), weight_decays=(0.0, 1e-3), epochs=1.0)
    result, _ = measure.measure(config, str(encoder), pictures, tmp_path)
    assert len(made) == 1
    assert len(result["splits"][0]["sweep"]) == 4


def test_learning_rate_and_decay_of_the_grid_are_used(pictures, tmp_path):
    encoder = make_encoder()
    first, _, _ = train(encoder, pictures, tmp_path / "a", rate=0.1, decay=0.0)
    other, _, _ = train(encoder, pictures, tmp_path / "b", rate=0.2, decay=0.0)
    decayed, _, _ = train(encoder, pictures, tmp_path / "c", rate=0.1, decay=0.1)
    assert np.abs(first["head/kernel"] - other["head/kernel"]).max() > 1e-4
    norms = [np.linalg.norm(weights["image/conv1/kernel"]) for weights in (first, decayed)]
    assert norms[1] < norms[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("clip_resnet50", 224), ("detectron2_resnet50", 32)])
def test_encoders_of_other_sources(pictures, tmp_path, name, side):
    """CLIP's attention pool trains, too; the norms of VQAGrid are frozen, and its images are BGR."""
    architecture = {"name": name, "width": 16, "zero_init_last_bn": False}
    color = {"color": "BGR", "scale": 1.0, "mean": (103.5, 116.3, 123.7), "std": (1.0, 1.0, 1.0)}
    preprocessing = dataclasses.replace(Preprocessing.imagenet(side), **(color if side == 32 else {}))
    encoder = Encoder.from_model(
        models.build(**architecture), architecture=architecture, preprocessing=preprocessing, provenance={}, license="0"
    )
    weights, tuner, dataset = train(encoder, pictures, tmp_path / "run", rate=0.01, batch_size=4, epochs=0.1)
    for path, has_moved in moved(weights, encoder).items():
        is_frozen = side == 32 and ("bn" in path or "downsample/1" in path)
        assert has_moved != is_frozen, path
    image = augmented.decode_augmented(dataset.read(0), preprocessing, CENTER, np.zeros(41))[None]
    probabilities = tuner.predict(weights)({"images": image})
    tuned = Encoder(
        architecture,
        {path: weights[f"image/{path}"] for path in encoder.weights},
        preprocessing,
        {},
        "0",
    )
    logits = tuned.features(image) @ weights["head/kernel"] + weights["head/bias"]
    np.testing.assert_allclose(probabilities, scipy.special.softmax(logits, axis=1), atol=1e-4)


def run_killed(command: list[str], after: float) -> None:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bits(pictures, tmp_path):
    encoder = tmp_path / "run" / "encoder"
    make_encoder(name="resnet18", width=4).save(encoder)
    words = ["--config", "configs/eval.py:folder,finetune", "--encoder", encoder, "--data", pictures]
    words += ["--config.splits=1", "--config.finetune.batch_size=8", "--config.finetune.epochs=12"]
    words += ["--config.finetune.learning_rates=(0.1,0.5)", "--config.finetune.weight_decays=(1e-3,)"]
    words += ["--config.finetune.checkpoint_every=5", "--output"]
    command = [sys.executable, "scripts/evaluate.py", *map(str, words)]
    done = subprocess.run([*command, str(tmp_path / "one")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds = np.random.default_rng(int(os.environ.get("SEED", "0"))).uniform(6, 16, 5)
    for after in seconds:
        run_killed([*command, str(tmp_path / "killed")], after)
    done = subprocess.run([*command, str(tmp_path / "killed")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (ours,), (theirs,) = ((tmp_path / name).glob("*.predictions.npz") for name in ("one", "killed"))
    for one, other in zip(predictions.read(ours), predictions.read(theirs), strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


def test_finished_runs_are_not_trained_again(encoder, pictures, tmp_path, monkeypatch):
    trained = []
    original = FineTuner.train

    def interrupted(self, *arguments, learning_rate, **settings):
        if learning_rate == 0.5 and len(trained) < 2:
            trained.append("stopped")
            raise UserError("stopped")
        trained.append(learning_rate)
        return original(self, *arguments, learning_rate=learning_rate, **settings)

    monkeypatch.setattr(FineTuner, "train", interrupted)
    config = configured(learning_rates=(0.1, 0.5), epochs=1.0)
    with pytest.raises(UserError, match="stopped"):
        measure.measure(config, str(encoder), pictures, tmp_path)
    measure.measure(config, str(encoder), pictures, tmp_path)
    assert trained == [0.1, "stopped", 0.5]


def test_damaged_weights_are_named(tmp_path):
    path = tmp_path / "best.safetensors"
    finetune.write_weights(path, {"head": np.ones(3, np.float32)}, {"step": "7"})
    weights, about = finetune.read_weights(path, "delete it")
    np.testing.assert_array_equal(weights["head"], np.ones(3))
    assert about == {"step": "7"}
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"best\.safetensors is damaged .*: delete it"):
        finetune.read_weights(path, "delete it")


def test_corrupt_images_are_left_out(encoder, pictures, tmp_path):
    import shutil

    data = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    (data / "along" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"along/3\.png"):
        measure.measure(configured(epochs=1.0), str(encoder), data, tmp_path / "results")
    config = configured(epochs=1.0)
    config.max_corrupt_fraction = 0.1
    result, _ = measure.measure(config, str(encoder), data, tmp_path / "results")
    assert result["data"]["left_out"] == {"images": 1, "names": ["along/3.png"]}


@pytest.mark.parametrize(
    "batch_size", [pytest.param(1, marks=pytest.mark.slow), 7, 64, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_metrics_do_not_depend_on_the_batch_size(encoder, pictures, tmp_path, batch_size):
    config = configured(epochs=1.0)
    config.batch_size = 16
    expected, path = measure.measure(config, str(encoder), pictures, tmp_path / "a")
    config.batch_size = batch_size
    result, other = measure.measure(config, str(encoder), pictures, tmp_path / "b")
    for one, two in zip(*(predictions.read(predictions.path_of(p)) for p in (path, other)), strict=True):
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
    assert result["metrics"]["accuracy"] == expected["metrics"]["accuracy"]


def test_variables_of_a_classifier_are_named_by_its_parts():
    from flax import nnx

    from vise_jax.models.classifier import Classifier

    model = Classifier(models.build(**ARCHITECTURE), None, frozen_dim=3, classes=2, rngs=nnx.Rngs(0))
    assert model.head.kernel.shape == (model.image.feature_dim + 3, 2)
    assert {name.split("/")[0] for name in variables.of_model(model)} == {"image", "head"}
