"""Predictions beside a result, and paired comparisons of encoders."""

import numpy as np
import pytest

from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.evaluation import predictions
from vise_jax.evaluation.outcomes import Outcome
from vise_jax.evaluation.splits import Split

LABELS = np.random.default_rng(0).integers(0, 3, 200).astype(np.int32)
NAMES = tuple(f"{number:03d}.jpg" for number in range(200))
DATASET = Dataset("d", NAMES, LABELS, ("a", "b", "c"), None, None, None, "0", ())


def write(path, accuracy: float, seed: int = 1, splits: int = 2):
    random = np.random.default_rng(seed)
    outcomes = []
    for number in range(splits):
        test = np.arange(100) + 50 * number
        right = random.random(100) < accuracy
        predicted = np.where(right, LABELS[test], (LABELS[test] + 1) % 3)
        scores = (0.8 * np.eye(3)[predicted] + 0.2 / 3).astype(np.float32)
        outcomes.append(Outcome(Split(number, np.arange(5), np.arange(5), test), scores, [], 0))
    predictions.write(path, outcomes, DATASET)
    return outcomes


def test_a_round_trip(tmp_path):
    outcomes = write(tmp_path / "a.npz", 0.7)
    for outcome, read in zip(outcomes, predictions.read(tmp_path / "a.npz"), strict=True):
        np.testing.assert_array_equal(read.scores, outcome.scores)
        assert read.names == [NAMES[row] for row in outcome.split.test]
        assert (read.seed, read.probabilities) == (outcome.split.seed, True)
        np.testing.assert_array_equal(read.labels, LABELS[outcome.split.test])


def test_a_paired_comparison(tmp_path):
    one, other = write(tmp_path / "a.npz", 0.9, seed=1), write(tmp_path / "b.npz", 0.6, seed=2)
    compared = predictions.compare(tmp_path / "a.npz", tmp_path / "b.npz", "accuracy")
    right = [[np.mean(o.scores.argmax(1) == LABELS[o.split.test]) for o in outcomes] for outcomes in (one, other)]
    assert compared.difference == pytest.approx(np.mean(right[0]) - np.mean(right[1]))
    assert 0 < compared.low < compared.difference < compared.high
    # Pairing: equal predictions differ in no replicate.
    assert predictions.compare(tmp_path / "a.npz", tmp_path / "a.npz", "accuracy") == (0, 0, 0)
    reverse = predictions.compare(tmp_path / "b.npz", tmp_path / "a.npz", "accuracy")
    assert reverse.difference == pytest.approx(-compared.difference)


def test_what_cannot_be_compared(tmp_path):
    write(tmp_path / "a.npz", 0.9)
    write(tmp_path / "b.npz", 0.9, splits=1)
    with pytest.raises(UserError, match="have different splits"):
        predictions.compare(tmp_path / "a.npz", tmp_path / "b.npz", "accuracy")
    with pytest.raises(UserError, match="don't both have the metric 'f1'"):
        predictions.compare(tmp_path / "a.npz", tmp_path / "a.npz", "f1")
    (tmp_path / "c.npz").write_bytes(b"no predictions")
    with pytest.raises(UserError, match="holds no predictions"):
        predictions.read(tmp_path / "c.npz")
