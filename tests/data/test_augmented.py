"""Random resized crops: torchvision's law, and its fallback."""

import numpy as np
import pytest

from vise_jax.data.augmented import random_resized_crop_box

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def boxes(width: int, height: int, count: int, area=AREA, ratio=RATIO) -> np.ndarray:
    """Return `count` boxes, int64 [count, 4]."""
    random = np.random.default_rng(0)
    return np.array([random_resized_crop_box(width, height, area, ratio, random.random(40)) for _ in range(count)])


def test_boxes_are_inside_with_area_and_ratio_in_range():
    found = boxes(500, 375, 4000)
    left, top, right, bottom = found.T
    assert found.min() == 0
    assert right.max() <= 500
    assert bottom.max() <= 375
    widths, heights = right - left, bottom - top
    fractions = widths * heights / (500 * 375)
    assert fractions.min() == pytest.approx(0.08, abs=0.01)
    # Large boxes whose ratio doesn't fit are drawn again; without that the mean of a uniform law would be 0.54.
    assert fractions.mean() == pytest.approx(0.43, abs=0.02)
    assert 3 / 4 - 0.01 <= (widths / heights).min() < 0.78
    assert 1.29 < (widths / heights).max() <= 4 / 3 + 0.01
    # Places are uniform: as far from the left as from the right.
    assert np.mean(left) == pytest.approx(np.mean(500 - right), rel=0.1)
    assert np.mean(top) == pytest.approx(np.mean(375 - bottom), rel=0.1)


def test_the_logarithm_of_the_ratio_is_uniform():
    left, top, right, bottom = boxes(1000, 1000, 4000, area=(0.01, 0.02), ratio=(1 / 4, 4.0)).T
    quarters = np.histogram(np.log2((right - left) / (bottom - top)), [-2.1, -1, 0, 1, 2.1])[0] / 4000
    np.testing.assert_allclose(quarters, 0.25, atol=0.03)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        # The largest central box of ratio 4 / 3, of 3 / 4, and of an image whose own ratio is in the range.
        (1000, 30, (480, 0, 520, 30)),
        (30, 1000, (0, 480, 30, 520)),
        (40, 40, (0, 0, 40, 40)),
    ],
)
def test_the_largest_central_box_where_none_fits(width, height, expected):
    area = (1.0, 1.0) if width != height else (4.0, 4.0)
    assert tuple(boxes(width, height, 1, area)[0]) == expected
