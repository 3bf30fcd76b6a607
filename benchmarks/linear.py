"""Time the linear protocol's grid beside scikit-learn's LogisticRegression, run per fit on all cores.

    python benchmarks/linear.py
    python benchmarks/linear.py --examples 5000 --dimensions 512 --classes 20

Features are simulated: standardized, with a power-law spectrum as a trained ResNet's; classes overlap. Each round is a
split: both fit every penalty on its training examples, one after the other and interleaved. Ours solves the penalties
of a split in one program with the default tolerance. scikit-learn has its default tolerance, too, with which it stops
above the minimum at weak penalties: the excess of both losses over one another is printed.
The last line is one JSON object; a ratio above 1 means that this project is ahead.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import jax
import numpy as np
from absl import flags
from measuring import ratio
from sklearn.linear_model import LogisticRegression

from vise_jax import cli
from vise_jax.config import LINEAR
from vise_jax.evaluation import logistic_regression

QUICK = flags.DEFINE_bool("quick", False, "Few examples and 2 splits: a smoke test.")
EXAMPLES = flags.DEFINE_integer("examples", None, "Number of examples; 20,000 by default.", 1)
DIMENSIONS = flags.DEFINE_integer("dimensions", None, "Number of features; 2,048 by default.", 1)
CLASSES = flags.DEFINE_integer("classes", None, "Number of classes; 100 by default.", 2)
SPLITS = flags.DEFINE_integer("splits", None, "Number of splits, one a round; 5 by default.", 1)
PENALTIES = np.geomspace(1e-6, 1e-1, 10)
# Exponent of the features' variances by rank: -1.85 was measured on the 128 features of a ResNet-18 that was trained
# on 12,000 CIFAR-10 images in simulated pairing with real posts.
_SPECTRUM = -1.85


def main(words: list[str]) -> None:
    cli.no_words(words)
    quick = QUICK.value
    count, dimensions = EXAMPLES.value or (1_500 if quick else 20_000), DIMENSIONS.value or (128 if quick else 2048)
    classes, splits = CLASSES.value or (10 if quick else 100), SPLITS.value or (2 if quick else 5)
    features, labels = simulated(count, dimensions, classes)
    rows = [np.sort(np.random.default_rng(seed).permutation(count)[: count * 7 // 10]) for seed in range(splits)]
    times: dict[str, list[float]] = {"vise_jax": [], "scikit-learn": []}
    above, converged, accuracies = [], 0, []
    ours(features, labels, rows[0], classes)  # compiles
    for train in rows:
        began = time.perf_counter()
        solved = ours(features, labels, train, classes)
        times["vise_jax"].append(time.perf_counter() - began)
        began = time.perf_counter()
        peers = theirs(features, labels, train)
        times["scikit-learn"].append(time.perf_counter() - began)
        test = np.setdiff1d(np.arange(count), train)
        converged += int(solved.converged[0].sum())
        for number, (l2, peer) in enumerate(zip(PENALTIES, peers, strict=True)):
            kernel, bias = np.asarray(solved.kernel[0, number]), np.asarray(solved.bias[0, number])
            losses = [
                objective(coefficients, intercept, features[train], labels[train], l2)
                for coefficients, intercept in ((kernel, bias), (peer.coef_.T, peer.intercept_))
            ]
            above.append(losses[0] / losses[1] - 1)
            predicted = [(features[test] @ kernel + bias).argmax(1), peer.predict(features[test])]
            accuracies.append([float(np.mean(one == labels[test])) for one in predicted])
        print(f"split: {times['vise_jax'][-1]:.1f} s, scikit-learn {times['scikit-learn'][-1]:.1f} s", flush=True)
    found = ratio(1 / np.array(times["vise_jax"]), 1 / np.array(times["scikit-learn"]))
    difference = np.diff(accuracies, axis=1)
    print(f"{found['median']:.2f} times scikit-learn ({found['low']:.2f} to {found['high']:.2f})")
    print(f"loss above scikit-learn's: at most {100 * max(above):+.3f}%, at least {100 * min(above):+.3f}%")
    print(f"accuracy: {100 * np.abs(difference).max():.2f} points apart at most; {converged} of {len(above)} converged")
    print(
        json.dumps(
            {
                "benchmark": "linear",
                "device": jax.devices()[0].device_kind,
                "ratios": {"scikit-learn": found},
                "examples": count,
                "dimensions": dimensions,
                "classes": classes,
                "penalties": len(PENALTIES),
                "splits": splits,
                "seconds": times,
                "largest_loss_above": max(above),
                "largest_accuracy_difference": float(np.abs(difference).max()),
                "accuracies": accuracies[: len(PENALTIES)],
                "converged": converged,
                "versions": {module: importlib.metadata.version(module) for module in ("jax", "scikit-learn")},
            }
        )
    )


def simulated(count: int, dimensions: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return standardized features, float32 [count, dimensions], and labels, int32 [count]."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, count).astype(np.int32)
    latent = random.standard_normal((count, dimensions), np.float32)
    latent += random.standard_normal((classes, dimensions), np.float32)[labels] / 4
    latent *= np.arange(1, dimensions + 1, dtype=np.float32) ** (_SPECTRUM / 2)
    rotation, _ = np.linalg.qr(random.standard_normal((dimensions, dimensions)))
    features = latent @ rotation.astype(np.float32)
    return ((features - features.mean(0)) / features.std(0)).astype(np.float32), labels


def ours(features: np.ndarray, labels: np.ndarray, rows: np.ndarray, classes: int) -> logistic_regression.Classifiers:
    """Fit every penalty on some rows; arrays as `logistic_regression.solve` returns them, on the host."""
    solved = logistic_regression.solve(
        features[rows][None],
        labels[rows][None],
        np.ones((1, len(rows)), np.float32),
        PENALTIES.astype(np.float32),
        classes=classes,
        iterations=1000,
        tolerance=LINEAR["tolerance"][0],
    )
    return logistic_regression.Classifiers(*map(np.asarray, solved))  # type: ignore[arg-type]


def theirs(features: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> list[LogisticRegression]:
    """Fit every penalty with scikit-learn, one after the other."""
    chosen, of_rows = features[rows], labels[rows]
    return [LogisticRegression(C=1 / (l2 * len(rows)), max_iter=1000).fit(chosen, of_rows) for l2 in PENALTIES]


def objective(kernel: np.ndarray, bias: np.ndarray, features: np.ndarray, labels: np.ndarray, l2: float) -> float:
    """Return the mean cross-entropy + l2 / 2 · ‖kernel‖², in float64."""
    scores = features.astype(np.float64) @ kernel.astype(np.float64) + bias
    scores -= scores.max(axis=1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    penalty = l2 / 2 * float((kernel.astype(np.float64) ** 2).sum())
    return float(-log_probabilities[np.arange(len(labels)), labels].mean()) + penalty


if __name__ == "__main__":
    cli.run(main, __doc__)
