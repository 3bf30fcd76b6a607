"""The way back to PyTorch, which loads the files strictly."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from vise_jax import interop, models, variables
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.preprocessing import Preprocessing

torch = pytest.importorskip("torch")
import safetensors.torch  # noqa: E402
import torch_peers  # noqa: E402
import torch_resnet  # noqa: E402

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2)


def _encoder(name: str, **settings) -> Encoder:
    """An encoder with batch statistics of its own, as a run exports it or without heads."""
    architecture = {"name": name, "width": 4, "zero_init_last_bn": False, **settings}
    generator = np.random.default_rng(1)
    weights = {
        path: jnp.asarray(generator.uniform(0.5, 1, value.shape), jnp.float32)
        if path.endswith(("var", "scale", "mean"))
        else value
        for path, value in variables.of_model(models.build(**architecture)).items()
    }
    return Encoder(architecture, weights, Preprocessing.imagenet(64), {"trained": {"steps": 3}}, "CC0-1.0")


def _features(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch_peers.normalized(IMAGES, "torchvision")).mean((2, 3)).numpy()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_round_trip(name, tmp_path):
    checkpoint = torch_peers.write("torchvision", tmp_path, 8, name)
    encoder = interop.convert(checkpoint.path, "torchvision", name, width=8)
    interop.export(encoder, "torchvision", tmp_path / "file.safetensors")
    model = torch_resnet.ResNet(name, 8)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "file.safetensors"), strict=True)
    expected = _features(model)
    assert expected.std(0).mean() > 0.05
    assert np.abs(encoder.features(IMAGES) - expected).max() < 1e-4
    again = interop.convert(tmp_path / "file.safetensors", "torchvision", name, width=8)
    assert again.weights.keys() == encoder.weights.keys()
    assert all((again.weights[path] == encoder.weights[path]).all() for path in encoder.weights)


def test_the_authors_layout(tmp_path):
    encoder = _encoder("resnet50", width=8)
    interop.export(encoder, "vise", tmp_path / "file.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "file.safetensors")
    torch_peers.sequential(model := torch_resnet.ResNet("resnet50", 8)).load_state_dict(tensors, strict=True)
    assert np.abs(encoder.features(IMAGES) - _features(model)).max() < 1e-4
    again = interop.convert(tmp_path / "file.safetensors", "vise", width=8)
    assert all((again.weights[path] == encoder.weights[path]).all() for path in encoder.weights)


@pytest.mark.parametrize("layout", ["torchvision", "vise"])
def test_our_own_files_say_what_they_are(layout, tmp_path):
    encoder = _encoder("resnet18")
    interop.export(encoder, layout, tmp_path / "file.safetensors")
    again = interop.convert(tmp_path / "file.safetensors", "vise_jax")
    assert again.fingerprint == encoder.fingerprint
    assert again.license == "CC0-1.0"
    assert again.provenance["converted"]["of"] == {"trained": {"steps": 3}}
    given = (tmp_path / "encoder", tmp_path / "file.safetensors", "vise_jax")
    assert [interop.convert_to(*given)[1] for _ in range(2)] == [False, True]
    with pytest.raises(UserError, match="holds another encoder"):
        interop.convert_to(*given, "resnet50")
    with pytest.raises(UserError, match="holds a resnet18, not a resnet50"):
        interop.convert(*given[1:], "resnet50")
    foreign = torch_peers.write("clip-timm", tmp_path, 4).path
    with pytest.raises(UserError, match=r"is no \.safetensors file that convert\.py exported"):
        interop.convert(foreign, "vise_jax")


def test_heads_are_left_out_or_one_becomes_fc(tmp_path):
    encoder = _encoder("resnet18", heads={"comments": 5, "reactions": 3})
    interop.export(encoder, "torchvision", tmp_path / "bare.safetensors")
    model = torch_resnet.ResNet("resnet18", 4)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "bare.safetensors"), strict=True)
    assert np.abs(encoder.features(IMAGES) - _features(model)).max() < 1e-4

    interop.export(encoder, "torchvision", tmp_path / "file.safetensors", head="comments")
    tensors = safetensors.torch.load_file(tmp_path / "file.safetensors")
    model.fc = torch.nn.Linear(32, 5)
    model.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        found = model.fc(torch.tensor(encoder.features(IMAGES))).numpy()
    kernel, bias = (np.asarray(encoder.weights[f"heads/comments/{kind}"]) for kind in ("kernel", "bias"))
    np.testing.assert_allclose(found, encoder.features(IMAGES) @ kernel + bias, atol=1e-5)
    with pytest.raises(UserError, match=r"no head 'topics' .* \['comments', 'reactions'\]"):
        interop.export(encoder, "torchvision", tmp_path / "other.safetensors", head="topics")
    with pytest.raises(UserError, match="no head 'comments' to export to vise"):
        interop.export(encoder, "vise", tmp_path / "other.safetensors", head="comments")


def test_timms_directory(tmp_path):
    """As timm reads it: config.json, and weights that fit the architecture strictly. timm itself is not called."""
    encoder = _encoder("resnet18", width=64, heads={"comments": 5, "reactions": 3})
    interop.export(encoder, "timm", tmp_path / "bare")
    about = json.loads((tmp_path / "bare" / "config.json").read_text())
    assert (about["architecture"], about["num_classes"], about["num_features"]) == ("resnet18", 0, 512)
    images = about["pretrained_cfg"]
    assert images["crop_pct"] == 64 / 73
    assert (images["mean"], images["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (images["interpolation"], images["num_classes"], images["input_size"]) == ("bilinear", 0, [3, 64, 64])
    model = torch_resnet.ResNet("resnet18", 64)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "bare" / "model.safetensors"), strict=True)
    assert np.abs(encoder.features(IMAGES) - _features(model)).max() < 1e-4
    card = (tmp_path / "bare" / "README.md").read_text()
    assert "library_name: timm" in card
    assert "License of the weights: CC0-1.0." in card

    interop.export(encoder, "timm", tmp_path / "head", head="reactions")
    assert json.loads((tmp_path / "head" / "config.json").read_text())["num_classes"] == 3
    tensors = safetensors.torch.load_file(tmp_path / "head" / "model.safetensors")
    assert tensors["fc.weight"].shape == (3, 512)

    interop.export(encoder, "timm", tmp_path / "head", head="reactions")
    with pytest.raises(UserError, match="already exists and holds something else"):
        interop.export(encoder, "timm", tmp_path / "head")
    again = interop.convert(tmp_path / "bare" / "model.safetensors", "vise_jax")
    assert again.fingerprint == _encoder("resnet18", width=64).fingerprint


def test_what_timm_does_not_have(tmp_path):
    with pytest.raises(UserError, match="have width 64, this encoder has 4"):
        interop.export(_encoder("resnet18"), "timm", tmp_path / "new")
    wide = _encoder("resnet18", width=64)
    bgr = dataclasses.replace(wide.preprocessing, color="BGR", scale=1.0)
    with pytest.raises(UserError, match="RGB divided by 255, this encoder's BGR by 1"):
        interop.export(dataclasses.replace(wide, preprocessing=bgr), "timm", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_the_same_bytes_again_and_nothing_is_replaced(tmp_path):
    encoder, path = _encoder("resnet18"), tmp_path / "new" / "file.safetensors"
    interop.export(encoder, "torchvision", path)
    first = path.read_bytes()
    interop.export(encoder, "torchvision", path)
    with pytest.raises(UserError, match="already exists and holds something else"):
        interop.export(_encoder("resnet18", width=8), "torchvision", path)
    assert path.read_bytes() == first
    with safetensors.safe_open(path, "np") as file:
        about = json.loads(file.metadata()["vise_jax"])
        counters = [key for key in file.keys() if key.endswith("num_batches_tracked")]  # noqa: SIM118
    assert (about["license"], about["preprocessing"]["crop"]) == ("CC0-1.0", 64)
    assert len(counters) == 20


@pytest.mark.parametrize(
    ("settings", "layout", "words"),
    [
        ({"name": "clip_resnet50"}, "torchvision", "torchvision and timm have no clip_resnet50"),
        ({"name": "detectron2_resnet50"}, "vise", "torchvision and timm have no detectron2_resnet50"),
        ({"name": "resnet18", "stem": "cifar"}, "torchvision", "have stem 'imagenet', this encoder has 'cifar'"),
        ({"name": "resnet18", "bn_epsilon": 1e-3}, "torchvision", "have bn_epsilon 1e-05, this encoder has 0.001"),
        ({"name": "resnet18"}, "onnx", "no layout 'onnx'"),
    ],
)
def test_what_torchvision_does_not_have(settings, layout, words, tmp_path):
    with pytest.raises(UserError, match=words):
        interop.export(_encoder(**settings), layout, tmp_path / "file.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_suffix_says_what_is_written(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        interop.export(_encoder("resnet18"), "torchvision", tmp_path / "file.pth")
