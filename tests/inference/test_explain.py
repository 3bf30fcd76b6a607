"""Class activation maps: where they are large, and gradients against torch."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vise_jax import models, variables
from vise_jax.encoder import Encoder
from vise_jax.inference.explain import AffineHead, location_centers, make_explainer, own_head
from vise_jax.preprocessing import Preprocessing


def make_encoder(name: str, side: int, **settings) -> Encoder:
    architecture = {"name": name, "zero_init_last_bn": False, **settings}
    preprocessing = Preprocessing.imagenet(side)
    return Encoder.from_model(
        models.build(**architecture), architecture=architecture, preprocessing=preprocessing, provenance={}, license="0"
    )


COLORS = ((220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30), (30, 220, 220), (220, 30, 220))


def squares(count: int, side: int, seed: int, *, empty: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise with a square of one of six colors, or with none: images, labels, and boxes (top, left, length)."""
    random = np.random.default_rng(seed)
    length = 64
    images = random.integers(98, 159, (count, side, side, 3)).astype(np.uint8)
    labels, corners = random.integers(0, len(COLORS) + empty, count), random.integers(0, side - length, (count, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        if label < len(COLORS):
            image[top : top + length, left : left + length] = COLORS[label]
    return images, labels, np.concatenate([corners, np.full((count, 1), length)], axis=1)


def fitted_head(features: np.ndarray, labels: np.ndarray) -> AffineHead:
    mean, scale = features.mean(0), 1 / (features.std(0) + 1e-6)
    peer = LogisticRegression(C=0.1).fit((features - mean) * scale, labels)
    kernel = peer.coef_.T * scale[:, None]
    return AffineHead(kernel.astype(np.float32), (peer.intercept_ - mean @ kernel).astype(np.float32))


def fraction_inside(maps: np.ndarray, boxes: np.ndarray, centers: np.ndarray) -> float:
    """Return how often the center of the largest location is inside the square."""
    inside = []
    for one, (top, left, length) in zip(maps, boxes, strict=True):
        row, column = np.unravel_index(one.argmax(), one.shape)
        y, x = centers[row], centers[column]
        inside.append(top <= y <= top + length and left <= x <= left + length)
    return float(np.mean(inside))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("tiny", 96),
        pytest.param("resnet18", 224, marks=pytest.mark.slow),
        pytest.param("resnet50", 224, marks=pytest.mark.slow),
        pytest.param("clip_resnet50", 224, marks=pytest.mark.slow),
    ],
)
def test_the_maximum_is_inside_the_square(name, side):
    """Blocks start as the identity, so that receptive fields are local: maps must point at the square's location.

    Images without a square make the heads tell colors from the background, not from one another alone.
    """
    encoder = make_encoder(name, side, zero_init_last_bn=True)
    images, labels, _ = squares(112, side, seed=0, empty=True)
    head = fitted_head(encoder.features(images), labels)
    images, labels, boxes = squares(100, side, seed=1, empty=False)
    logits, maps = make_explainer(encoder, head)(images, None)
    assert (logits.argmax(1) == labels).mean() >= 0.95
    assert fraction_inside(maps, boxes, location_centers(encoder, maps.shape[1], side)) >= 0.95


def test_the_mean_of_a_map_is_the_logit():
    encoder = make_encoder("tiny", 32, width=8, stem="cifar", heads={"comments": 4})
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    explainer = make_explainer(encoder, own_head(encoder, "comments"))
    for label in range(4):
        explained = explainer(images, np.full(3, label))
        np.testing.assert_allclose(explained.maps.mean((1, 2)), explained.logits[:, label], atol=1e-5)
    predicted = explainer(images, None)
    np.testing.assert_allclose(predicted.maps.mean((1, 2)), predicted.logits.max(1), atol=1e-5)
    kernel, bias = (np.asarray(encoder.weights[f"heads/comments/{part}"]) for part in ("kernel", "bias"))
    np.testing.assert_allclose(predicted.logits, encoder.features(images) @ kernel + bias, atol=1e-5)


def test_gradients_through_attention_pooling_are_torchs():
    torch = pytest.importorskip("torch")
    encoder = make_encoder("clip_resnet50", 224, width=16)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 224, 224, 3), np.uint8)
    head = AffineHead(random.normal(size=(256, 3)).astype(np.float32), random.normal(size=3).astype(np.float32))
    classes = np.array([2, 0])
    explained = make_explainer(encoder, head)(images, classes)

    weights = {name: torch.tensor(np.asarray(value)) for name, value in encoder.weights.items()}
    feature_map = torch.tensor(encoder.feature_map(images), requires_grad=True)
    tokens = feature_map.reshape(2, 49, 512)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + weights["attnpool/positional_embedding"]
    linear = {
        name: (weights[f"attnpool/{name}_proj/kernel"].T, weights[f"attnpool/{name}_proj/bias"]) for name in "qkvc"
    }
    pooled, _ = torch.nn.functional.multi_head_attention_forward(
        tokens[:, :1].transpose(0, 1), tokens.transpose(0, 1), tokens.transpose(0, 1), 512, 8, None,
        torch.cat([linear[name][1] for name in "qkv"]), None, None, False, 0.0, *linear["c"],
        use_separate_proj_weight=True, need_weights=False,
        q_proj_weight=linear["q"][0], k_proj_weight=linear["k"][0], v_proj_weight=linear["v"][0],
    )  # fmt: skip
    logits = pooled[0] @ torch.tensor(head.kernel) + torch.tensor(head.bias)
    np.testing.assert_allclose(explained.logits, logits.detach().numpy(), rtol=1e-3, atol=1e-4)
    logits[torch.arange(2), torch.tensor(classes)].sum().backward()
    importance = feature_map.grad.mean((1, 2), keepdim=True)
    expected = torch.relu((importance * feature_map).sum(3)).detach().numpy()
    np.testing.assert_allclose(explained.maps, expected, rtol=1e-3, atol=1e-3 * expected.max())
    assert expected.max() > 0


def test_the_head_of_a_clip_encoder_has_its_dimension():
    encoder = make_encoder("clip_resnet50", 224, width=16)
    assert encoder.feature_dim == 256
    assert variables.expected(encoder.architecture)["attnpool/c_proj/kernel"].shape == (512, 256)
