"""CLIP's image encoder: its size and what it refuses. Its activations are compared with torch's in tests/interop."""

import jax
import numpy as np
import pytest
from flax import nnx

from vise_jax import models
from vise_jax.errors import UserError


def test_size_and_shapes():
    model = nnx.eval_shape(lambda: models.build("clip_resnet50"))
    # Of RN50's image encoder; the 102M parameters that are quoted for it count the text half.
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 38_316_896
    images = np.zeros((2, 224, 224, 3), np.float32)
    features, intermediates = nnx.eval_shape(lambda m: m(images, train=False), model)
    assert (features.shape, features.dtype, model.feature_dim) == ((2, 1024), np.float32, 1024)
    assert intermediates["feature_map"].shape == (2, 7, 7, 2048)


@pytest.mark.slow
def test_heads_dtype_and_remat_are_as_of_other_encoders():
    settings = {"width": 4, "heads": {"comments": 3}, "dtype": "bfloat16", "remat": (1, 4)}
    model = nnx.eval_shape(lambda: models.build("clip_resnet50", **settings))

    def loss(m):
        logits, intermediates = m(np.zeros((2, 224, 224, 3), np.float32), train=True)
        return logits["comments"].sum(), intermediates

    gradients, intermediates = nnx.eval_shape(nnx.grad(loss, has_aux=True), model)
    assert intermediates["feature_map"].dtype.name == "bfloat16"
    assert intermediates["features"].dtype == np.float32
    assert gradients["encoder"]["attnpool"]["positional_embedding"].shape == (50, 128)


@pytest.mark.parametrize(
    ("settings", "words"), [({"stem": "cifar"}, "a stem of its own"), ({"width": 5}, "an even width of at least 2")]
)
def test_settings_that_it_has_not(settings, words):
    with pytest.raises(UserError, match=words):
        models.build("clip_resnet50", **settings)


def test_other_sizes_of_images_are_refused():
    model = nnx.eval_shape(lambda: models.build("clip_resnet50", width=4))
    with pytest.raises(UserError, match="images of 224x224 pixels, not 256x224"):
        nnx.eval_shape(lambda m: m(np.zeros((2, 256, 224, 3), np.float32), train=False), model)
