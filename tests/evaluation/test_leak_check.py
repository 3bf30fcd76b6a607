"""Planted near-duplicates of training images are found, other images are not."""

import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image, ImageFilter

from vise_jax import config as vise_config
from vise_jax.data import perceptual, shards
from vise_jax.data.datasets import open_labeled
from vise_jax.data.images import FORMATS
from vise_jax.errors import UserError
from vise_jax.evaluation import leak_check, measure
from vise_jax.labeling.tables import read_table

LIMITS = {"threads": 1, "max_image_pixels": 1_000_000}


def scene(seed: int) -> Image.Image:
    """An image with low frequencies, as photos have."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def encode(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def test_hashes_of_copies_are_near_and_of_others_far():
    originals = [perceptual.hash_file(encode(scene(seed)), FORMATS) for seed in range(30)]
    copies = [
        [
            perceptual.hash_file(encode(image, quality=quality), FORMATS)
            for image, quality in (
                (scene(seed), 30),
                (scene(seed).resize((120, 90)), 90),
                (scene(seed).resize((700, 525)), 80),
            )
        ]
        for seed in range(30)
    ]
    for number, (original, of_copies) in enumerate(zip(originals, copies, strict=True)):
        assert max((original ^ copy).bit_count() for copy in of_copies) <= 6
        others = originals[:number] + originals[number + 1 :]
        assert min((original ^ other).bit_count() for other in others) > 8


@pytest.fixture
def directory(tmp_path, monkeypatch) -> Path:
    """Shards whose tables have the hashes of the scenes 0 to 19."""
    (tmp_path / "shards" / "records").mkdir(parents=True)
    hashes = np.array([perceptual.hash_file(encode(scene(seed)), FORMATS) for seed in range(20)], np.uint64)
    for number, part in enumerate(np.split(hashes, 2)):
        table = {"image_hashes": part, "post_ids": np.zeros(16 * len(part), np.uint8)}
        (tmp_path / "shards" / "records" / f"{number}.safetensors").write_bytes(safetensors.numpy.save(table))
    manifest = {"shards": [{"name": f"{number}.tfrecord"} for number in range(2)], "examples": 20, "fingerprint": "f"}
    monkeypatch.setattr(shards, "read_manifest", lambda directory: manifest)
    return tmp_path / "shards"


def test_planted_copies_are_found(directory, tmp_path, monkeypatch):
    planted = {"a/2.jpg": 3, "b/7.jpg": 17}
    for number in range(12):
        name = f"{'ab'[number % 2]}/{number}.jpg"
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        image = scene(planted[name]).resize((300, 225)) if name in planted else scene(100 + number)
        (tmp_path / "images" / name).write_bytes(encode(image, quality=60))
    (tmp_path / "images" / "a" / "bad.jpg").write_bytes(b"no image")
    dataset = open_labeled(tmp_path / "images")
    expected = [name for name in dataset.names if name in planted]
    for pairs in (1 << 24, 1):
        monkeypatch.setattr(leak_check, "_MAX_PAIRS", pairs)
        leaks = leak_check.find(dataset, directory, max_distance=4, **LIMITS)
        assert [dataset.names[index] for index in leaks.indices] == expected
        assert (leaks.compared, leaks.examples) == (12, 20)
        assert (leaks.distances <= 4).all()


def test_shards_without_hashes_are_named(directory, tmp_path):
    path = directory / "records" / "1.safetensors"
    table = read_table(path, frozenset())
    path.write_bytes(safetensors.numpy.save({"post_ids": table["post_ids"].ravel()}))
    with pytest.raises(UserError, match="have no perceptual hashes: label the posts again"):
        leak_check.training_hashes(directory)


@pytest.mark.parametrize("left_out", [False, True])
def test_a_measurement_reports_leaks_and_leaves_them_out(left_out, directory, trained, tmp_path, caplog, monkeypatch):
    for number in range(40):
        name = f"{'ab'[number % 2]}/{number:02d}.jpg"
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        # Scenes 0 to 19 are in the shards.
        (tmp_path / "images" / name).write_bytes(encode(scene(number if number in (3, 4) else 100 + number)))
    trained.save(tmp_path / "run" / "encoder")
    config = vise_config.evaluation()
    config.update({"leave_out_leaks": left_out, "splits": 1})
    arguments = (config, str(tmp_path / "run" / "encoder"), tmp_path / "images", tmp_path / "results")
    with caplog.at_level("WARNING", "vise_jax"):
        result, path = measure.measure(*arguments, leak_shards=directory)
    leaks = result["data"]["leaks"]
    assert (leaks["images"], leaks["names"], leaks["left_out"]) == (2, ["a/04.jpg", "b/03.jpg"], left_out)
    assert (leaks["compared"], leaks["examples"]) == (40, 20)
    assert result["data"]["images"] == (38 if left_out else 40)
    assert "2 of 40 images of images are near-duplicates of training examples" in caplog.text
    # Read again, without hashing the images.
    monkeypatch.setattr(leak_check, "find", None)
    assert measure.measure(*arguments, leak_shards=directory) == (result, path)
