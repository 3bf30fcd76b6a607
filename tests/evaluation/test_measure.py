"""The linear protocol as a whole, on an encoder small enough for a test, and its results file."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from vise_jax import config as vise_config
from vise_jax import models
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.evaluation import measure, results
from vise_jax.preprocessing import Preprocessing

ARCHITECTURE = {"name": "resnet18", "width": 8, "stem": "cifar"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "encoder"
    Encoder.from_model(
        models.build(**ARCHITECTURE),
        architecture=ARCHITECTURE,
        preprocessing=Preprocessing.imagenet(16),
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
    config.linear.l2 = (1e-3, 1e-1)
    config.update({"splits": 3, "batch_size": 16, **changes})
    return config


def test_a_measurement(encoder, pictures, tmp_path):
    before = {file: file.read_bytes() for file in encoder.rglob("*") if file.is_file()}
    result, path = measure.measure(configured(), str(encoder), pictures, tmp_path)
    # No byte of the encoder changed.
    assert {file: file.read_bytes() for file in encoder.rglob("*") if file.is_file()} == before
    assert result["primary"] == "accuracy"
    assert result["metrics"]["accuracy"] == {
        "mean": 1.0,
        "std": 0.0,
        "values": [1.0, 1.0, 1.0],
        "interval": [1.0, 1.0],
    }
    assert {"roc_auc", "average_precision", "calibration_error"} < result["metrics"].keys()
    assert result["metrics"]["majority_accuracy"]["mean"] == pytest.approx(2 / 3)
    assert result["selection"] == {
        "split": "validation",
        "metric": "accuracy",
        "grid": {"l2": [1e-1, 1e-3]},
        "selected": [{"l2": 0.1}] * 3,
    }
    assert path.name.startswith(f"folder-linear-{encoder.parent.name}-pictures-")
    assert json.loads(path.read_text()) == result
    assert [split["seed"] for split in result["splits"]] == [0, 1, 2]
    assert result["splits"][0]["sizes"] == {"train": 42, "validation": 6, "test": 12}
    assert result["encoder"]["license"] == "CC-BY-NC 4.0"
    assert result["data"]["classes"] == ["bright", "dark"]
    assert result["versions"]["jax"] == jax.__version__
    assert str(tmp_path) not in path.read_text()
    assert str(pictures.parent) not in path.read_text()


def test_any_batch_size_gives_the_same_metrics(encoder, tmp_path):
    """Each of 103 examples counts once; the last batch is padded."""
    random, rows = np.random.default_rng(0), ["image,label,split"]
    for number in range(103):
        pixels = random.normal(100 + 40 * (number % 3), 60, (16, 16, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'abc'[number % 3]},{'train' if number < 60 else 'test'}")
    (tmp_path / "data.csv").write_text("\n".join(rows))
    results_of = [
        measure.measure(configured(batch_size=size), str(encoder), tmp_path / "data.csv", tmp_path / f"results{size}")[
            0
        ]
        for size in (1, 7, 64, 1000)
    ]
    assert sum(map(sum, results_of[0]["splits"][0]["confusion"])) == 43
    for result in results_of[1:]:
        assert result["splits"][0]["confusion"] == results_of[0]["splits"][0]["confusion"]
        for name, summary in result["metrics"].items():
            assert summary["mean"] == pytest.approx(results_of[0]["metrics"][name]["mean"], abs=1e-5), name


def test_mean_and_deviation_are_those_of_the_splits(encoder, pictures, tmp_path):
    # Random labels: the splits differ.
    rows = [f"{path.relative_to(pictures)},{'ab'[n % 2]}" for n, path in enumerate(sorted(pictures.rglob("*.png")))]
    (pictures / "chance.csv").write_text("\n".join(["image,label", *rows]))
    result, _ = measure.measure(configured(splits=4), str(encoder), pictures / "chance.csv", tmp_path)
    accuracy = result["metrics"]["accuracy"]
    tests = [split["metrics"]["accuracy"] for split in result["splits"]]
    assert len(set(tests)) > 1
    assert accuracy["values"] == tests
    assert accuracy["mean"] == pytest.approx(np.mean(tests))
    assert accuracy["std"] == pytest.approx(np.std(tests, ddof=1))
    assert result["data"]["name"] == "pictures/chance"


def test_an_equal_measurement_is_read_and_another_setting_is_another_file(encoder, pictures, tmp_path, caplog):
    caplog.set_level("INFO")
    _, path = measure.measure(configured(splits=1), str(encoder), pictures, tmp_path)
    written = path.stat().st_mtime_ns
    _, again = measure.measure(configured(splits=1, batch_size=8, threads=1), str(encoder), pictures, tmp_path)
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


def test_corrupt_images_are_named_at_once_and_may_be_left_out(encoder, pictures, tmp_path, caplog):
    data = tmp_path / "pictures"
    shutil.copytree(pictures, data)
    for number in range(13):
        (data / "bright" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    results_directory = tmp_path / "results"
    with pytest.raises(UserError, match=r"^13 of 60 images in pictures can't be .*\(bright/0\.png, ") as error:
        measure.measure(configured(splits=1), str(encoder), data, results_directory)
    # Ten are named; the others are counted.
    assert str(error.value).count(".png") == 10
    assert "larger --config.max_corrupt_fraction than 0 (" in str(error.value)
    # The features of the others are kept, and nothing else.
    kept = {path.name: path.stat().st_mtime_ns for path in (results_directory / "features").iterdir()}
    assert len(kept) == 1
    config = configured(splits=1, max_corrupt_fraction=0.25)
    result, path = measure.measure(config, str(encoder), data, results_directory)
    assert {path.name: path.stat().st_mtime_ns for path in (results_directory / "features").iterdir()} == kept
    assert result["data"]["images"] == 47
    assert result["data"]["left_out"]["images"] == 13
    assert result["data"]["left_out"]["names"][0] == "bright/0.png"
    assert sum(result["splits"][0]["sizes"].values()) == 47
    assert str(tmp_path) not in path.read_text()
    # A stricter limit refuses the result, too.
    with pytest.raises(UserError, match=r"13 of 60 images .* than 0\.1 "):
        measure.measure(configured(splits=1, max_corrupt_fraction=0.1), str(encoder), data, results_directory)


def test_bounds_of_images_and_archives_are_keys(encoder, pictures, tmp_path):
    sizes = sorted(path.stat().st_size for path in pictures.rglob("*.png"))
    with pytest.raises(
        UserError, match=rf"/[0-9]+.png has .* bytes, more than {sizes[-1] - 1:,}: make it smaller.*max_image_bytes"
    ):
        measure.measure(configured(max_image_bytes=sizes[-1] - 1), str(encoder), pictures, tmp_path / "results")
    archive = Path(shutil.make_archive(str(tmp_path / "pictures"), "zip", pictures))
    with zipfile.ZipFile(archive) as file:
        count = len(file.namelist())
    with pytest.raises(
        UserError, match=rf"{count} entries, more than {count - 1}: raise the config key max_archive_entr"
    ):
        measure.measure(configured(max_archive_entries=count - 1), str(encoder), archive, tmp_path / "results")
    at_the_bounds = configured(splits=1, max_image_bytes=sizes[-1], max_archive_entries=count)
    result, path = measure.measure(at_the_bounds, str(encoder), archive, tmp_path / "results")
    assert result["data"]["left_out"]["images"] == 0
    # A lower bound of images may leave some out, one of archives may not.
    config = configured(splits=1, max_image_bytes=sizes[-1], max_archive_entries=count + 1)
    assert measure.measure(config, str(encoder), archive, tmp_path / "results")[1] == path
    config.max_image_bytes += 1
    assert measure.measure(config, str(encoder), archive, tmp_path / "results")[1] != path


def test_a_class_of_corrupt_images_is_refused(encoder, pictures, tmp_path):
    data = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    for split in ("train", "test"):
        for name in ("bright", "dark"):
            (data / split / name).mkdir(parents=True)
            for number in range(15):
                source = data / name / f"{number + 3 * (split == 'test')}.png"
                shutil.copy(source, data / split / name / f"{number}.png")
    for name in ("bright", "dark"):
        shutil.rmtree(data / name)
    for path in (data / "test" / "dark").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="The class dark of pictures has no image in test"):
        measure.measure(configured(max_corrupt_fraction=0.5), str(encoder), data, tmp_path / "results")


def test_a_dataset_that_cannot_be_divided_is_refused_before_features_are_computed(encoder, pictures, tmp_path):
    rows = [f"{path.relative_to(pictures)},a" for path in sorted(pictures.rglob("*.png"))]
    (pictures / "single.csv").write_text("\n".join(["image,label", *rows[:-1], rows[-1].replace(",a", ",b")]))
    with pytest.raises(UserError, match="The class b of pictures/single has 1 image"):
        measure.measure(configured(), str(encoder), pictures / "single.csv", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_validation_examples_of_one_class_select_no_ranking(encoder, pictures, tmp_path, monkeypatch):
    # A tenth of four is none.
    chosen = {"bright": 30, "dark": 4}
    rows = [
        f"{path.relative_to(pictures)},{name},{'train' if number < train else 'test'}"
        for name, train in chosen.items()
        for number, path in enumerate(sorted((pictures / name).iterdir()))
    ]
    (pictures / "ranked.csv").write_text("\n".join(["image,label,split", *rows]))
    monkeypatch.setitem(measure.TASKS, "folder", dataclasses.replace(measure.TASKS["folder"], primary="roc_auc"))
    with pytest.raises(UserError, match="are all of one class, so that roc_auc can't select"):
        measure.measure(configured(), str(encoder), pictures / "ranked.csv", tmp_path / "results")


def test_links_into_named_roots_are_read(encoder, pictures, tmp_path):
    data = tmp_path / "linked"
    data.mkdir()
    for name in ("bright", "dark"):
        (data / name).symlink_to(pictures / name)
    with pytest.raises(UserError, match=r"link to a directory: .*link_roots"):
        measure.measure(configured(splits=1), str(encoder), data, tmp_path / "results")
    config = configured(splits=1, link_roots=(str(pictures),))
    result, path = measure.measure(config, str(encoder), data, tmp_path / "results")
    assert result["data"]["images"] == 60
    assert "link_roots" not in result["config"]
    assert str(pictures) not in path.read_text()


def test_what_does_not_exist_is_refused(encoder, pictures, tmp_path):
    with pytest.raises(UserError, match=r"no task 'birds' to evaluate: choose from .*, cub, folder\."):
        measure.measure(configured(task="birds"), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match=r"no protocol 'zero' to evaluate: choose from linear, "):
        measure.measure(configured(protocol="zero"), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match=r"no setting 'sound' to evaluate: choose from image, "):
        measure.measure(configured(setting="sound"), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match=r"image_frozen_text is of the protocol finetune"):
        measure.measure(configured(setting="image_frozen_text"), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match="leave_out_leaks needs shards to compare with"):
        measure.measure(configured(leave_out_leaks=True), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match="splits is 0"):
        measure.measure(configured(splits=0), str(encoder), pictures, tmp_path)
    with pytest.raises(UserError, match=r"has no encoder\.json"):
        measure.measure(configured(), str(pictures), pictures, tmp_path)
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_finite_are_refused(encoder, pictures, tmp_path):
    found = Encoder.load(encoder)
    broken = {key: value * np.float32("nan") for key, value in found.weights.items()}
    directory = tmp_path / "broken" / "encoder"
    Encoder(found.architecture, broken, found.preprocessing, {}, "").save(directory)
    with pytest.raises(UserError, match="not all finite"):
        measure.measure(configured(), str(directory), pictures, tmp_path / "results")
    assert not [path for path in (tmp_path / "results").rglob("*") if path.name != "features"]


def test_nan_is_never_written(tmp_path, make_result):
    results.write(tmp_path / "a.json", make_result())
    assert results.read(tmp_path / "a.json")["metrics"] == make_result()["metrics"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(tmp_path / "b.json", make_result(seconds=float("nan")))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "format version None"),
        ('{"format_version": 99}', "format version 99"),
        ('{"format_version": 2}', "format version 2, .*evaluate.py"),
        ('{"format_version": 3, "task": "folder"}', r"no valid 'protocol' \(Field required\)"),
    ],
)
def test_results_that_are_refused(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=rf"bad\.json .*{message}"):
        results.read_all(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"fingerprint": "dddd', '"print": "dddd', r"no valid 'data.fingerprint'"),
        ('"primary": "accuracy"', '"primary": "auc"', "no metric 'auc'"),
        ('"mean": 0.5', '"mean": NaN', r"no valid 'metrics.accuracy.mean' \(Input should be a finite number\)"),
        ('"std": null', '"std": Infinity', "no valid 'metrics.accuracy.std'"),
        ('"validation": 0.25', '"validation": "x"', r"no valid 'splits.0.sweep.0.validation'"),
        ('"l2": 0.01}', '"other": 0.01}', "other 'settings' in some rows"),
    ],
)
def test_results_that_are_damaged(tmp_path, make_result, old, new, message):
    text = json.dumps({"format_version": 3, **make_result()})
    assert old in text
    (tmp_path / "bad.json").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"bad\.json .*{message}"):
        results.read_all(tmp_path)


def test_no_results(tmp_path):
    with pytest.raises(UserError, match="holds no results"):
        results.read_all(tmp_path / "nowhere")
