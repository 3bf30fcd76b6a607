"""The benchmark of the input: photographs that are alike, peers that cut out and resize what this project does."""

import importlib.util
import io
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("input")


@pytest.fixture(scope="module")
def torch_input(benchmark: ModuleType) -> ModuleType:
    pytest.importorskip("torch")
    import torch_input  # the benchmark has put its directory on the path

    return torch_input


@pytest.fixture
def settings(benchmark: ModuleType, tmp_path: Path):
    benchmark.write_photos(tmp_path, 20)
    return benchmark.Settings(tmp_path, batch_size=6, threads=2)


def test_photographs_are_always_the_same_and_as_large_as_requested(benchmark: ModuleType) -> None:
    files = [benchmark.photo(number) for number in range(8)]
    assert files == [benchmark.photo(number) for number in range(8)]
    assert len(set(files)) == 8
    assert 40_000 < np.mean([len(file) for file in files]) < 60_000
    images = [Image.open(io.BytesIO(file)) for file in files]
    assert {image.format for image in images} == {"JPEG"}
    assert {image.size for image in images} == {(500, 375), (375, 500), (500, 333), (500, 400)}
    # Neighbors are alike, as in photographs, and not in white noise.
    gray = np.asarray(images[0].convert("L"), float)
    assert np.corrcoef(gray[:, 1:].ravel(), gray[:, :-1].ravel())[0, 1] > 0.9


def test_shards_and_files_hold_the_same(benchmark: ModuleType, settings) -> None:
    from vise_jax.data import records, shards

    manifest = shards.read_manifest(settings.directory / "shards")
    assert (manifest["examples"], len(manifest["shards"])) == (20, benchmark.SHARDS)
    content = b"".join(
        data
        for shard in manifest["shards"]
        for path in [settings.directory / "shards" / shard["name"]]
        for data in records.read_records(path, records.read_index(path, shard["examples"]), range(2))[0]
    )
    for number in (0, 19):
        assert (settings.directory / "photos" / f"{number}.jpg").read_bytes() in content


def test_ours_gives_batches_without_end(benchmark: ModuleType, settings) -> None:
    for batch in itertools.islice(benchmark.batches_of(benchmark.OURS, settings), 5):
        assert (batch.shape, batch.dtype) == ((6, 224, 224, 3), np.uint8)


@pytest.mark.parametrize("decoder", ["Pillow", "simplejpeg", "OpenCV"])
def test_peers_give_batches_without_end(benchmark: ModuleType, torch_input: ModuleType, settings, decoder: str) -> None:
    for module in benchmark.DECODERS[decoder]:
        pytest.importorskip(module)
    # Without workers: those would be forked from a process that has JAX's threads.
    batches = benchmark.batches_of(f"torch DataLoader, {decoder}", settings._replace(threads=0))
    for batch in itertools.islice(batches, 5):
        assert (tuple(batch.shape), str(batch.dtype)) == ((6, 224, 224, 3), "torch.uint8")


@pytest.mark.parametrize(("decoder", "most"), [("Pillow", 0.5), ("simplejpeg", 3.0), ("OpenCV", 3.0)])
def test_peers_cut_out_and_resize_as_ours_does(
    benchmark: ModuleType,
    torch_input: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    decoder: str,
    most: float,
) -> None:
    for module in benchmark.DECODERS[decoder]:
        pytest.importorskip(module)
    import tensorflow as tf

    path = tmp_path / "photo.jpg"
    path.write_bytes(benchmark.photo(0))
    left, top, right, bottom = box = (41, 30, 391, 310)
    monkeypatch.setattr(torch_input, "random_box", lambda *_: box)
    found = torch_input.transform(decoder, 224, AREA, RATIO)(path)
    window = [top, left, bottom - top, right - left]
    crop = tf.image.decode_and_crop_jpeg(path.read_bytes(), window, channels=3, dct_method="INTEGER_ACCURATE")
    ours = tf.image.resize(crop, [224, 224], method="bilinear", antialias=True).numpy()
    assert (found.shape, found.dtype) == ((224, 224, 3), np.uint8)
    # Pillow's filter is ours; OpenCV averages areas.
    assert np.abs(found - ours).mean() < most


@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500)])
def test_peers_draw_crops_by_the_same_law(torch_input: ModuleType, width: int, height: int) -> None:
    from vise_jax.data import crops

    random.seed(0)
    theirs = np.array([torch_input.random_box(width, height, AREA, RATIO) for _ in range(4000)])
    assert (theirs >= 0).all()
    assert (theirs[:, 2] <= width).all()
    assert (theirs[:, 3] <= height).all()
    theirs[:, 2:] -= theirs[:, :2]
    draws = np.random.default_rng(0).random((4000, 4, 10))
    ours = crops.random_crop_boxes(np.full((4000, 2), (height, width), float), AREA, RATIO, draws)
    drawn = ours[:, [1, 0, 3, 2]]
    for column in range(4):
        # The standard error of a mean of 4000 is about 1.
        assert theirs[:, column].mean() == pytest.approx(drawn[:, column].mean(), abs=5)
    shares = [(boxes[:, 2] * boxes[:, 3] / (width * height)) for boxes in (theirs, drawn)]
    np.testing.assert_allclose(*(np.quantile(share, (0.1, 0.5, 0.9)) for share in shares), atol=0.03)


# find_spec says that these aren't there.
WITHOUT = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("simplejpeg", "cv2") else find(name, *rest)
sys.argv = ["benchmarks/input.py", "--quick", "--photos", "24", "--batch", "8", "--batches", "2"]
runpy.run_path("benchmarks/input.py", run_name="__main__")
"""


@pytest.mark.slow
def test_quick_run_with_what_is_installed() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "simplejpeg and cv2 not installed: no torch DataLoader, simplejpeg." in done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    peers = {"torch DataLoader, Pillow"} if importlib.util.find_spec("torch") else set()
    assert result["benchmark"] == "input"
    assert result["ratios"].keys() == peers
    assert result["share_of_decode_only"] is None
    assert result["images_per_second"].keys() == peers | {"vise_jax"}
    assert all(speed > 0 for speed in result["images_per_second"].values())
    assert all(100e6 < peak < 4e9 for peak in result["peak_bytes"].values())
