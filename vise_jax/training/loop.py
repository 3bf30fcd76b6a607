"""The training loop: take steps, record metrics, evaluate, save checkpoints; for any task."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from vise_jax import artifact, hosts
from vise_jax.errors import UserError
from vise_jax.progress import Progress
from vise_jax.training import sharding
from vise_jax.training import state as train_state
from vise_jax.training.checkpoint import Checkpoints
from vise_jax.training.mirror import Mirror, MirroredCheckpoints
from vise_jax.training.optimizer import Rate
from vise_jax.training.sharding import Layout
from vise_jax.training.state import TrainState
from vise_jax.training.step import TrainStep, make_train_step
from vise_jax.training.task import Evaluator, Task
from vise_jax.training.timing import Clock, Trace
from vise_jax.training.writers import MetricsWriter

# Seconds after which a failed save is tried again.
_SECONDS_TO_RETRY = 60.0
# Columns of the signals that processes exchange with each step: a stop was requested, a checkpoint is due, and the
# number of corrupt examples found since the step before.
_STOP, _SAVE, _CORRUPT = range(3)

# Metrics that are finite if and only if loss, gradient and parameters are.
_NORMS = ("loss", "gradient_norm", "parameter_norm", "learning_rate")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of a run; the config keys of the same names have the defaults and their meaning.

    Args:
        steps: length of the run.
        seed: of the flips.
        corrupt_examples: returns the number of distinct corrupt examples that this process has found.
        check_corrupt: called on all processes alike with the number that they have found since the last call; raises
            UserError where a limit is passed.
    """

    steps: int
    seed: int
    checkpoint_every: int
    checkpoint_minutes: float
    keep_checkpoints: int
    log_every: int
    evaluate_every: int
    profile_steps: tuple[int, ...]
    corrupt_examples: Callable[[], int] = lambda: 0
    check_corrupt: Callable[[int], None] = lambda found: None


def fit(
    task: Task,
    optimizer: optax.GradientTransformation,
    rate: Rate,
    workdir: Path,
    settings: Settings,
    *,
    mesh: Mesh,
    layout: Layout,
    mirror: Mirror | None = None,
    start: str = "starting from scratch",
    make_step: Callable[..., TrainStep] = make_train_step,
) -> nnx.Module:
    """Train a task to its last step, resuming from the newest checkpoint in `workdir`.

    Every process calls it alike. On SIGTERM to any of them, all save the same step and exit with status 0.

    Args:
        task: model, data and loss.
        optimizer: of the trainable parameters.
        rate: its learning rate.
        workdir: the run directory.
        settings: length, intervals and limits.
        mesh: all devices.
        layout: how a batch is divided.
        mirror: of a run directory in an object store, whose copy on disk is `workdir`.
        start: for the log, where a new run starts from.
        make_step: makes the training step; called like `make_train_step`.

    Returns:
        The trained model, with merged batch statistics, on this process's first device.

    Raises:
        UserError: a loss, gradient or parameter is not finite, too many examples are corrupt, or the last state can't
            be saved.
    """
    model = task.build(layout.bn_group)
    keep = settings.keep_checkpoints
    with MirroredCheckpoints(mirror, keep) if mirror else Checkpoints(workdir, keep) as checkpoints:
        graphdef, state = train_state.create(model, optimizer, layout, task.trainable)
        state = jax.device_put(state, train_state.shardings(mesh, layout))
        done = 0
        if restored := checkpoints.restore(like=state):
            done, state = restored
            start = f"resuming from step {done:,}"
        if jax.process_index() == 0:
            _introduce(task, settings, layout, start if done < settings.steps else "nothing left to train")
        train_step = make_step(graphdef, task, optimizer, rate, seed=settings.seed, mesh=mesh, layout=layout)
        evaluators = task.evaluators(graphdef, mesh, layout)
        shown = mirror.remote if mirror else workdir
        loop = _Loop(task, workdir, shown, settings, mesh, layout, checkpoints, evaluators)
        state = loop.run(train_step, state, range(done, settings.steps))
    return nnx.merge(graphdef, train_state.on_one_device(state, mesh))


def _introduce(task: Task, settings: Settings, layout: Layout, start: str) -> None:
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    log.info(
        f"{start}: {settings.steps:,} steps of {layout.batch_size:,} examples out of {task.examples:,}, "
        f"on {layout.devices} x {jax.devices()[0].device_kind}{processes}, batch norm over {layout.bn_group:,}"
    )


class _Loop:
    """The steps of a run."""

    def __init__(
        self,
        task: Task,
        workdir: Path,
        shown: Path,
        settings: Settings,
        mesh: Mesh,
        layout: Layout,
        checkpoints: Checkpoints,
        evaluators: Iterable[Evaluator],
    ):
        self._task, self._workdir, self._shown, self._settings, self._mesh = task, workdir, shown, settings, mesh
        self._batch_size = layout.batch_size
        self._checkpoints, self._evaluators = checkpoints, tuple(evaluators)
        self._clock = Clock()
        self._last_save = time.monotonic()
        self._retry_at = float("inf")
        # Steps whose metrics are still on the devices: number, metrics, ids of this process's examples.
        self._pending: list[tuple[int, dict[str, jax.Array], np.ndarray]] = []
        self._stop = self._save_due = False
        self._all_finite = jax.jit(_all_finite, out_shardings=sharding.replicated(mesh))
        self._sent = settings.corrupt_examples()

    def run(self, train_step: TrainStep, state: TrainState, steps: range) -> TrainState:
        """Take the steps; `steps` has the number of steps done before each."""
        settings = self._settings
        batches = self._task.batches(steps.start, sharding.local_rows(self._mesh, self._batch_size))
        with (
            Trace(self._workdir, settings.profile_steps) as trace,
            hosts.sigterm() as stop_requested,
            MetricsWriter(self._workdir, steps.start, jax.process_index() == 0) as self._writer,
            self._bar(steps) as self._progress,
        ):
            self._recorded, self._last = steps.start, steps.stop
            for step in range(steps.start + 1, steps.stop + 1):
                trace.before(step)
                batch = self._clock.next(batches, self._idle)
                example_ids = batch.pop("example_id")
                control = sharding.put_batch(self._mesh, self._control(example_ids, stop_requested()))
                state, metrics = train_step(state, sharding.put_batch(self._mesh, batch), control)
                self._pending.append((step, metrics, example_ids))
                # The metrics of a step are read while the next one runs.
                self._read(keep=1)
                if step == steps.start + 1:
                    jax.block_until_ready(metrics)
                    self._log(f"first step after {self._clock.restart():,.1f} s")
                trace.after(step, state)
                last = step == steps.stop
                if self._evaluators and _due(step, settings.evaluate_every, last):
                    self._evaluate(step, state)
                if _due(step, settings.checkpoint_every, last) or self._stop or self._save_due:
                    self._save(step, state, last)
        return state

    def _bar(self, steps: range) -> Progress:
        size, quiet = self._batch_size, jax.process_index() > 0
        return Progress("training", steps.stop * size, "examples", done=steps.start * size, quiet=quiet)

    def _log(self, message: str) -> None:
        if jax.process_index() == 0:
            log.info(message)

    def _idle(self) -> bool:
        """Return whether the devices have nothing to do."""
        return all(metrics["loss"].is_ready() for _, metrics, _ in self._pending)  # type: ignore[attr-defined]

    def _control(self, example_ids: np.ndarray, stopping: bool) -> dict[str, np.ndarray]:
        """Return the control inputs of a step: which examples are corrupt, and this process's signals."""
        now, minutes = time.monotonic(), self._settings.checkpoint_minutes
        due = jax.process_index() == 0 and 0 < minutes * 60 <= now - self._last_save
        found = self._settings.corrupt_examples()
        signals = np.zeros((len(example_ids), 3), np.int32)
        signals[0] = stopping, due or now >= self._retry_at, found - self._sent
        self._sent = found
        return {"signals": signals, "corrupt": (example_ids == b"").astype(np.int32)}

    def _read(self, keep: int, evaluation: Mapping[str, float] | None = None) -> None:
        """Read, check and record the metrics of all steps but the newest `keep`.

        Args:
            keep: number of steps whose metrics stay on the devices.
            evaluation: results after the newest step, recorded with its metrics.
        """
        while len(self._pending) > keep:
            step, metrics, example_ids = self._pending.pop(0)
            values = {name: np.asarray(value) for name, value in metrics.items()}
            signals = values.pop("signals")
            self._stop |= bool(signals[_STOP])
            self._save_due |= bool(signals[_SAVE])
            record = {"loss": values.pop("loss").item()} | {name: value.item() for name, value in values.items()}
            self._check_finite(step, record, example_ids)
            if found := int(signals[_CORRUPT]):
                self._settings.check_corrupt(found)
            self._progress.advance(self._batch_size, f"loss {record['loss']:.4f}")
            with_evaluation = evaluation is not None and not self._pending
            if _due(step, self._settings.log_every, step == self._last) or with_evaluation:
                times = self._clock.measure(step - self._recorded, self._batch_size)
                self._writer.write(step, record | times | (dict(evaluation or {}) if with_evaluation else {}))
                self._recorded = step
                self._check_saves()

    def _evaluate(self, step: int, state: TrainState) -> None:
        # The newest step is checked first: a model that is not finite is not evaluated.
        for newest, metrics, example_ids in self._pending:
            self._check_finite(newest, {name: float(metrics[name]) for name in _NORMS}, example_ids)
        values: dict[str, float] = {}
        with self._clock.lost():
            for evaluator in self._evaluators:
                values |= evaluator.run(state)
        self._read(keep=0, evaluation=values)
        self._log(f"step {step:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def _save(self, step: int, state: TrainState, last: bool) -> None:
        """Start a save; wait for it where the run ends."""
        # All metrics are read and checked first, so that no checkpoint holds a state that is not finite.
        self._read(keep=0)
        if not self._all_finite(state.batch_stats):
            raise UserError(
                f"The batch statistics are not finite at step {step:,}: activations are too large. {self._kept()}; "
                "lower training.learning_rate and start in a new --workdir."
            )
        stopping = self._stop
        with self._clock.lost():
            self._checkpoints.save(step, state)
            if last or stopping:
                # Inside the block that catches SIGTERM: a second one would end the process during the save.
                self._checkpoints.wait()
        self._stop = self._save_due = False
        self._last_save, self._retry_at = time.monotonic(), float("inf")
        problem = self._check_saves()
        # All processes end alike.
        if (last or stopping) and np.any(hosts.gather(np.array([bool(problem)]))):
            raise UserError(
                f"Step {step:,} can't be saved ({problem or 'see the logs of the other processes'}): solve that, and "
                f"run the same command again; it resumes from step {self._checkpoints.latest() or 0:,}."
            )
        if stopping:
            self._log(f"SIGTERM: saved step {step:,}; the same command resumes from there.")
            sys.exit(0)

    def _check_saves(self) -> str:
        """Log a failed save and schedule another; return the reason."""
        if problem := self._checkpoints.problem():
            self._retry_at = time.monotonic() + _SECONDS_TO_RETRY
            self._log(
                f"A checkpoint could not be saved ({problem}): the run continues, and tries again in "
                f"{_SECONDS_TO_RETRY:.0f} s."
            )
        return problem

    def _check_finite(self, step: int, record: Mapping[str, float], example_ids: np.ndarray) -> None:
        wrong = [name for name, value in record.items() if not np.isfinite(value)]
        if not wrong:
            return
        path = self._workdir / hosts.of_process("nonfinite.json")
        ids = [example_id.decode("ascii", "replace") for example_id in example_ids]
        values = {name: value if np.isfinite(value) else str(value) for name, value in record.items()}
        artifact.write_text(path, json.dumps({"step": step, **values, "example_ids": ids}, indent=2) + "\n")
        epoch, first = divmod((step - 1) * self._batch_size, self._task.examples)
        raise UserError(
            f"{wrong[0]} is not finite at step {step:,} (loss {record['loss']:g}, gradient norm "
            f"{record['gradient_norm']:g}, learning rate {record['learning_rate']:g}), with the batch from example "
            f"{first:,} of epoch {epoch:,} on; {self._shown / path.name} lists its examples. {self._kept()}; lower "
            "training.learning_rate and start in a new --workdir."
        )

    def _kept(self) -> str:
        """Return which checkpoint a stopped run leaves, for a message."""
        self._checkpoints.wait()
        saved = self._checkpoints.latest()
        return f"Step {saved:,} is the last checkpoint" if saved else "No checkpoint was saved yet"


def _all_finite(tree: nnx.State) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)] or [jnp.array(True)]).all()


def _due(step: int, every: int, last: bool) -> bool:
    """Return whether an action with interval `every` (0 = never) is due after `step`; always after the last one."""
    return every > 0 and (last or step % every == 0)
