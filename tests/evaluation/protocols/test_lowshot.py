"""Low-shot ridge regression against scikit-learn, and how its examples are drawn."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation.protocols import lowshot
from vise_jax.evaluation.splits import Split


@pytest.mark.parametrize(("count", "dim"), [(12, 30), (60, 7), (20, 20)])
def test_ridge_is_scikit_learns(count, dim):
    random = np.random.default_rng(0)
    train, targets = random.normal(2, 1, size=(count, dim)), random.normal(size=(count, 3))
    others = [random.normal(2, 1, size=(5, dim)), random.normal(size=(8, dim))]
    penalties = [1e-3, 1.0, 50.0]
    predicted = lowshot.ridge(train, targets, others, penalties)
    for number, l2 in enumerate(penalties):
        peer = Ridge(alpha=l2 * count).fit(train, targets)
        for features, ours in zip(others, predicted, strict=True):
            np.testing.assert_allclose(ours[number], peer.predict(features), atol=1e-7)


def test_shots_are_nested_and_of_train_only():
    labels = np.random.default_rng(0).integers(0, 3, 100)
    rows = np.arange(0, 100, 2)
    few, more = (lowshot.draw_shots(rows, labels, 3, shots, seed=5) for shots in (2, 8))
    assert set(few) < set(more) <= set(rows)
    assert np.bincount(labels[more]).tolist() == [8, 8, 8]
    assert not np.array_equal(few, lowshot.draw_shots(rows, labels, 3, 2, seed=6))


def evaluator(shots=(1, 4), draws=3):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 60).astype(np.int32)
    features = (np.eye(3, 8)[labels] * 3 + random.normal(size=(180, 8))).astype(np.float32)
    names = tuple(f"{number:03d}" for number in range(180))
    dataset = Dataset("blobs", names, labels, ("a", "b", "c"), None, None, None, "0", ())
    order = random.permutation(180)
    split = Split(0, np.sort(order[:90]), np.sort(order[90:120]), np.sort(order[120:]))
    return lowshot.LowShotEvaluator(
        lambda encoders: (features, dataset),
        lambda dataset: [split],
        primary="accuracy",
        shots=shots,
        draws=draws,
        l2=[1e-2, 1.0],
    )


def test_each_number_of_shots_has_its_metrics():
    measured = evaluator()
    values = measured.run(None)
    assert {"accuracy_1shot", "accuracy_4shot", "roc_auc_4shot", "majority_accuracy_1shot"} <= values.keys()
    # Scores of a ridge regression are no probabilities.
    assert not any("calibration" in name for name in values)
    assert 0.4 < values["accuracy_1shot"] < values["accuracy_4shot"]
    assert len(measured.outcomes) == 6
    assert [len(outcome.split.train) for outcome in measured.outcomes] == [3] * 3 + [12] * 3
    assert measured.selection()["grid"] == {"shots": [1, 4], "l2": [1.0, 1e-2]}


def test_too_few_examples_of_a_class():
    with pytest.raises(
        UserError, match=r"The class . of blobs has \d+ training examples, fewer than the 50 of lowshot"
    ):
        evaluator(shots=(50,)).run(None)
