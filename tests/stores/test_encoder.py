"""Encoders in a bucket."""

from typing import Any

import numpy as np
import pytest

from vise_jax import artifact
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.text_encoder import TextEncoder


@pytest.mark.slow
def test_an_encoder_comes_back(store: Any) -> None:
    encoder = Encoder.random("tiny", 0)
    encoder.save(f"{store.root}/encoder")
    assert {"README.md", "encoder.json"} <= artifact.sizes(artifact.location(f"{store.root}/encoder")).keys()
    loaded = Encoder.load(f"{store.root}/encoder")
    assert loaded.fingerprint == encoder.fingerprint
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(loaded.features(images), encoder.features(images))
    with pytest.raises(UserError, match="already exists"):
        encoder.save(f"{store.root}/encoder")
    with pytest.raises(UserError, match=r"has no encoder\.json"):
        Encoder.load(f"{store.root}/none")


@pytest.mark.slow
def test_a_text_encoder_comes_back(store: Any, text_encoder: TextEncoder) -> None:
    text_encoder.save(f"{store.root}/text")
    loaded = TextEncoder.load(f"{store.root}/text")
    assert loaded.fingerprint == text_encoder.fingerprint
    np.testing.assert_array_equal(loaded.features(["a text"]), text_encoder.features(["a text"]))
