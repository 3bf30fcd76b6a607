import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vise_jax.evaluation import metrics
from vise_jax.evaluation.protocols import linear
from vise_jax.evaluation.splits import Split


def blobs(count: int, dim: int, classes: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds that overlap: features float32 [N, D], labels int32 [N]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count).astype(np.int32)
    centers = random.normal(size=(classes, dim))
    return (centers[labels] + spread * random.normal(size=(count, dim))).astype(np.float32), labels


def minimize(features, labels, classes, l2, iterations=500, tolerance=1e-6):
    start = linear.Classifier(jnp.zeros((features.shape[1], classes)), jnp.zeros(classes))
    return linear.minimize(start, jnp.asarray(features), jnp.asarray(labels), jnp.float32(l2), iterations, tolerance)


def objective_by_hand(kernel, bias, features, labels, l2) -> float:
    scores = features.astype(np.float64) @ kernel + bias
    scores -= scores.max(axis=1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return -log_probabilities[np.arange(len(labels)), labels].mean() + l2 / 2 * np.sum(kernel**2)


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
@pytest.mark.parametrize("classes", [2, 5])
def test_reaches_scikit_learns_minimum(classes, l2):
    features, labels = blobs(400, 20, classes, spread=2.0)
    classifier, _, converged = minimize(features, labels, classes, l2)
    theirs = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-8, max_iter=5000)
    # Two classes have one score in scikit-learn, and half the penalty then: the symmetric solution of ours.
    if classes == 2:
        theirs.set_params(C=2 / (l2 * len(labels)))
    theirs.fit(features.astype(np.float64), labels)
    kernel, bias = theirs.coef_.T, theirs.intercept_
    if classes == 2:
        kernel, bias = np.concatenate([-kernel, kernel], 1) / 2, np.concatenate([-bias, bias]) / 2
    expected = objective_by_hand(kernel, bias, features, labels, l2)
    reached = objective_by_hand(*(np.asarray(part, np.float64) for part in classifier), features, labels, l2)
    assert converged
    assert reached == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(classifier.kernel, kernel, atol=2e-3)
    fresh, _ = blobs(1000, 20, classes, spread=2.0, seed=1)
    assert np.mean(linear.predict(classifier, fresh) == theirs.predict(fresh)) >= 0.999


def test_the_objective_by_hand():
    features, labels = blobs(30, 4, 3, spread=1.0)
    random = np.random.default_rng(1)
    kernel, bias = random.normal(size=(4, 3)).astype(np.float32), random.normal(size=3).astype(np.float32)
    value = linear.objective(linear.Classifier(jnp.asarray(kernel), jnp.asarray(bias)), features, labels, 0.3)
    assert float(value) == pytest.approx(objective_by_hand(kernel, bias, features, labels, 0.3), rel=1e-5)


def test_says_when_it_did_not_converge():
    features, labels = blobs(400, 20, 5, spread=2.0)
    _, count, converged = minimize(features, labels, 5, 1e-4, iterations=3)
    assert count == 3
    assert not converged
    _, count, converged = minimize(features, labels, 5, 1e-4)
    assert 3 < count < 500
    assert converged


def test_standardize_looks_at_train_only():
    features = np.random.default_rng(0).normal(3, [1, 10, 0], size=(50, 3)).astype(np.float32)
    features[40:] += 100
    prepared = linear.standardize(features, np.arange(40))
    np.testing.assert_allclose(prepared[:40].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(prepared[:40].std(axis=0), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(prepared[40:, 2], 100, atol=1e-4)
    assert prepared.dtype == np.float32


def evaluate(features, labels, classes, split, l2=(1e-4, 1e-2, 1.0)):
    predicted, fitted = linear.fit_and_select(features, labels, classes, split, l2=l2, iterations=300, tolerance=1e-5)
    return {"test": metrics.accuracy(predicted, labels[split.test]), **fitted}


def test_the_penalty_is_chosen_on_validation_and_the_strongest_wins_a_tie():
    features, labels = blobs(300, 5, 3, spread=0.05)
    split = Split(0, np.arange(100), np.arange(100, 200), np.arange(200, 300))
    result = evaluate(features, labels, 3, split)
    assert [one["validation"] for one in result["sweep"]] == [1.0, 1.0, 1.0]
    assert result["l2"] == 1.0
    assert result["test"] == 1.0
    # Noise features: what was learned by heart with a weak penalty hurts on validation, and test has no say in it.
    features, labels = blobs(240, 60, 2, spread=6.0)
    split = Split(0, np.arange(80), np.arange(80, 160), np.arange(160, 240))
    result = evaluate(features, labels, 2, split)
    best = max(one["validation"] for one in result["sweep"])
    assert result["validation"] == best
    assert result["l2"] == max(one["l2"] for one in result["sweep"] if one["validation"] == best)
    labels_of_test_changed = labels.copy()
    labels_of_test_changed[160:] = 1 - labels[160:]
    other = evaluate(features, labels_of_test_changed, 2, split)
    assert other["sweep"] == result["sweep"]
    assert other["test"] == pytest.approx(1 - result["test"])


def test_the_sweep_matches_a_fresh_start():
    features, labels = blobs(300, 10, 4, spread=2.0)
    split = Split(0, np.arange(200), np.arange(200, 250), np.arange(250, 300))
    swept = evaluate(features, labels, 4, split)["sweep"]
    for one in swept:
        assert evaluate(features, labels, 4, split, l2=[one["l2"]])["validation"] == one["validation"]
        assert one["converged"]
