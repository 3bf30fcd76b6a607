"""The encoder artifact: what is saved is what is loaded, strictly; images in, features out."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vise_jax
from vise_jax import config as vise_config
from vise_jax import models, variables
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.preprocessing import Preprocessing

ARCHITECTURE = {"name": "resnet18", "width": 8, "zero_init_last_bn": False, "heads": {"comments": 4}}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


def _moved(weights):
    """Other running statistics than a fresh model's, so that a mix-up shows."""
    return {
        path: value + jnp.linspace(-0.5, 0.5, value.shape[0]) if path.endswith(("mean", "var")) else value
        for path, value in weights.items()
    }


@pytest.fixture(scope="module")
def encoder():
    weights = _moved(variables.of_model(models.build(**ARCHITECTURE)))
    return Encoder(ARCHITECTURE, weights, Preprocessing.imagenet(64), {"steps": 3}, "CC0")


@pytest.fixture
def directory(encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    return tmp_path / "encoder"


def _edit(directory, **changes):
    path = directory / "encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(encoder, directory):
    loaded = vise_jax.Encoder.load(directory)
    assert (loaded.features(IMAGES) == encoder.features(IMAGES)).all()
    for name in ("architecture", "preprocessing", "provenance", "license", "feature_dim", "fingerprint"):
        assert getattr(loaded, name) == getattr(encoder, name), name
    assert loaded.weights.keys() == encoder.weights.keys()
    assert all((loaded.weights[path] == encoder.weights[path]).all() for path in encoder.weights)
    assert json.loads((directory / "encoder.json").read_text())["feature_dim"] == 64
    card = (directory / "README.md").read_text()
    assert encoder.license in card
    assert json.loads((directory / "encoder.json").read_text())["sha256"] in card
    assert not [path for path in directory.rglob("*") if "pickle" in path.name or path.suffix == ".pkl"]
    assert [path.name for path in directory.parent.iterdir()] == ["encoder"]


def test_features_are_the_models_on_normalized_images(encoder):
    model = encoder.model()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalized = ((IMAGES / 255 - mean) / std).astype(np.float32)
    logits, intermediates = model(jnp.asarray(normalized), train=False)
    features, feature_map = encoder.features(IMAGES), encoder.feature_map(IMAGES)
    assert (features.shape, features.dtype, feature_map.shape) == ((2, 64), np.float32, (2, 2, 2, 64))
    np.testing.assert_allclose(features, intermediates["features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features, feature_map.mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert logits["comments"].shape == (2, 4)
    assert features.std() > 0.1
    np.testing.assert_allclose(encoder.features(IMAGES[:1]), features[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "architecture",
    [
        {"name": "resnet18", "width": 8},
        {"name": "tiny_next", "heads": {"comments": 3}},
        {"name": "clip_resnet50", "width": 16},
    ],
)
def test_features_are_computed_in_full_float32(architecture):
    """On accelerators, a product without a precision is TF32 or bfloat16."""
    architecture = models.resolve(**architecture)
    weights = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in variables.expected(architecture).items()
    }
    encoder = object.__new__(Encoder)
    for name, value in (("architecture", architecture), ("preprocessing", Preprocessing.imagenet(64))):
        object.__setattr__(encoder, name, value)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.uint8)
    lines = encoder._forward.lower(images, weights).as_text().splitlines()
    products = [line for line in lines if re.search(r"stablehlo\.(dot_general|convolution)\b", line)]
    assert len(products) >= 8
    assert not [line for line in products if len(re.findall(r"precision HIGHEST|[\[ ]HIGHEST", line)) < 2]


def test_an_encoder_of_text_is_refused(encoder, tmp_path):
    encoder.save(tmp_path / "text")
    path = tmp_path / "text" / "encoder.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "tokenizer": {}}))
    with pytest.raises(UserError, match="encoder of images, which has no 'tokenizer'"):
        Encoder.load(tmp_path / "text")
    del description["preprocessing"]
    path.write_text(json.dumps({**description, "modality": "text", "tokenizer": {}}))
    with pytest.raises(UserError, match="encoder of text, not of images"):
        Encoder.load(tmp_path / "text")
    path.write_text(json.dumps({**description, "modality": "sound"}))
    with pytest.raises(UserError, match="no valid 'modality'"):
        Encoder.load(tmp_path / "text")


def test_any_batch_is_split_over_all_devices_and_gives_the_same_features(encoder, monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (10, 64, 64, 3), np.uint8)
    one_by_one = np.concatenate([encoder.features(images[n : n + 1]) for n in range(10)])
    maps = np.concatenate([encoder.feature_map(images[n : n + 1]) for n in range(10)])
    shards, put = [], jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, to: (shards.append(to.shard_shape(x.shape)), put(x, to))[1])
    for batch_size, shard in {0: 3, 1: 1, 4: 1, 7: 2, 8: 2, 64: 16}.items():
        features = encoder.features(images, batch_size)
        assert {shape[0] for shape in shards} == {shard}
        shards.clear()
        np.testing.assert_allclose(features, one_by_one, atol=1e-5)
    np.testing.assert_allclose(encoder.feature_map(images, 4), maps, atol=1e-5)
    assert encoder.features(images[:0]).shape == (0, 64)


def test_the_last_smaller_batch_is_not_compiled_again(encoder):
    fresh = dataclasses.replace(encoder)
    fresh.features(np.zeros((18, 64, 64, 3), np.uint8), batch_size=8)
    fresh.features(np.zeros((3, 64, 64, 3), np.uint8), batch_size=8)
    assert fresh._forward._cache_size() == 1


def test_weights_are_as_many_as_the_architecture_has(encoder):
    weights = dict(encoder.weights)
    del weights["encoder/bn1/mean"]
    weights["encoder/bn1/median"] = weights["encoder/bn1/var"]
    weights["encoder/conv1/kernel"] = weights["encoder/conv1/kernel"][:3]
    weights["encoder/bn1/scale"] = weights["encoder/bn1/scale"].astype(jnp.bfloat16)
    with pytest.raises(UserError) as error:
        Encoder(ARCHITECTURE, weights, Preprocessing.imagenet(), {}, "CC0")
    for words in (
        "missing encoder/bn1/mean",
        "unexpected encoder/bn1/median",
        "encoder/conv1/kernel is float32 [3, 7, 3, 8] instead of float32 [7, 7, 3, 8]",
        "encoder/bn1/scale is bfloat16 [8] instead of float32 [8]",
    ):
        assert words in str(error.value)


def test_weights_of_another_architecture_are_refused(directory):
    _edit(directory, architecture=models.resolve(**{**ARCHITECTURE, "width": 16}))
    with pytest.raises(UserError, match=r"encoder/bn1/bias is float32 \[8\] instead of float32 \[16\]"):
        Encoder.load(directory)


def test_changed_weights_are_refused(encoder, directory, tmp_path):
    other = dict(encoder.weights) | {"encoder/bn1/bias": encoder.weights["encoder/bn1/bias"] + 1}
    Encoder(ARCHITECTURE, other, encoder.preprocessing, {}, "CC0").save(tmp_path / "other")
    (directory / "encoder.json").write_bytes((tmp_path / "other" / "encoder.json").read_bytes())
    with pytest.raises(UserError, match="are not those that"):
        Encoder.load(directory)


def test_a_damaged_file_is_reported(directory):
    largest = max(
        (path for path in (directory / "weights").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    content = largest.read_bytes()
    largest.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="can't be read"):
        Encoder.load(directory)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 3}, "format version 3"),
        ({"modality": "text"}, "not of images"),
        ({"architecture": models.resolve("resnet18") | {"name": "vgg"}}, "no encoder 'vgg'"),
        ({"architecture": {"width": 8}}, "no architecture"),
        ({"architecture": [1]}, "no valid 'architecture'"),
        ({"license": None}, "no valid 'license'"),
        ({"preprocessing": {**Preprocessing.imagenet().to_json(), "std": [0, 1, 1]}}, "no valid 'std'"),
        ({"preprocessing": {**Preprocessing.imagenet().to_json(), "color": "LAB"}}, "no valid 'color'"),
    ],
)
def test_a_wrong_description_is_reported(directory, changes, words):
    _edit(directory, **changes)
    with pytest.raises(UserError, match=words):
        Encoder.load(directory)


def test_no_encoder_there(tmp_path):
    with pytest.raises(UserError, match=r"no encoder\.json"):
        Encoder.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no encoder\.json"):
        Encoder.random(tmp_path, 0)
    with pytest.raises(UserError, match="neither an encoder's name"):
        Encoder.random("random:resnet51", 0)


def test_nothing_is_replaced_and_nothing_is_left_over(encoder, directory, monkeypatch):
    with pytest.raises(UserError, match="already exists"):
        encoder.save(directory)
    monkeypatch.setattr("vise_jax.artifact.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.save(directory.parent / "second")
    assert [path.name for path in directory.parent.iterdir()] == ["encoder"]


@pytest.mark.parametrize(
    "images", [IMAGES.astype(np.float32), IMAGES[0], IMAGES[..., :1], [[0]]], ids=["float", "one", "gray", "list"]
)
def test_wrong_images_are_reported(encoder, images):
    with pytest.raises(UserError, match=r"must be uint8 \[B, H, W, 3\]"):
        encoder.features(images)


def test_random_encoders(encoder, directory):
    named = Encoder.random("random:resnet18", 3)
    assert named.preprocessing.to_json() == {
        "color": "RGB",
        "scale": 255.0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resize": 256,
        "crop": 224,
        "interpolation": "bilinear",
    }
    assert named.architecture == models.resolve("resnet18", zero_init_last_bn=False)
    assert (named.weights["layer1/0/bn2/scale"] == 1).all()
    alike = Encoder.random(f"random:{directory}", 3)
    assert alike.architecture == {**encoder.architecture, "zero_init_last_bn": False}
    assert alike.preprocessing == encoder.preprocessing
    kernel = "encoder/conv1/kernel"
    assert (alike.weights[kernel] == Encoder.random(directory, 3).weights[kernel]).all()
    assert (alike.weights[kernel] != Encoder.random(directory, 4).weights[kernel]).any()
    assert (alike.weights[kernel] != encoder.weights[kernel]).any()
    assert alike.fingerprint != encoder.fingerprint


def test_a_changed_default_changes_neither_features_nor_fingerprint(directory, monkeypatch):
    before = Encoder.load(directory)
    features = before.features(IMAGES)
    for key, value in {"bn_epsilon": 0.1, "stem": "cifar", "width": 8}.items():
        monkeypatch.setitem(models._SETTINGS, key, (value, *models._SETTINGS[key][1:]))
    after = Encoder.load(directory)
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.features(IMAGES), features)
    assert models.is_resolved(json.loads((directory / "encoder.json").read_text())["architecture"])


def test_an_encoder_of_version_1_is_read(directory):
    before = Encoder.load(directory)
    description = json.loads((directory / "encoder.json").read_text())
    left_out = {"bn_momentum", "bn_epsilon", "stem"}
    description["architecture"] = {
        key: value for key, value in description["architecture"].items() if key not in left_out
    }
    description |= {"format_version": 1, "licence": description.pop("license")}
    del description["modality"]
    (directory / "encoder.json").write_text(json.dumps(description))
    after = Encoder.load(directory)
    assert (after.fingerprint, after.license) == (before.fingerprint, before.license)


def test_the_config_has_the_defaults_of_the_models():
    section = vise_config.base().model
    assert {key: section[key] for key in models._SETTINGS} == {key: row[0] for key, row in models._SETTINGS.items()}


def test_the_public_api_is_what_the_package_exports(directory):
    assert vise_jax.load_encoder(directory).fingerprint == vise_jax.Encoder.load(directory).fingerprint
    for name in vise_jax.__all__:
        assert getattr(vise_jax, name) is not None
    assert vise_jax.Labeler is vise_jax.engagement.Labeler


def test_encoders_can_be_compared_and_hashed(directory):
    one, other = Encoder.load(directory), Encoder.load(directory)
    assert one == one
    assert one != other
    assert len({one, other}) == 2
