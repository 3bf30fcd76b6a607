"""Every source's files against the torch encoder that wrote them, from the tensor on and from the image file on."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vise_jax import interop
from vise_jax.data import datasets
from vise_jax.data import images as data_images
from vise_jax.encoder import Encoder

torch = pytest.importorskip("torch")
import torch_peers  # noqa: E402

# Sources that differ in what is computed → --arch and width; `SAME` lists the others.
CASES = {
    "torchvision": ("resnet50", 8),
    "wsl": ("resnext101_32x16d", 4),
    "clip": ("resnet50", 8),
    "vqagrid": ("resnet50", 8),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(source, marks=pytest.mark.slow) if source == "wsl" else source for source in CASES],
)
def case(request, tmp_path_factory) -> tuple[str, torch_peers.Checkpoint, Encoder]:
    source = request.param
    arch, width = CASES[source]
    checkpoint = torch_peers.write(source, tmp_path_factory.mktemp(source), width, arch)
    return source, checkpoint, interop.convert(checkpoint.path, source, arch, width=width)


def _largest_errors(source: str, checkpoint: torch_peers.Checkpoint, encoder: Encoder, images: np.ndarray) -> list:
    with torch.no_grad():
        expected, feature_map = (one.numpy() for one in checkpoint.run(torch_peers.normalized(images, source)))
    assert expected.std(0).mean() > 0.05  # images differ
    return [
        np.abs(encoder.features(images) - expected).max(),
        np.abs(encoder.feature_map(images) - feature_map.transpose(0, 2, 3, 1)).max(),
    ]


def _images(batch: int, side: int) -> np.ndarray:
    """Colored squares: the means of white noise would all be the same."""
    squares = np.random.default_rng(0).integers(0, 256, (batch, 7, 7, 3), np.uint8)
    return squares.repeat(side // 7 + 1, 1).repeat(side // 7 + 1, 2)[:, :side, :side]


def test_from_the_tensor_on(case):
    assert max(_largest_errors(*case, _images(16, 224))) < 1e-4


def _with_pillow(path: Path, source: str) -> np.ndarray:
    """torchvision's Resize and CenterCrop on a Pillow image: uint8 [224, 224, 3]."""
    image = Image.open(path).convert("RGB")
    shorter, method = (224, Image.Resampling.BICUBIC) if source == "clip" else (256, Image.Resampling.BILINEAR)
    width, height = image.size
    size = [int(shorter * side / min(width, height)) for side in (width, height)]
    image = image.resize(size, method)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def _write_photo(path: Path, seed: int) -> None:
    """A picture of a photo's size: smooth colors, edges and noise."""
    generator = np.random.default_rng(seed)
    width, height = generator.integers(300, 700, 2)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / generator.uniform(5, 90) + y / generator.uniform(5, 90)) for _ in range(3)]
    pixels = 120 + 90 * np.stack(waves, -1) + generator.normal(0, 12, (height, width, 3))
    pixels[: height // 3, : width // 2] = generator.integers(0, 256, 3)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("photos")
    for number in range(16):
        _write_photo(directory / f"{number:02}.{'png' if number % 4 == 0 else 'jpg'}", number)
    return directory


def test_from_the_file_on(case, photos):
    source, checkpoint, encoder = case
    images = datasets.open_unlabeled(photos)
    batches = data_images.batches(images, range(16), encoder.preprocessing, 16, 2, 1_000_000)
    found = np.concatenate([encoder.features(batch) for batch in batches])
    pixels = np.stack([_with_pillow(photos / name, source) for name in images.names])
    with torch.no_grad():
        expected = checkpoint.run(torch_peers.normalized(pixels, source))[0].numpy()
    assert np.abs(found - expected).max() < 1e-3


# A kind of file → its source, and the kind that holds the same weights of the same encoder.
SAME = {
    "torchvision-old": ("torchvision", "torchvision"),
    "moco": ("moco", "torchvision"),
    "moco-bare": ("moco", "torchvision"),
    "virtex": ("virtex", "torchvision"),
    "virtex-full": ("virtex", "torchvision"),
    "icmlm": ("icmlm", "torchvision"),
    "vise": ("vise", "torchvision"),
    "clip-state": ("clip", "clip"),
    "clip-timm": ("clip", "clip"),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Encoder]:
    directory = tmp_path_factory.mktemp("originals")
    return {
        source: interop.convert(torch_peers.write(source, directory, 4).path, source, width=4)
        for source in ("torchvision", "clip")
    }


@pytest.mark.parametrize("kind", SAME)
def test_the_same_weights_in_another_layout_are_the_same_encoder(kind, originals, tmp_path):
    source, original = SAME[kind]
    encoder, other = interop.convert(torch_peers.write(kind, tmp_path, 4).path, source, width=4), originals[original]
    assert encoder.weights.keys() == other.weights.keys()
    assert all((encoder.weights[key] == other.weights[key]).all() for key in other.weights)
    assert (encoder.architecture, encoder.preprocessing) == (other.architecture, other.preprocessing)
    assert encoder.fingerprint == other.fingerprint


def test_basic_blocks(tmp_path):
    checkpoint = torch_peers.write("torchvision", tmp_path, 8, "resnet18")
    encoder = interop.convert(checkpoint.path, "torchvision", "resnet18", width=8)
    assert max(_largest_errors("torchvision", checkpoint, encoder, _images(4, 64))) < 1e-4


def test_an_npz_file_and_weights_by_another_prefix(tmp_path):
    checkpoint = torch_peers.write("icmlm", tmp_path, 4)
    tensors = torch.load(checkpoint.path)["state_dict"]
    renamed = {f"module.encoder.{name.removeprefix('cnn.')}": value.numpy() for name, value in tensors.items()}
    np.savez_compressed(tmp_path / "icmlm.npz", **renamed)
    encoders = [interop.convert(path, "icmlm", width=4) for path in (checkpoint.path, tmp_path / "icmlm.npz")]
    assert all((encoders[0].weights[key] == encoders[1].weights[key]).all() for key in encoders[0].weights)
    made = [encoder.provenance["converted"] for encoder in encoders]
    assert [one["layout"] for one in made] == ["torchvision after 'cnn.'", "torchvision after 'module.encoder.'"]
    assert [one["layout_verified"] for one in made] == [False, False]


def test_what_the_encoder_says_of_itself(tmp_path):
    checkpoint = torch_peers.write("clip", tmp_path, 4)
    encoder = interop.convert(checkpoint.path, "clip", width=4)
    encoder.save(tmp_path / "encoder")
    said = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    assert (said["feature_dim"], said["feature_layer"], said["license"]) == (64, "attnpool", "MIT")
    assert (said["preprocessing"]["interpolation"], said["preprocessing"]["resize"]) == ("bicubic", 224)
    made = said["provenance"]["converted"]
    assert (made["source"], made["file"], made["layout"]) == ("clip", "clip.pth", "openai")
    assert (made["layout_verified"], made["published"]) == (True, False)
    assert made["sha256"] == hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    assert Encoder.load(tmp_path / "encoder").fingerprint == encoder.fingerprint
