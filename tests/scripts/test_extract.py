"""scripts/extract.py as people run it: killed and run again, over what can't be read, and on mistakes."""

import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vise_jax

ROOT = Path(__file__).parents[2]
IMAGES = 3000
# One device: this is not about sharding.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def command(*words: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "extract.py"), *map(str, words)]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, cwd="/", env=ENVIRONMENT, check=False)


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (18, 18, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory) -> Path:
    """A directory with an encoder and an archive of images, one of which is broken."""
    directory = tmp_path_factory.mktemp("made")
    trained.save(directory / "encoder")
    files = [encoded(number) for number in range(90)]
    with zipfile.ZipFile(directory / "images.zip", "w") as archive:
        for number in range(IMAGES):
            archive.writestr(f"{number:04d}.png", b"no image" if number == 70 else files[number % 90])
    return directory


@pytest.mark.slow
def test_a_killed_extraction_resumes_to_the_same_bytes(made: Path, tmp_path: Path) -> None:
    given = ("--encoder", made / "encoder", "--images", made / "images.zip", "--output")
    undisturbed = run(*given, tmp_path / "whole.npz")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert f"32 features of each of {IMAGES - 1:,} images\nleft out: 1" in undisturbed.stdout
    assert "left out: The image 0070.png in images is no image that can be read" in undisturbed.stderr
    process = subprocess.Popen(command(*given, tmp_path / "f.npz"), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    while process.poll() is None and len(list(tmp_path.glob(".f.npz.parts-*/*1024.npz"))) == 0:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert not (tmp_path / "f.npz").exists()
    again = run(*given, tmp_path / "f.npz")
    assert again.returncode == 0, again.stderr
    assert "resuming after" in again.stderr
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        features, paths = arrays["features"], arrays["paths"].tolist()
    assert (features.shape, features.dtype) == ((IMAGES - 1, 32), np.float32)
    assert paths == [f"{number:04d}.png" for number in range(IMAGES) if number != 70]
    encoder = vise_jax.Encoder.load(made / "encoder")
    for number in (0, 71, IMAGES - 1):
        image = np.asarray(Image.open(io.BytesIO(encoded(number % 90))).crop((1, 1, 17, 17)))
        expected = encoder.features(image[None])[0]
        np.testing.assert_allclose(features[paths.index(f"{number:04d}.png")], expected, atol=1e-5)


def test_mistakes_get_one_sentence(made: Path, tmp_path: Path) -> None:
    encoder, images = ("--encoder", made / "encoder"), ("--images", made / "images.zip")
    cases = {
        "--images is missing": (*encoder, "--output", tmp_path / "f.npz"),
        "ends in .txt: name a file that ends in .npz or .parquet": (*encoder, *images, "--output", tmp_path / "f.txt"),
    }
    for words, given in cases.items():
        result = run(*given)
        assert result.returncode == 1, (words, result.stderr)
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
