"""scripts/convert.py as people run it, both ways, without PyTorch where it isn't needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from vise_jax import interop, models, variables
from vise_jax.encoder import Encoder
from vise_jax.preprocessing import Preprocessing

ROOT = Path(__file__).parents[2]
NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def convert(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "convert.py"), *map(str, words)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 in torchvision's layout, of numbers that tell its arrays apart."""
    tensors = {}
    for number, (path, value) in enumerate(variables.of_model(models.build("resnet18")).items()):
        *module, kind = path.split("/")
        shape = tuple(value.shape[axis] for axis in (3, 2, 0, 1)) if value.ndim == 4 else value.shape
        tensors[".".join([*module, NAMES[kind]])] = np.full(shape, number, np.float32)
    tensors["fc.bias"] = np.zeros(1000, np.float32)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


@pytest.mark.slow
def test_there_and_back(weights: Path, tmp_path: Path) -> None:
    words = ("--source", "torchvision", "--arch", "resnet18", "--weights", weights, "--output", tmp_path / "encoder")
    result = convert(*words)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'encoder'}: resnet18, 512 features; license BSD-3-Clause\n"
    said = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    assert said["provenance"]["converted"]["file"] == "resnet18.safetensors"
    assert said["feature_layer"] == "layer4, mean over height and width"

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "encoder").rglob("*")}
    result = convert(*words)
    assert result.returncode == 0, result.stderr
    assert "already converted" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "encoder").rglob("*")} == before

    back = tmp_path / "back.safetensors"
    result = convert("--encoder", tmp_path / "encoder", "--to", "torchvision", "--output", back)
    assert result.returncode == 0, result.stderr
    assert "license BSD-3-Clause" in result.stdout
    assert "model.fc = torch.nn.Identity()" in result.stdout
    original, found = safetensors.numpy.load_file(weights), safetensors.numpy.load_file(back)
    assert {name for name in found if not name.endswith("num_batches_tracked")} == original.keys() - {"fc.bias"}
    assert all((found[name] == original[name]).all() for name in original.keys() & found.keys())
    again = interop.convert(back, "vise_jax")
    assert again.fingerprint == Encoder.load(tmp_path / "encoder").fingerprint


def test_the_list_names_every_source() -> None:
    result = convert("--list")
    assert result.returncode == 0, result.stderr
    for name, source in interop.SOURCES.items():
        assert f"│ {name} " in result.stdout
        assert all(arch in result.stdout for arch in source.architectures)
        assert source.license.split()[0] in result.stdout
    for words in ("BGR / 1", "bicubic to 224, crop 224", "https://github.com/KMnP/vise", "afeb0e10f9e5a86d"):
        assert words in result.stdout


def test_help_has_examples() -> None:
    result = convert("--help")
    assert result.returncode == 0
    assert "python scripts/convert.py --source torchvision --arch resnet50" in result.stdout
    assert "--max_gigabytes" in result.stdout


@pytest.mark.slow
def test_mistakes_get_one_sentence_and_write_nothing(weights: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    small = {"name": "resnet18", "width": 4, "heads": {"comments": 3}}
    Encoder(small, variables.of_model(models.build(**small)), Preprocessing.imagenet(32), {}, "CC0-1.0").save(encoder)
    checkpoint, output = ("--source", "torchvision", "--weights", weights), ("--output", tmp_path / "new")
    export = ("--encoder", encoder, "--to", "torchvision")
    cases = {
        "--source is missing": output,
        "--weights is missing": ("--source", "moco", *output),
        "--output is missing": checkpoint,
        "'again' is not a flag": ("again", *checkpoint, *output),
        "was not opened": (*checkpoint, "--arch=resnet18", "--sha256", "0" * 64, *output),
        "raise --max_gigabytes": (*checkpoint, "--arch=resnet18", "--max_gigabytes=0.001", *output),
        "--to is missing": ("--encoder", encoder, *output),
        "--encoder is missing": ("--to", "torchvision", *output),
        "--weights goes with a checkpoint": (*export, "--weights", weights, *output),
        "--prefix goes with a checkpoint": (*export, "--prefix=module.", *output),
        "--ema goes with a checkpoint": (*export, "--noema", *output),
        "--head goes with --encoder": (*checkpoint, "--head=comments", *output),
        "no head 'reactions'": (*export, "--head=reactions", "--output", tmp_path / "new.safetensors"),
    }
    for words, command in cases.items():
        result = convert(*command)
        assert result.returncode == 1, (words, result.stderr)
        assert words in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
