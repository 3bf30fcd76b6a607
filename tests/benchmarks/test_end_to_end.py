"""The turns of the end-to-end benchmark."""

import pytest


class _Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_a_bare_turn_follows_each_turn_of_the_loop(load_benchmark, monkeypatch) -> None:
    benchmark, clock, taken = load_benchmark("end_to_end"), _Clock(), []
    monkeypatch.setattr(benchmark, "time", clock)

    def train_step(state, batch, control):
        taken.append(batch)
        clock.now += 2.0
        return state + 1, {}

    turns = benchmark.Turns(train_step, 4)
    skipped, state = benchmark._SKIPPED, 0
    for number in range(2 * (skipped + 4) + 1):
        clock.now += 0.5  # the loop reads a batch
        state, _ = turns(state, number, None)
    # Reading the batch after a turn is a part of it, as that of its first step is not.
    assert turns.whole == [pytest.approx(4 * 2.5)] * 2
    assert turns.bare == [pytest.approx(4 * 2.0)] * 2
    # Bare steps repeat a batch, and every batch of the loop has its own step.
    assert state == len(taken) == 2 * (skipped + 4) + 1 + 2 * 4
    assert sorted(set(taken)) == list(range(2 * (skipped + 4) + 1))
    assert taken.count(skipped + 4) == 1 + 4
