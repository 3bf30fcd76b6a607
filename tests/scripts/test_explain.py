"""scripts/explain.py: heads of a linear result, of a fine-tuned one and of pre-training, side by side."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vise_jax import config as vise_config
from vise_jax import models
from vise_jax.data.datasets import open_labeled
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.evaluation import explained, measure
from vise_jax.preprocessing import Preprocessing
from vise_jax.reporting import explanations

ROOT = Path(__file__).parents[2]
ARCHITECTURE = {"name": "resnet18", "width": 4, "stem": "cifar", "heads": {"comments": 3}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An encoder, images of two classes, one of them corrupt, and results of two protocols."""
    root, random = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    Encoder.from_model(
        models.build(**ARCHITECTURE),
        architecture=ARCHITECTURE,
        preprocessing=Preprocessing.imagenet(16),
        provenance={},
        license="CC0",
    ).save(root / "run" / "encoder")
    for name, level in {"bright": 200, "dark": 60}.items():
        (root / "images" / name).mkdir(parents=True)
        for number in range(20):
            noise = random.normal(level, 20, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(root / "images" / name / f"{number:02d}.png")
    (root / "images" / "bright" / "03.png").write_bytes(b"no image")
    for protocol in ("linear", "finetune"):
        config = vise_config.evaluation()
        config.update({"protocol": protocol, "splits": 1, "max_corrupt_fraction": 0.1})
        config.finetune.update({"learning_rates": (0.3,), "weight_decays": (1e-4,), "batch_size": 8, "epochs": 2.0})
        config.finetune.keep_weights = True
        measure.measure(config, str(root / "run" / "encoder"), root / "images", root / "results")
    return root


def result(made: Path, protocol: str) -> Path:
    (path,) = (made / "results").glob(f"folder-{protocol}-*.json")
    return path


@pytest.mark.slow
def test_the_command(made, tmp_path):
    words = ["--encoder", made / "run" / "encoder", "--head", result(made, "linear"), "--images", made / "images"]
    command = [sys.executable, ROOT / "scripts" / "explain.py", *words, "--most", "5", "--output", tmp_path / "maps"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 of 40 images explained, 1 can't be decoded" in done.stdout
    assert (tmp_path / "maps" / "index.html").is_file()


@pytest.mark.slow
def test_an_encoder_that_fine_tuning_left_has_the_crop_of_its_training(made, tmp_path):
    config = vise_config.evaluation()
    config.update({"protocol": "finetune", "splits": 1, "max_corrupt_fraction": 0.1, "image_size": 20})
    config.finetune.update({"learning_rates": (0.3,), "weight_decays": (1e-4,), "batch_size": 8, "epochs": 1.0})
    config.finetune.keep_weights = True
    _, path = measure.measure(config, str(made / "run" / "encoder"), made / "images", tmp_path)
    assert Encoder.load(path.with_suffix(".finetuned-0")).preprocessing == Preprocessing.imagenet(16).at(20)


@pytest.mark.slow
def test_a_page_of_three_columns(made, tmp_path, capsys):
    tuned, encoder = result(made, "finetune"), str(made / "run" / "encoder")
    pairs = [(encoder, result(made, "linear")), (str(tuned.with_suffix(".finetuned-0")), tuned), (encoder, "clusters")]
    columns = [explanations.Explained(*explained.open_column(source, str(head), "", 0, 0)) for source, head in pairs]
    images = open_labeled(made / "images")
    limits = {"threads": 1, "max_image_pixels": 10_000}
    path, count, rejected = explanations.write(columns, images, tmp_path / "maps", most=5, **limits)
    assert (count, rejected) == (4, 1)
    assert "left out: The image bright/03.png" in capsys.readouterr().err
    page = path.read_text()
    assert page.count("true class: <bdi>bright</bdi>") == 4
    assert "cluster " in page
    assert page.count("✓") >= 6
    picture = Image.open(tmp_path / "maps" / "00000.png")
    assert picture.size == (4 * 224 + 3 * 8, 224)
    assert str(made) not in page


@pytest.mark.slow
def test_the_linear_head_gives_the_results_probabilities(made):
    column = explained.open_column(str(made / "run" / "encoder"), str(result(made, "linear")), "", 0, 0)
    features = np.random.default_rng(0).normal(size=(3, column.encoder.feature_dim)).astype(np.float32)
    from vise_jax.evaluation import heads

    (path,) = (made / "results").glob("folder-linear-*.head-0.safetensors")
    expected = heads.logits(heads.read(path), features)
    np.testing.assert_allclose(features @ column.head.kernel + column.head.bias, expected, rtol=1e-3, atol=1e-3)
    assert column.classes == ["bright", "dark"]


@pytest.mark.slow
def test_images_of_which_none_can_be_decoded(made, tmp_path):
    images = open_labeled(made / "images").subset(np.array([3]))
    column = explanations.Explained(*explained.open_column(str(made / "run" / "encoder"), "clusters", "", 0, 0))
    with pytest.raises(UserError, match="None of the 1 images of images can be decoded"):
        explanations.write([column], images, tmp_path / "maps", most=5, threads=1, max_image_pixels=10_000)


def test_clusters_have_the_labelers_terms_and_suppressed_ones_are_not_predicted(trained, labeler, tmp_path):
    trained.save(tmp_path / "run" / "encoder")
    labeler.save(tmp_path / "labeler")
    column = explained.open_column(str(tmp_path / "run" / "encoder"), "clusters", str(tmp_path / "labeler"), 0, 0)
    assert column.classes[0].startswith("0: dog 🐶")
    assert column.head.bias[2] == -np.inf
    assert np.isfinite(np.delete(column.head.bias, 2)).all()


@pytest.mark.slow
def test_heads_that_do_not_fit(made, tmp_path):
    encoder, linear = str(made / "run" / "encoder"), str(result(made, "linear"))
    with pytest.raises(UserError, match="is of another encoder than"):
        explained.open_column(f"random:{encoder}", linear, "", 0, 0)
    with pytest.raises(UserError, match="has 1 splits: --split must be smaller"):
        explained.open_column(encoder, linear, "", 1, 0)
    with pytest.raises(UserError, match=r"is not the encoder that .* left: measure with"):
        explained.open_column(encoder, str(result(made, "finetune")), "", 0, 0)
    with pytest.raises(UserError, match=r"is no result of evaluate\.py"):
        explained.open_column(encoder, str(tmp_path / "nothing.json"), "", 0, 0)
    tuned = str(result(made, "finetune").with_suffix(".finetuned-0"))
    with pytest.raises(UserError, match="has no comment head"):
        explained.open_column(tuned, "clusters", "", 0, 0)


def test_an_overlay_is_largest_at_the_center_of_its_location():
    gray = np.full((64, 64, 3), 128, np.uint8)
    activation = np.zeros((4, 4), np.float32)
    activation[1, 2] = 1.0
    for offset, place in ((0.0, (16, 32)), (0.5, (24, 40))):
        painted = explanations.overlay(gray, activation, (np.arange(4) + offset) * 16).astype(int)
        changed = np.abs(painted - 128).sum(axis=2)
        assert np.unravel_index(changed.argmax(), changed.shape) == place
        assert changed[60, 4] == 0
    flat = explanations.overlay(gray, np.ones((4, 4), np.float32), np.arange(4) * 16.0)
    np.testing.assert_array_equal(flat, gray)
