"""Preprocessing as a value: what it refuses, its JSON, its arithmetic."""

import jax.numpy as jnp
import numpy as np
import pytest

from vise_jax.errors import UserError
from vise_jax.preprocessing import Preprocessing, normalize


def test_json_gives_the_same_value_back():
    values = Preprocessing.imagenet(64).to_json()
    # Fingerprints of encoders depend on these names and types.
    assert values == {
        "color": "RGB",
        "scale": 255.0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resize": 73,
        "crop": 64,
        "interpolation": "bilinear",
    }
    assert Preprocessing.from_json(values) == Preprocessing.imagenet(64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": [1, 1, 0]}, "no valid 'std'"),
        ({"mean": [1, 1]}, "no valid 'mean'"),
        ({"crop": "224"}, "no valid 'crop'"),
        ({"interpolation": "lanczos"}, "no valid 'interpolation'"),
        ({"gamma": 2.2}, "keys: gamma"),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        Preprocessing.from_json({**Preprocessing.imagenet().to_json(), **changes})
    lacking = Preprocessing.imagenet().to_json()
    del lacking["scale"]
    with pytest.raises(UserError, match="keys: scale"):
        Preprocessing.from_json(lacking)


def test_another_crop_is_resized_in_proportion():
    preprocessing = Preprocessing.imagenet(224)
    smaller = preprocessing.at(112)
    assert (smaller.resize, smaller.crop, smaller.mean) == (128, 112, preprocessing.mean)
    assert preprocessing.at(0) == preprocessing


def test_normalization_follows_the_order_of_channels():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    bgr = Preprocessing("BGR", 1.0, (103.53, 116.28, 123.675), (2.0, 3.0, 4.0), 8, 8, "bicubic")
    blue, green, red = images[..., 2], images[..., 1], images[..., 0]
    expected = np.stack([(blue - 103.53) / 2, (green - 116.28) / 3, (red - 123.675) / 4], axis=-1)
    np.testing.assert_allclose(normalize(jnp.asarray(images), bgr), expected, rtol=1e-6)
