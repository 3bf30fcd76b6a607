import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vise_jax.data import datasets
from vise_jax.errors import UserError
from vise_jax.inference import extract, feature_cache, feature_files
from vise_jax.preprocessing import Preprocessing


class CountingEncoder:
    """Features are the mean color; remembers how many images it was given, and the batch size."""

    def __init__(self, fingerprint: str = "a"):
        self.fingerprint = fingerprint
        self.shapes: list[tuple[int, int]] = []

    def features(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        self.shapes.append((len(images), batch_size))
        return images.mean(axis=(1, 2)).astype(np.float32)


PREPROCESSING = replace(Preprocessing.imagenet(16), resize=18)
SETTINGS = {"batch_size": 4, "threads": 1, "max_image_pixels": 10**6}


@pytest.fixture
def image_set(tmp_path: Path) -> datasets.Dataset:
    """Ten images, each of one color: the red of number n is 20 n."""
    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.new("RGB", (20, 20 + number), (20 * number, 100, 0)).save(tmp_path / "images" / f"{number}.png")
    return datasets.open_unlabeled(tmp_path / "images")


def export(image_set, path, encoder=None, **changes):
    return extract.export(encoder or CountingEncoder(), image_set, PREPROCESSING, path, **SETTINGS | changes)


def rows(path: Path) -> dict[str, list[float]]:
    return {
        name: row.tolist() for names, found in feature_files.read(path) for name, row in zip(names, found, strict=True)
    }


def test_each_image_once_in_batches_of_one_size(image_set, tmp_path):
    encoder = CountingEncoder()
    found, indices, rejected = feature_cache.cached(tmp_path, encoder, image_set, PREPROCESSING, **SETTINGS)
    assert (indices.tolist(), rejected) == (list(range(10)), {})
    np.testing.assert_allclose(found, [[20 * number, 100, 0] for number in range(10)])
    assert found.dtype == np.float32
    assert encoder.shapes == [(4, 4), (4, 4), (2, 4)]
    few = CountingEncoder()
    feature_cache.cached(tmp_path / "other", few, image_set, PREPROCESSING, **SETTINGS | {"batch_size": 64})
    assert few.shapes == [(10, 10)]


def test_the_cache_is_read_only_for_the_same_encoder_images_and_preprocessing(image_set, tmp_path, caplog):
    caplog.set_level("INFO")

    def cached(encoder, images=image_set, preprocessing=PREPROCESSING):
        return feature_cache.cached(tmp_path / "kept", encoder, images, preprocessing, **SETTINGS)[0]

    encoder = CountingEncoder()
    first = cached(encoder)
    assert "read from" not in caplog.text
    np.testing.assert_array_equal(cached(encoder), first)
    assert len(encoder.shapes) == 3
    assert "read from" in caplog.text
    other = CountingEncoder("b")
    cached(other)
    cached(encoder, preprocessing=replace(PREPROCESSING, crop=12))
    assert len(other.shapes) == 3
    assert len(encoder.shapes) == 6
    Image.new("RGB", (20, 20), (255, 255, 255)).save(tmp_path / "images" / "0.png")
    changed = cached(encoder, images=datasets.open_unlabeled(tmp_path / "images"))
    np.testing.assert_allclose(changed[0], 255)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text" * 9])
def test_a_damaged_cache_is_computed_again(image_set, tmp_path, damage):
    encoder = CountingEncoder()
    first, *_ = feature_cache.cached(tmp_path / "kept", encoder, image_set, PREPROCESSING, **SETTINGS)
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(
        feature_cache.cached(tmp_path / "kept", encoder, image_set, PREPROCESSING, **SETTINGS)[0], first
    )
    assert file.read_bytes() == whole
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [file.name]


def test_a_pickle_is_never_loaded(image_set, tmp_path):
    encoder = CountingEncoder()
    feature_cache.cached(tmp_path / "kept", encoder, image_set, PREPROCESSING, **SETTINGS)
    (file,) = (tmp_path / "kept").iterdir()
    with np.load(file) as arrays:
        about = arrays["about"]
    buffer = io.BytesIO()
    np.savez(buffer, features=np.array([{"an": "object"}], dtype=object), paths=np.array(["0.png"]), about=about)
    file.write_bytes(buffer.getvalue())
    feature_cache.cached(tmp_path / "kept", encoder, image_set, PREPROCESSING, **SETTINGS)
    assert len(encoder.shapes) == 6


def test_export_to_npz(image_set, tmp_path):
    encoder, path = CountingEncoder(), tmp_path / "new" / "features.npz"
    about = export(image_set, path, encoder)
    assert about == feature_files.read_about(path)
    assert (about["images"], about["dim"], about["crop"], about["encoder"]) == (10, 3, 16, "a")
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["paths"].tolist() == [f"{number}.png" for number in range(10)]
        assert arrays["features"].shape == (10, 3)
        assert arrays["features"].dtype == np.float32
    assert export(image_set, path, encoder) == about
    assert len(encoder.shapes) == 3
    with pytest.raises(UserError, match=r"features\.npz already exists"):
        export(image_set, path, CountingEncoder("b"))
    with pytest.raises(UserError, match=r"ends in \.csv: name a file that ends in \.npz or \.parquet"):
        export(image_set, tmp_path / "features.csv")
    assert [entry.name for entry in path.parent.iterdir()] == ["features.npz"]


def test_parquet_holds_the_same_part_by_part(image_set, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "_PART", 4)
    export(image_set, tmp_path / "features.npz")
    export(image_set, tmp_path / "features.parquet")
    assert rows(tmp_path / "features.parquet") == rows(tmp_path / "features.npz")
    assert feature_files.read_about(tmp_path / "features.parquet") == feature_files.read_about(
        tmp_path / "features.npz"
    )
    file = pq.ParquetFile(tmp_path / "features.parquet")
    assert file.num_row_groups == 3
    assert file.schema_arrow.field("features").type == pa.list_(pa.float32(), 3)


class Stopped(Exception):
    pass


class StoppingEncoder(CountingEncoder):
    """Stops at its third batch, as a kill would."""

    def features(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        if len(self.shapes) == 2:
            raise Stopped
        return super().features(images, batch_size)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_stopped_export_resumes_to_the_same_bytes(image_set, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(extract, "_PART", 2)
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    image_set = datasets.open_unlabeled(tmp_path / "images")
    export(image_set, tmp_path / f"whole.{ending}", batch_size=2)
    path, encoder = tmp_path / f"features.{ending}", CountingEncoder()
    with pytest.raises(Stopped):
        export(image_set, path, StoppingEncoder(), batch_size=2)
    assert not path.exists()
    (work,) = tmp_path.glob(f".features.{ending}.parts-*")
    first, second = sorted(work.glob("*.npz"))
    second.write_bytes(second.read_bytes()[:-9])
    with pytest.raises(Stopped):  # another encoder takes nothing from these parts, nor does it lose them
        export(image_set, path, StoppingEncoder("b"), batch_size=2)
    with pytest.raises(Stopped):  # nor does another batch size, which changes the last bits
        export(image_set, path, StoppingEncoder(), batch_size=1)
    assert len(list(tmp_path.glob(".features.*"))) == 3
    assert first.exists()
    about = export(image_set, path, encoder, batch_size=2)
    assert encoder.shapes == [(1, 2), (2, 2), (2, 2), (2, 2)]
    assert list(about["rejected"]) == ["3.png"]
    assert path.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_broken_image_is_left_out_of_an_export_and_of_the_cache(image_set, tmp_path, capsys):
    for number in (3, 4, 5, 6, 7):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"no image")
    image_set = datasets.open_unlabeled(tmp_path / "images")
    about = export(image_set, tmp_path / "features.npz")
    assert "left out: The image 3.png in images is no image that can be read" in capsys.readouterr().err
    assert list(about["rejected"]) == [f"{number}.png" for number in (3, 4, 5, 6, 7)]
    assert rows(tmp_path / "features.npz") == {f"{number}.png": [20 * number, 100, 0] for number in (0, 1, 2, 8, 9)}
    for _ in range(2):  # computed, then read
        features, indices, rejected = feature_cache.cached(
            tmp_path / "kept", CountingEncoder(), image_set, PREPROCESSING, **SETTINGS
        )
        assert indices.tolist() == [0, 1, 2, 8, 9]
        np.testing.assert_allclose(features[:, 0], 20 * indices)
        assert rejected == about["rejected"]
    for number in (0, 1, 2, 8, 9):
        (tmp_path / "images" / f"{number}.png").unlink()
    with pytest.raises(UserError, match=r"None of the 5 images can be used; the first: The image 3\.png"):
        export(datasets.open_unlabeled(tmp_path / "images"), tmp_path / "none.npz")
    with pytest.raises(UserError, match="None of the 5 images can be used"):
        feature_cache.cached(
            tmp_path, CountingEncoder(), datasets.open_unlabeled(tmp_path / "images"), PREPROCESSING, **SETTINGS
        )
    assert {path.name for path in tmp_path.iterdir()} == {"images", "features.npz", "kept"}


def test_corrupt_images_are_tried_again(image_set, tmp_path):
    encoder = CountingEncoder()

    def cached(max_image_pixels: int) -> dict[str, str]:
        settings = SETTINGS | {"max_image_pixels": max_image_pixels}
        return feature_cache.cached(tmp_path / "kept", encoder, image_set, PREPROCESSING, **settings)[2]

    corrupt = cached(500)
    assert list(corrupt) == ["6.png", "7.png", "8.png", "9.png"]
    assert cached(500) == corrupt
    assert len(encoder.shapes) == 2
    assert cached(10**6) == {}
    assert len(encoder.shapes) == 5
    assert cached(500) == {}


def test_a_file_is_written_again_when_an_image_can_be_read(image_set, tmp_path):
    path = tmp_path / "features.npz"
    assert len(export(image_set, path, max_image_pixels=500)["rejected"]) == 4
    assert export(image_set, path)["rejected"] == {}
    assert len(np.load(path)["paths"]) == len(image_set)


@pytest.mark.parametrize("content", [b"", b'{"6.pn', b'["6.png"]', b'{"6.pnG": "x"}', b"\xfb"])
def test_a_damaged_list_of_corrupt_images_is_made_again(image_set, tmp_path, content):
    limits = {"threads": 1, "max_image_pixels": 500}
    corrupt = feature_cache.undecodable(tmp_path, image_set, PREPROCESSING, **limits)
    assert list(corrupt) == ["6.png", "7.png", "8.png", "9.png"]
    (path,) = tmp_path.glob("*.undecodable.json")
    whole = path.read_bytes()
    path.write_bytes(content)
    assert feature_cache.undecodable(tmp_path, image_set, PREPROCESSING, **limits) == corrupt
    assert path.read_bytes() == whole


def test_an_image_that_was_unreadable_for_a_moment_is_decoded_again(image_set, tmp_path, monkeypatch):
    limits = {"threads": 1, "max_image_pixels": 10**6}
    real = feature_cache.data_images.decode_each

    def failing(images, indices, *args):
        yield from (
            UserError("no permission") if images.names[index] == "3.png" else image
            for index, image in zip(indices, real(images, indices, *args), strict=True)
        )

    with monkeypatch.context() as patched:
        patched.setattr(feature_cache.data_images, "decode_each", failing)
        assert list(feature_cache.undecodable(tmp_path, image_set, PREPROCESSING, **limits)) == ["3.png"]
    assert feature_cache.undecodable(tmp_path, image_set, PREPROCESSING, **limits) == {}


def test_what_is_no_file_of_features_is_reported(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        feature_files.read_about(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", features=np.zeros((1, 1)))
    (tmp_path / "text.parquet").write_text("text")
    for name in ("other.npz", "text.parquet"):
        with pytest.raises(UserError, match="no complete file of features"):
            feature_files.read_about(tmp_path / name)


def test_the_key_names_the_device(image_set, monkeypatch):
    keys = {extract.key_of(CountingEncoder(), image_set, PREPROCESSING)}
    for kind in ("NVIDIA H100 80GB HBM3", "TPU v5 lite"):
        monkeypatch.setattr(extract.jax, "local_devices", lambda kind=kind: [SimpleNamespace(device_kind=kind)])
        keys.add(extract.key_of(CountingEncoder(), image_set, PREPROCESSING))
    assert len(keys) == 3


def test_two_runs_of_one_encoder_and_set_do_not_disturb_each_other(image_set, tmp_path):
    encoder, path = CountingEncoder(), tmp_path / "features.npz"
    settings = {"batch_size": 2, "threads": 1, "max_image_pixels": 10**6}
    with extract.computed(encoder, image_set, PREPROCESSING, path, **settings) as (first, about):
        with extract.computed(encoder, image_set, PREPROCESSING, path, **settings) as (second, other):
            assert about == other
            assert not {part.parent for part in first} & {part.parent for part in second}
        # The second one has ended and cleared its parts; the first one's are there.
        assert all(part.exists() for part in first)
    assert not list(tmp_path.glob(".features*"))
