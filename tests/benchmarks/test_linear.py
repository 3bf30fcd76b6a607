"""The benchmark of the linear protocol: both sides reach the same losses."""

import numpy as np


def test_both_reach_the_same_losses(load_benchmark) -> None:
    benchmark = load_benchmark("linear")
    features, labels = benchmark.simulated(300, 16, 4)
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    rows = np.arange(250)
    solved, peers = benchmark.ours(features, labels, rows, 4), benchmark.theirs(features, labels, rows)
    for number, (l2, peer) in enumerate(zip(benchmark.PENALTIES, peers, strict=True)):
        kernel, bias = solved.kernel[0, number], solved.bias[0, number]
        mine = benchmark.objective(kernel, bias, features[rows], labels[rows], l2)
        assert mine <= 1.001 * benchmark.objective(peer.coef_.T, peer.intercept_, features[rows], labels[rows], l2)
