"""Metrics against scikit-learn and cases worked by hand; bootstrap replicates against drawing the examples."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from vise_jax.evaluation import metrics


def drawn(count: int, classes: int, seed: int = 0, decimals: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that say something about the labels; with few decimals, many ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.round(decimals), labels


@pytest.mark.parametrize("decimals", [8, 1])
def test_two_classes_against_scikit_learn(decimals):
    scores, labels = drawn(103, 2, decimals=decimals)
    difference = scores[:, 1] - scores[:, 0]
    assert metrics.accuracy(scores, labels) == sklearn_metrics.accuracy_score(labels, scores.argmax(axis=1))
    assert metrics.roc_auc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, difference))
    both = np.mean([sklearn_metrics.roc_auc_score(labels == label, scores[:, label]) for label in (0, 1)])
    assert metrics.roc_auc(scores, labels) == pytest.approx(both)
    expected = sklearn_metrics.average_precision_score(labels, difference)
    assert metrics.average_precision(scores, labels) == pytest.approx(expected)


@pytest.mark.parametrize("decimals", [8, 1])
def test_many_classes_against_scikit_learn(decimals):
    scores, labels = drawn(200, 5, decimals=decimals)
    scores[:, 4] += 1 - scores.sum(axis=1)  # scikit-learn requires that rows sum to 1
    expected = sklearn_metrics.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert metrics.roc_auc(scores, labels) == pytest.approx(expected)
    expected = sklearn_metrics.average_precision_score(np.eye(5)[labels], scores, average="macro")
    assert metrics.average_precision(scores, labels) == pytest.approx(expected)
    assert metrics.confusion(scores, labels) == sklearn_metrics.confusion_matrix(labels, scores.argmax(1)).tolist()


def test_ties_and_a_missing_class_by_hand():
    scores = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    labels = np.array([0, 1, 1, 0])
    # Class 0: 0.5 ties with a negative (half a win) and beats 0.1; 0.2 loses to 0.5 and beats 0.1: 2.5 of 4 pairs.
    # Class 1: 0.3 ties with both negatives, 0.8 beats both: 3 of 4. No example of class 2.
    assert metrics.roc_auc(scores, labels) == pytest.approx((2.5 / 4 + 3 / 4) / 2)
    # Class 0: at 0.5 one of two, at 0.2 two of three. Class 1: at 0.8 one of one, at 0.3 two of four.
    assert metrics.average_precision(scores, labels) == pytest.approx(((1 / 2 + 2 / 3) / 2 + (1 + 1 / 2) / 2) / 2)
    assert metrics.accuracy(scores, labels) == 0.5
    assert metrics.confusion(scores, labels) == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_one_class_alone_has_an_accuracy_and_no_curves():
    scores, _ = drawn(10, 3)
    assert metrics.compute(scores, np.zeros(10, int)).keys() == {"accuracy", "calibration_error"}
    assert metrics.compute(scores, np.zeros(10, int), probabilities=False).keys() == {"accuracy"}
    with pytest.raises(ValueError, match="two classes"):
        metrics.roc_auc(scores, np.zeros(10, int))


def test_the_calibration_error_by_hand():
    # Bins of width 1/15: 0.6 is the upper edge of the ninth, 0.61 is in the tenth, 1.0 in the last.
    probabilities = np.array([[0.6, 0.4], [0.61, 0.39], [0.62, 0.38], [1.0, 0.0]])
    labels = np.array([0, 1, 0, 1])
    expected = (abs(1 - 0.6) + abs((0 - 0.61) + (1 - 0.62)) + abs(0 - 1.0)) / 4
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("decimals", [8, 1])
def test_replicates_are_the_metrics_of_drawn_examples(classes, decimals):
    scores, labels = drawn(60, classes, decimals=decimals)
    replicates = metrics.bootstrap(scores, labels, replicates=20, seed=3)
    weights = metrics._draws(60, range(20), 3)
    assert (weights.sum(axis=1) == 60).all()
    for replicate in range(20):
        rows = np.repeat(np.arange(60), weights[replicate].astype(int))
        for name, value in metrics.compute(scores[rows], labels[rows]).items():
            assert replicates[name][replicate] == pytest.approx(value), name


def test_replicates_without_a_second_class_have_no_curves():
    scores = np.eye(2)[[0] * 9 + [1]]
    replicates = metrics.bootstrap(scores, np.array([0] * 9 + [1]), replicates=500)
    assert np.isnan(replicates["roc_auc"]).mean() == pytest.approx(0.9**10, abs=0.06)
    assert metrics.interval(replicates["roc_auc"]) == metrics.interval(replicates["average_precision"]) == (1, 1)
    assert np.isfinite(replicates["accuracy"]).all()


def test_replicates_do_not_depend_on_the_block_size(monkeypatch):
    scores, labels = drawn(50, 3)
    at_once = metrics.bootstrap(scores, labels, replicates=30)
    monkeypatch.setattr(metrics, "_MAX_ELEMENTS", 350)
    for name, values in metrics.bootstrap(scores, labels, replicates=30).items():
        np.testing.assert_array_equal(values, at_once[name])


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    labels = np.zeros(400, int)
    scores = np.zeros((400, 2))
    scores[:, 1] = np.arange(400) < 120
    low, high = metrics.interval(metrics.bootstrap(scores, labels, replicates=2000)["accuracy"])
    deviation = np.sqrt(0.7 * 0.3 / 400)
    assert low == pytest.approx(0.7 - 1.96 * deviation, abs=0.006)
    assert high == pytest.approx(0.7 + 1.96 * deviation, abs=0.006)


@pytest.mark.parametrize(("scores", "labels"), [((0, 2), (0,)), ((3, 2), (2,)), ((3,), (3,))])
def test_shapes_are_checked(scores, labels):
    with pytest.raises(ValueError, match="metrics need scores"):
        metrics.accuracy(np.zeros(scores), np.zeros(labels, int))
