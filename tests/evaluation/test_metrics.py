import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from vise_jax.evaluation import metrics


def test_accuracy_equals_scikit_learns():
    predictions, labels = np.random.default_rng(0).integers(0, 3, (2, 101))
    assert metrics.accuracy(predictions, labels) == pytest.approx(accuracy_score(labels, predictions))


@pytest.mark.parametrize(("predictions", "labels"), [([], []), ([1], [1, 1]), ([[1]], [[1]])])
def test_accuracy_of_wrong_shapes_is_an_error(predictions, labels):
    with pytest.raises(ValueError, match="as many predictions as labels"):
        metrics.accuracy(np.array(predictions), np.array(labels))
