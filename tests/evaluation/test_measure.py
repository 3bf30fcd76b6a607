"""The linear protocol as a whole, on an encoder small enough for a test, and its results file."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from vise_jax import config as vise_config
from vise_jax import models
from vise_jax.encoder import Encoder, imagenet_preprocessing
from vise_jax.errors import UserError
from vise_jax.evaluation import measure, results

ARCHITECTURE = {"name": "resnet18", "width": 8, "stem": "cifar"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "encoder"
    Encoder.from_model(
        models.build(**ARCHITECTURE),
        architecture=ARCHITECTURE,
        preprocessing=imagenet_preprocessing(16),
        provenance={},
        license="CC-BY-NC 4.0",
    ).save(directory)
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """60 images of two classes that are easy to tell apart: bright with noise, or dark with noise."""
    directory, random = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    for name, level in {"bright": 200, "dark": 60}.items():
        (directory / name).mkdir(parents=True)
        for number in range(20 if name == "dark" else 40):
            noise = random.normal(level, 20, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(directory / name / f"{number}.png")
    return directory


def configured(**changes):
    config = vise_config.evaluation()
    config.update({"splits": 3, "l2": (1e-3, 1e-1), "batch_size": 16, **changes})
    return config


def test_a_measurement(encoder, pictures, tmp_path):
    result, path = measure.measure(configured(link_roots=(str(tmp_path),)), str(encoder), pictures, tmp_path)
    written = json.loads(path.read_text())
    assert written == result
    assert written["format_version"] == 2
    assert (result["task"], result["protocol"], result["primary"]) == ("folder", "linear", "accuracy")
    assert result["metrics"]["accuracy"] == {"mean": 1.0, "std": 0.0, "values": [1.0, 1.0, 1.0]}
    assert result["metrics"]["majority_accuracy"]["mean"] == pytest.approx(2 / 3)
    assert result["metrics"].keys() == {"accuracy", "validation_accuracy", "majority_accuracy"}
    assert result["selection"] == {
        "split": "validation",
        "metric": "accuracy",
        "setting": "l2",
        "grid": [1e-3, 1e-1],
        "chosen": [1e-1, 1e-1, 1e-1],
    }
    assert [(row["seed"], row["l2"]) for row in result["sweep"]] == [(n, l2) for n in range(3) for l2 in (1e-1, 1e-3)]
    assert result["sweep"][0].keys() == {"seed", "l2", "validation_accuracy", "iterations", "converged"}
    sizes = {"train": 42, "validation": 6, "test": 12}
    assert result["splits"] == [{"seed": seed, "sizes": sizes} for seed in range(3)]
    assert result["config"]["train_fraction"] == 0.7
    assert result["encoder"]["license"] == "CC-BY-NC 4.0"
    assert result["data"]["classes"] == ["bright", "dark"]
    assert (result["data"]["images"], result["data"]["corrupt_images"]) == (60, 0)
    assert written["versions"]["jax"] == jax.__version__
    assert path.name.startswith(f"folder-linear-{encoder.parent.name}-pictures-")
    assert str(tmp_path) not in path.read_text()
    assert str(pictures.parent) not in path.read_text()


def test_mean_and_deviation_are_those_of_the_splits(encoder, pictures, tmp_path):
    # Random labels: the splits differ.
    rows = [f"{path.relative_to(pictures)},{'ab'[n % 2]}" for n, path in enumerate(sorted(pictures.rglob("*.png")))]
    (pictures / "chance.csv").write_text("\n".join(["image,label", *rows]))
    result, _ = measure.measure(configured(splits=4), str(encoder), pictures / "chance.csv", tmp_path)
    accuracy = result["metrics"]["accuracy"]
    assert len(set(accuracy["values"])) > 1
    assert accuracy["mean"] == pytest.approx(np.mean(accuracy["values"]))
    assert accuracy["std"] == pytest.approx(np.std(accuracy["values"], ddof=1))
    assert result["data"]["name"] == "pictures/chance"


def test_an_equal_measurement_is_read_and_another_setting_is_another_file(encoder, pictures, tmp_path, caplog):
    caplog.set_level("INFO")
    _, path = measure.measure(configured(splits=1), str(encoder), pictures, tmp_path)
    written = path.stat().st_mtime_ns
    free = configured(splits=1, batch_size=8, threads=1, link_roots=(str(tmp_path),))
    _, again = measure.measure(free, str(encoder), pictures, tmp_path)
    assert again == path
    assert path.stat().st_mtime_ns == written
    assert "already measured" in caplog.text
    others = [
        measure.measure(configured(splits=1, seed=1), str(encoder), pictures, tmp_path),
        measure.measure(configured(splits=1), f"random:{encoder}", pictures, tmp_path),
        measure.measure(configured(splits=1, image_size=8), str(encoder), pictures, tmp_path, name="small"),
    ]
    assert len({path, *(other for _, other in others)}) == 4
    assert [result["encoder"]["name"] for result, _ in others] == [
        encoder.parent.name,
        f"random:{encoder.parent.name}",
        "small",
    ]
    assert others[2][0]["encoder"]["preprocessing"]["crop"] == 8
    assert others[0][0]["metrics"]["accuracy"]["std"] is None


def test_an_optimizer_that_has_not_converged_is_reported(encoder, pictures, tmp_path, caplog):
    measure.measure(configured(splits=1, iterations=1), str(encoder), pictures, tmp_path)
    assert "split 0: not converged after 1 iterations (l2 0.1)" in caplog.text


def test_what_does_not_exist_is_refused(encoder, pictures, tmp_path):
    with pytest.raises(UserError, match=r"no task 'cub' to evaluate: this version has folder\."):
        measure.measure(configured(task="cub"), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match=r"no protocol 'knn' to evaluate: this version has linear\."):
        measure.measure(configured(protocol="knn"), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match="splits is 0"):
        measure.measure(configured(splits=0), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match=r"link_roots is .* must be a tuple of directories"):
        measure.measure(configured(link_roots=("",)), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match=r"has no encoder\.json"):
        measure.measure(configured(), str(pictures), pictures, tmp_path)
    assert not list(tmp_path.iterdir())


def test_corrupt_images_are_named_together_and_left_out_up_to_a_limit(encoder, pictures, tmp_path, monkeypatch):
    damaged, output = Path(shutil.copytree(pictures, tmp_path / "damaged")), tmp_path / "results"
    names = ["bright/3.png", "dark/1.png", "dark/2.png"]
    for name in names:
        (damaged / name).write_bytes(b"no image")
    with pytest.raises(
        UserError, match=rf"3 of 60 images in damaged .* \({', '.join(names)}\): .*max_corrupt_fraction"
    ):
        measure.measure(configured(), str(encoder), damaged, output)
    with pytest.raises(UserError, match=r"than 0\.04"):
        measure.measure(configured(max_corrupt_fraction=0.04), str(encoder), damaged, output)
    assert [path.name for path in output.iterdir()] == ["features"]
    assert len(list((output / "features").iterdir())) == 1, "scratch directories are left"
    # The features of the first call are read, not computed.
    monkeypatch.setattr(Encoder, "features", None)
    result, _ = measure.measure(configured(max_corrupt_fraction=0.05), str(encoder), damaged, output)
    assert (result["data"]["images"], result["data"]["corrupt_images"]) == (60, 3)
    assert [sum(split["sizes"].values()) for split in result["splits"]] == [57, 57, 57]
    assert result["metrics"]["accuracy"]["mean"] == 1.0


def test_a_class_of_corrupt_images_is_refused(encoder, pictures, tmp_path):
    damaged = Path(shutil.copytree(pictures, tmp_path / "damaged"))
    for path in (damaged / "dark").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="The class dark of damaged has no image in train"):
        measure.measure(configured(max_corrupt_fraction=0.5), str(encoder), damaged, tmp_path / "results")


def test_features_that_are_not_finite_are_refused(encoder, pictures, tmp_path):
    loaded = Encoder.load(encoder)
    broken = {key: value * np.float32("nan") for key, value in loaded.weights.items()}
    directory = tmp_path / "broken" / "encoder"
    Encoder(loaded.architecture, broken, loaded.preprocessing, {}, "").save(directory)
    with pytest.raises(UserError, match="not all finite"):
        measure.measure(configured(), str(directory), pictures, tmp_path / "results")
    assert not [path for path in (tmp_path / "results").rglob("*") if path.name != "features"]


VALID = {
    "format_version": 2,
    "task": "folder",
    "protocol": "linear",
    "metrics": {"accuracy": {"mean": 0.5, "std": None, "values": [0.5]}},
    "primary": "accuracy",
    "selection": {},
    "sweep": [],
    "splits": [],
    "encoder": {"name": "a", "fingerprint": "0"},
    "data": {"name": "b", "fingerprint": "1"},
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "format version None"),
        ('{"format_version": 99}', "format version 99, not 2"),
        (
            json.dumps(
                {"format_version": 1, "task": "folder", "protocol": "linear", "metric": "accuracy", "value": 0.5}
            ),
            r"format version 1, not 2: measure again with `python scripts/evaluate.py --config "
            r"configs/eval.py:folder,linear` and delete it",
        ),
        ('{"format_version": 2, "task": "folder"}', "no valid 'protocol'"),
        (json.dumps(VALID | {"data": {"name": "b"}}), "no valid data fingerprint"),
        (json.dumps(VALID | {"primary": "auc"}), "no valid metric 'auc'"),
        (json.dumps(VALID).replace("null", "NaN"), "not valid JSON .*NaN"),
        (json.dumps(VALID).replace("null", '"x"'), "no valid metric"),
    ],
)
def test_results_that_are_refused(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=rf"bad\.json .*{message}"):
        results.read_all(tmp_path)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(tmp_path / "a.json", VALID | {"seconds": float("nan")})
    assert not list(tmp_path.iterdir())


def test_no_results(tmp_path):
    with pytest.raises(UserError, match="holds no results"):
        results.read_all(tmp_path / "nowhere")
