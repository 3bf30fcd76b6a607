"""What is said of a run: where its time goes, which keys are its own."""

import time

import pytest

from vise_jax import config as vise_config
from vise_jax.training import pretrain, timing


class Watch:
    """A clock that the test sets."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_time_is_steps_data_and_the_rest(monkeypatch):
    watch = Watch(monkeypatch)
    clock = timing.Clock()
    watch.now += 30  # the first step compiles
    assert clock.restart() == 30

    def batches():
        while True:
            watch.now += 1
            yield "batch"

    source = batches()
    assert clock.next(source, idle=lambda: False) == "batch"  # the devices were busy meanwhile
    clock.next(source, idle=lambda: True)
    watch.now += 4
    with clock.lost():
        watch.now += 2
    values = clock.measure(steps=2, images=8)
    # 8 seconds: one of them lost on data, two on a save.
    assert values == {"images_per_second": 2.0, "step_seconds": 3.0, "data_seconds": 0.5, "goodput": 0.625}
    watch.now += 8
    values = clock.measure(steps=4, images=8)
    assert values == {"images_per_second": 4.0, "step_seconds": 2.0, "data_seconds": 0.0, "goodput": 0.8125}


def test_keys_that_differ_from_their_defaults_are_named():
    config = vise_config.base()
    assert pretrain.changed_keys(config) == []
    config.training.steps, config.model.heads = 7, ("comments",)
    assert pretrain.changed_keys(config) == [
        "model.heads = ('comments',) (default ('comments', 'reactions'))",
        "training.steps = 7 (default None)",
    ]


@pytest.mark.parametrize(("steps", "expected"), [((), []), ((3, 4), ["start", 4])])
def test_a_trace_covers_the_steps_that_were_named(monkeypatch, tmp_path, steps, expected):
    seen = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda directory: seen.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: seen.append(step))
    trace = timing.Trace(tmp_path, steps)
    for step in range(1, 8):
        trace.before(step)
        trace.after(step, 0)
    assert seen == expected


@pytest.mark.parametrize(("first", "last"), [(1, 4), (4, 7)])
def test_a_trace_ends_with_a_run_and_begins_in_a_resumed_one(monkeypatch, tmp_path, first, last):
    seen = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda directory: seen.append(("start", step)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: seen.append(("stop", step)))
    with timing.Trace(tmp_path, (3, 6)) as trace:
        for step in range(first, last + 1):
            trace.before(step)
            trace.after(step, 0)
    assert seen == [("start", max(3, first)), ("stop", min(6, last))]
