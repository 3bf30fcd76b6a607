"""Linear classifiers against scikit-learn, and which of them is reported."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vise_jax import config as vise_config
from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation import heads, logistic_regression
from vise_jax.evaluation.protocols import linear
from vise_jax.evaluation.protocols.linear import LinearEvaluator
from vise_jax.evaluation.splits import Split


def blobs(count: int, dim: int, classes: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds that overlap: features float32 [N, D], labels int32 [N]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count).astype(np.int32)
    centers = random.normal(size=(classes, dim))
    return (centers[labels] + spread * random.normal(size=(count, dim))).astype(np.float32), labels


def dataset_of(labels: np.ndarray, classes: int) -> Dataset:
    names = tuple(f"{number:04d}" for number in range(len(labels)))
    return Dataset("blobs", names, labels, tuple("abcdefgh"[:classes]), None, None, None, "0", ())


def solve(features, labels, classes, l2, iterations=500, tolerance=1e-8, weights=None):
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    solved = logistic_regression.solve(
        features[None],
        labels[None],
        weights[None],
        np.array(l2, np.float32),
        classes=classes,
        iterations=iterations,
        tolerance=tolerance,
    )
    return logistic_regression.Classifiers(*(np.asarray(part)[0] for part in solved))


def objective_by_hand(kernel, bias, features, labels, l2) -> float:
    scores = features.astype(np.float64) @ kernel + bias
    scores -= scores.max(axis=1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return -log_probabilities[np.arange(len(labels)), labels].mean() + l2 / 2 * np.sum(kernel**2)


def scikit_learns(features, labels, classes, l2):
    # Two classes have one score in scikit-learn, and half the penalty then: the symmetric solution of ours.
    factor = 2 if classes == 2 else 1
    peer = LogisticRegression(C=factor / (l2 * len(labels)), tol=1e-8, max_iter=5000)
    peer.fit(features.astype(np.float64), labels)
    kernel, bias = peer.coef_.T, peer.intercept_
    if classes == 2:
        kernel, bias = np.concatenate([-kernel, kernel], 1) / 2, np.concatenate([-bias, bias]) / 2
    return peer, kernel, bias


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_every_penalty_reaches_scikit_learns_minimum(classes, scale):
    features, labels = blobs(400, 20, classes, spread=2.0)
    features[:, 3] *= scale
    penalties = [1.0, 1e-1, 1e-3, 1e-5]
    solved = solve(features, labels, classes, penalties)
    fresh, _ = blobs(1000, 20, classes, spread=2.0, seed=1)
    fresh[:, 3] *= scale
    for number, l2 in enumerate(penalties):
        peer, kernel, bias = scikit_learns(features, labels, classes, l2)
        expected = objective_by_hand(kernel, bias, features, labels, l2)
        ours = solved.kernel[number].astype(np.float64), solved.bias[number].astype(np.float64)
        assert objective_by_hand(*ours, features, labels, l2) == pytest.approx(expected, rel=1e-5)
        assert solved.loss[number] == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose(ours[0], kernel, atol=5e-3)
        assert np.mean((fresh @ ours[0] + ours[1]).argmax(1) == peer.predict(fresh)) >= 0.998
    assert solved.converged.all()


def test_separable_classes_reach_the_minimum_with_the_default_tolerance():
    """Losses are small there, so that a fixed bound on the gradient would stop far above the minimum."""
    features, labels = blobs(300, 60, 4, spread=1.0)
    penalties = [1e-2, 1e-4, 1e-6]
    solved = solve(features, labels, 4, penalties, tolerance=vise_config.evaluation().linear.tolerance)
    for number, l2 in enumerate(penalties):
        _, kernel, bias = scikit_learns(features, labels, 4, l2)
        assert solved.loss[number] <= 1.001 * objective_by_hand(kernel, bias, features, labels, l2)
    assert solved.loss[2] < 1e-3
    assert solved.converged.all()


def test_the_order_of_the_penalties_does_not_matter():
    features, labels = blobs(200, 10, 3, spread=2.0)
    ascending, descending = (solve(features, labels, 3, l2) for l2 in ([1e-4, 1e-2, 1.0], [1.0, 1e-2, 1e-4]))
    np.testing.assert_array_equal(ascending.kernel, descending.kernel[::-1])
    # Each starts at the minimum of the next stronger one.
    assert ascending.iterations[0] < solve(features, labels, 3, [1e-4]).iterations[0]


def test_the_curvature_follows_the_penalty():
    """On a quadratic, changes of the gradient are the Hessian times the steps, also after a penalty is added to it."""
    random = np.random.default_rng(0)
    steps = random.normal(size=(10, 6, 3)).astype(np.float32)
    hessian = np.diag(random.uniform(1, 2, 6)).astype(np.float32)
    changes = np.einsum("de,mek->mdk", hessian, steps)
    added = np.array([0.5] * 5 + [0.0], np.float32)[:, None]
    before = logistic_regression._Curvature(steps, changes, np.ones(10, np.float32), np.int32(10))
    after = logistic_regression._with_diagonal(before, added)
    expected = np.einsum("de,mek->mdk", hessian + np.diag(added[:, 0]), steps)
    np.testing.assert_allclose(after.changes, expected, rtol=1e-5)
    np.testing.assert_allclose(after.inverse, 1 / (steps * expected).sum((1, 2)), rtol=1e-5)


def test_padding_is_no_example():
    features, labels = blobs(200, 10, 3, spread=2.0)
    alone = solve(features[:150], labels[:150], 3, [1e-2])
    weights = (np.arange(200) < 150).astype(np.float32)
    padded = solve(features, labels, 3, [1e-2], weights=weights)
    np.testing.assert_allclose(padded.kernel, alone.kernel, atol=1e-4)
    np.testing.assert_allclose(padded.loss, alone.loss, rtol=1e-5)


def test_reports_which_fits_converged():
    features, labels = blobs(400, 20, 5, spread=2.0)
    solved = solve(features, labels, 5, [10.0, 1e-4], iterations=8, tolerance=1e-5)
    assert solved.converged.tolist() == [True, False]
    assert solved.iterations[0] < solved.iterations[1] == 8
    assert 8 < solve(features, labels, 5, [1e-4]).iterations[0] < 100


def test_more_dimensions_than_examples():
    features, labels = blobs(40, 100, 3, spread=3.0)
    solved = solve(features, labels, 3, [1e-2])
    _, kernel, bias = scikit_learns(features, labels, 3, 1e-2)
    assert solved.converged.all()
    assert solved.loss[0] == pytest.approx(objective_by_hand(kernel, bias, features, labels, 1e-2), rel=1e-4)


def test_standardization_looks_at_train_only():
    features = np.random.default_rng(0).normal(3, [1, 10, 0], size=(50, 3)).astype(np.float32)
    features[40:] += 100
    mean, scale = linear.statistics(features, np.arange(40))
    prepared = (features - mean) * scale
    np.testing.assert_allclose(prepared[:40].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(prepared[:40].std(axis=0), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(prepared[40:, 2], 100, atol=1e-4)


def evaluate(features, labels, classes, splits, *, l2=(1e-4, 1e-2, 1.0), refit=False, primary="accuracy"):
    dataset = dataset_of(labels, classes)
    evaluator = LinearEvaluator(
        lambda encoders: (features, dataset),
        lambda dataset: splits,
        primary=primary,
        refit=refit,
        l2=l2,
        iterations=300,
        tolerance=1e-7,
    )
    return evaluator, evaluator.run(None)


def thirds(count: int, seed: int = 0) -> Split:
    return Split(seed, *np.split(np.arange(count), 3))


def test_the_strongest_penalty_wins_a_tie():
    features, labels = blobs(300, 5, 3, spread=0.05)
    evaluator, values = evaluate(features, labels, 3, [thirds(300)])
    (outcome,) = evaluator.outcomes
    assert [row["validation"] for row in outcome.sweep] == [1.0, 1.0, 1.0]
    assert outcome.sweep[outcome.selected]["settings"] == {"l2": 1.0}
    assert values["accuracy"] == 1.0
    assert evaluator.selection()["grid"] == {"l2": [1.0, 1e-2, 1e-4]}


def test_validation_selects_and_test_has_no_say():
    # Noise features: a weak penalty overfits.
    features, labels = blobs(240, 60, 2, spread=6.0)
    evaluator, values = evaluate(features, labels, 2, [thirds(240)])
    (outcome,) = evaluator.outcomes
    best = max(row["validation"] for row in outcome.sweep)
    selected = outcome.sweep[outcome.selected]
    assert selected["validation"] == best
    assert selected["settings"]["l2"] == max(
        row["settings"]["l2"] for row in outcome.sweep if row["validation"] == best
    )
    assert selected["test"] == values["accuracy"]
    changed = labels.copy()
    changed[160:] = 1 - labels[160:]
    other, swapped = evaluate(features, changed, 2, [thirds(240)])
    assert other.outcomes[0].selected == outcome.selected
    assert swapped["accuracy"] == pytest.approx(1 - values["accuracy"])


def test_splits_that_are_solved_together_equal_those_that_are_solved_alone(monkeypatch):
    features, labels = blobs(300, 10, 4, spread=2.0)
    random = np.random.default_rng(0)
    parts = [random.permutation(300) for _ in range(3)]
    # Of different sizes.
    splits = [Split(n, order[: 150 + n], order[200:250], order[250:]) for n, order in enumerate(parts)]
    together, _ = evaluate(features, labels, 4, splits)
    monkeypatch.setattr(linear, "_MAX_BYTES", 1)
    alone, _ = evaluate(features, labels, 4, splits)
    for one, other in zip(together.outcomes, alone.outcomes, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_refit_uses_validation_for_the_reported_classifier():
    features, labels = blobs(300, 10, 3, spread=2.0)
    split = thirds(300)
    evaluator, _ = evaluate(features, labels, 3, [split], l2=[1e-2], refit=True)
    both = np.arange(200)
    mean, scale = linear.statistics(features, both)
    _, kernel, bias = scikit_learns((features[both] - mean) * scale, labels[both], 3, 1e-2)
    expected = heads.probabilities(heads.Head(kernel, bias, mean, scale), features[split.test])
    np.testing.assert_allclose(evaluator.outcomes[0].scores, expected, atol=2e-3)
    # The sweep is of classifiers that did not see validation.
    without, _ = evaluate(features, labels, 3, [split], l2=[1e-2])
    assert evaluator.outcomes[0].sweep == without.outcomes[0].sweep
    assert np.abs(evaluator.outcomes[0].scores - without.outcomes[0].scores).max() > 0.01


def test_a_head_is_read_as_it_was_written(tmp_path):
    random = np.random.default_rng(0)
    head = heads.Head(*(random.normal(size=shape).astype(np.float32) for shape in ((5, 3), 3, 5, 5)))
    heads.write(tmp_path / "head.safetensors", head)
    features = random.normal(size=(4, 5)).astype(np.float32)
    loaded = heads.read(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(heads.logits(loaded, features), heads.logits(head, features))
    expected = ((features - head.mean) * head.scale) @ head.kernel + head.bias
    np.testing.assert_allclose(heads.logits(head, features), expected, rtol=1e-5)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "break_it", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no head"), flip_a_bit]
)
def test_a_head_that_is_missing_or_damaged(break_it, tmp_path):
    path = tmp_path / "head.safetensors"
    heads.write(path, heads.Head(*(np.zeros(shape, np.float32) for shape in ((5, 3), 3, 5, 5))))
    break_it(path)
    with pytest.raises(UserError, match="holds no linear head: run evaluate"):
        heads.read(path)


def test_a_head_of_other_shapes(tmp_path):
    path = tmp_path / "head.safetensors"
    heads.write(path, heads.Head(*(np.zeros(shape, np.float32) for shape in ((5, 3), 4, 5, 5))))
    with pytest.raises(UserError, match="holds no linear head"):
        heads.read(path)
