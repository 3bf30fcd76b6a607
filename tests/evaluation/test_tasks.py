"""Every task, protocol and setting, on miniature copies of the datasets."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vise_jax import config as vise_config
from vise_jax import models
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.evaluation import measure, tasks
from vise_jax.preprocessing import Preprocessing

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
import miniatures

ARCHITECTURE = {"name": "tiny", "width": 8, "stem": "cifar"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("run") / "encoder"
    Encoder.from_model(
        models.build(**ARCHITECTURE),
        architecture=ARCHITECTURE,
        preprocessing=Preprocessing.imagenet(16),
        provenance={},
        license="CC0",
    ).save(directory)
    return str(directory)


@pytest.fixture(scope="module")
def text_directory(text_encoder, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("text") / "encoder"
    text_encoder.save(directory)
    return str(directory)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("datasets")
    return {name: make(root / name) for name, make in miniatures.TASKS.items()}


def configured(task, protocol, setting=""):
    config = vise_config.evaluation()
    config.update({"task": task, "protocol": protocol, "setting": setting, "batch_size": 16})
    config.update({"splits": 2} if task == "unbiased_emotion" else {})
    config.lowshot.shots, config.lowshot.draws, config.knn.k = (1, 2), 2, (1, 5)
    config.linear.l2 = (1e-3, 1e-1)
    config.finetune.update({"learning_rates": (0.3,), "weight_decays": (1e-4,), "batch_size": 8, "epochs": 2.0})
    config.finetune.evaluate_every = 2.0
    return config


@pytest.mark.parametrize("protocol", ["linear", "knn", "lowshot", "finetune"])
@pytest.mark.parametrize("task", miniatures.TASKS)
def test_every_task_by_every_protocol(task, protocol, encoder, text_directory, data, tmp_path, caplog):
    text = text_directory if task == "hateful_memes" else ""
    result, path = measure.measure(configured(task, protocol), encoder, data[task], tmp_path, text_source=text)
    primary = {"hateful_memes": "roc_auc"}.get(task, "accuracy")
    assert result["primary"] == primary + ("_2shot" if protocol == "lowshot" else "")
    sizes = [split["sizes"] for split in result["splits"]]
    expected = {
        "unbiased_emotion": {"train": 48, "validation": 12, "test": 12},
        "politics": {"train": 26, "validation": 4, "test": 12},
        "hateful_memes": {"train": 36, "validation": 4, "test": 12},
        "cub": {"train": 44, "validation": 4, "test": 16},
    }[task]
    if protocol == "lowshot":
        classes = len(result["data"]["classes"])
        expected = [expected | {"train": shots * classes} for shots in (1, 1, 2, 2)]
    else:
        expected = [expected] * (2 if task == "unbiased_emotion" else 1)
    assert sizes == expected
    assert "the paper's has" in caplog.text
    assert str(tmp_path) not in path.read_text()
    if protocol in ("linear", "knn") and task in ("politics", "cub"):
        assert result["metrics"]["accuracy"]["mean"] > 0.8


@pytest.mark.parametrize(
    ("protocol", "setting", "dim"),
    [
        pytest.param("finetune", "image_text", None, marks=pytest.mark.slow),
        ("finetune", "image_frozen_text", None),
        ("linear", "image_text", 32),
        ("finetune", "image", None),
        ("linear", "image", 16),
        ("finetune", "text", None),
        ("linear", "text", 16),
    ],
)
def test_the_seven_settings(protocol, setting, dim, encoder, text_directory, data, tmp_path):
    config = configured("hateful_memes", protocol, setting)
    source, text = ("" if setting == "text" else encoder), ("" if setting == "image" else text_directory)
    result, path = measure.measure(config, source, data["hateful_memes"], tmp_path, text_source=text)
    assert result["setting"] == setting
    assert result["encoder"]["modality"] == ("text" if setting == "text" else "image")
    assert (result["text_encoder"] is None) == (setting in ("image", "text"))
    if dim:
        (head,) = path.parent.glob("*.head-0.safetensors")
        import safetensors.numpy

        assert safetensors.numpy.load_file(head)["kernel"].shape == (dim, 2)
    if protocol == "linear" and "text" in setting:
        # The words tell the classes apart.
        assert result["metrics"]["roc_auc"]["mean"] == 1.0


def test_the_counts_of_the_paper_are_compared(data):
    task = tasks.TASKS["hateful_memes"]
    described = tasks.describe_counts(task, task.open(data["hateful_memes"], ()))
    assert (
        "has 40 train and 12 test examples of 2 classes; the paper's has 8,500 train and 500 test examples" in described
    )


def test_texts_and_encoders_that_do_not_fit(encoder, text_directory, data, tmp_path):
    memes = configured("hateful_memes", "linear")
    with pytest.raises(UserError, match="needs a text encoder: give --text-encoder"):
        measure.measure(memes, encoder, data["hateful_memes"], tmp_path)
    with pytest.raises(UserError, match="encoder of images, not of text"):
        measure.measure(memes, encoder, data["hateful_memes"], tmp_path, text_source=encoder)
    with pytest.raises(UserError, match="encoder of text, not of images"):
        measure.measure(memes, text_directory, data["hateful_memes"], tmp_path, text_source=text_directory)
    with pytest.raises(UserError, match="needs an image encoder: give --encoder"):
        measure.measure(memes, "", data["hateful_memes"], tmp_path, text_source=text_directory)
    with pytest.raises(UserError, match="uses no text: leave --text-encoder out"):
        measure.measure(configured("cub", "linear"), encoder, data["cub"], tmp_path, text_source=text_directory)
    with pytest.raises(UserError, match="cub has no texts: choose the setting image"):
        measure.measure(configured("cub", "linear", "text"), "", data["cub"], tmp_path, text_source=text_directory)
    assert not list(tmp_path.iterdir())


def rewrite(path: Path, number: int, **changes) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes)
    path.write_text("\n".join(lines) + "\n")


def test_missing_and_long_texts(encoder, text_directory, tmp_path):
    memes = miniatures.hateful_memes(tmp_path / "memes")
    rewrite(memes / "train.jsonl", 3, text="w1 " * 40)
    config = configured("hateful_memes", "linear", "text")
    result, _ = measure.measure(config, "", memes, tmp_path / "results", text_source=text_directory)
    assert result["data"]["truncated_texts"] == 1
    rewrite(memes / "train.jsonl", 5, text=" ")
    with pytest.raises(UserError, match=r"1 of 52 examples of memes have no text \(img/t0005\.png is the first\)"):
        measure.measure(config, "", memes, tmp_path / "results", text_source=text_directory)


def test_features_of_another_encoder_are_not_used(encoder, text_directory, data, tmp_path):
    """Cached features have the fingerprint of the encoder in their name."""
    config = configured("cub", "linear")
    measure.measure(config, encoder, data["cub"], tmp_path)
    config.seed = 1
    measure.measure(config, f"random:{encoder}", data["cub"], tmp_path, name="other")
    assert len(list((tmp_path / "features").glob("*.npz"))) == 2
    first, second = (np.load(path)["features"] for path in (tmp_path / "features").glob("*.npz"))
    assert np.abs(first - second).max() > 1e-3
