import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vise_jax.data import downstream
from vise_jax.errors import UserError
from vise_jax.evaluation import features


class CountingEncoder:
    """Features are the mean colour; remembers the shapes that it was given."""

    def __init__(self, fingerprint: str = "a"):
        self.fingerprint = fingerprint
        self.shapes: list[tuple[int, ...]] = []

    def features(self, images: np.ndarray) -> np.ndarray:
        self.shapes.append(images.shape)
        return images.mean(axis=(1, 2)).astype(np.float32)


PREPROCESSING = {"resize": 18, "crop": 16, "interpolation": "bilinear", "mean": [0.0] * 3}
SETTINGS = {"batch_size": 4, "threads": 1, "max_image_pixels": 10**6}


@pytest.fixture
def image_set(tmp_path: Path) -> downstream.ImageSet:
    """Ten images, each of one colour: the red of number n is 20 n."""
    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.new("RGB", (20, 20 + number), (20 * number, 100, 0)).save(tmp_path / "images" / f"{number}.png")
    return downstream.open_unlabelled(tmp_path / "images")


def test_each_image_once_in_one_shape(image_set):
    encoder = CountingEncoder()
    found = features.extract(encoder, image_set, PREPROCESSING, **SETTINGS)
    np.testing.assert_allclose(found, [[20 * number, 100, 0] for number in range(10)])
    assert found.dtype == np.float32
    assert encoder.shapes == [(4, 16, 16, 3)] * 3
    small = CountingEncoder()
    features.extract(small, image_set, PREPROCESSING, **SETTINGS | {"batch_size": 64})
    assert small.shapes == [(10, 16, 16, 3)]


def test_the_cache_is_read_only_for_the_same_encoder_images_and_preprocessing(image_set, tmp_path, capsys):
    def cached(encoder, images=image_set, preprocessing=PREPROCESSING):
        return features.cached(tmp_path / "kept", encoder, images, preprocessing, **SETTINGS)

    encoder = CountingEncoder()
    first = cached(encoder)
    assert "read from there" not in capsys.readouterr().err
    np.testing.assert_array_equal(cached(encoder), first)
    assert len(encoder.shapes) == 3
    assert "read from there" in capsys.readouterr().err
    other = CountingEncoder("b")
    cached(other)
    cached(encoder, preprocessing=PREPROCESSING | {"crop": 12})
    assert len(other.shapes) == 3
    assert len(encoder.shapes) == 6
    Image.new("RGB", (20, 20), (255, 255, 255)).save(tmp_path / "images" / "0.png")
    changed = cached(encoder, images=downstream.open_unlabelled(tmp_path / "images"))
    np.testing.assert_allclose(changed[0], 255)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text" * 9])
def test_a_damaged_cache_is_made_again(image_set, tmp_path, damage):
    encoder = CountingEncoder()
    first = features.cached(tmp_path / "kept", encoder, image_set, PREPROCESSING, **SETTINGS)
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(
        features.cached(tmp_path / "kept", encoder, image_set, PREPROCESSING, **SETTINGS), first
    )
    assert file.read_bytes() == whole
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [file.name]


def test_a_pickle_is_never_loaded(image_set, tmp_path):
    encoder = CountingEncoder()
    features.cached(tmp_path / "kept", encoder, image_set, PREPROCESSING, **SETTINGS)
    (file,) = (tmp_path / "kept").iterdir()
    with np.load(file) as arrays:
        key = arrays["key"]
    buffer = io.BytesIO()
    np.savez(buffer, features=np.array([{"an": "object"}], dtype=object), key=key)
    file.write_bytes(buffer.getvalue())
    features.cached(tmp_path / "kept", encoder, image_set, PREPROCESSING, **SETTINGS)
    assert len(encoder.shapes) == 6


def test_export_writes_paths_and_is_idempotent(image_set, tmp_path):
    encoder, path = CountingEncoder(), tmp_path / "new" / "features.npz"
    features.export(encoder, image_set, PREPROCESSING, path, **SETTINGS)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["paths"].tolist() == [f"{number}.png" for number in range(10)]
        assert arrays["features"].shape == (10, 3)
        assert arrays["features"].dtype == np.float32
    features.export(encoder, image_set, PREPROCESSING, path, **SETTINGS)
    assert len(encoder.shapes) == 3
    with pytest.raises(UserError, match=r"features\.npz already exists"):
        features.export(CountingEncoder("b"), image_set, PREPROCESSING, path, **SETTINGS)


def test_another_size_is_resized_in_proportion():
    preprocessing = {"resize": 256, "crop": 224, "interpolation": "bilinear"}
    assert features.preprocessing_at(preprocessing, 112) == preprocessing | {"resize": 128, "crop": 112}
    assert features.preprocessing_at(preprocessing, 0) == preprocessing
