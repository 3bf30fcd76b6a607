"""The training loop: config and shards in, checkpoints, metrics and an encoder out."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vise_jax import artifact, models
from vise_jax import config as vise_config
from vise_jax.data import loader, shards
from vise_jax.data.records import CorruptExamples
from vise_jax.encoder import imagenet_preprocessing
from vise_jax.errors import UserError
from vise_jax.progress import Progress
from vise_jax.training import hosts, optimizer, run_dir, sharding
from vise_jax.training import state as train_state
from vise_jax.training.checkpoint import Checkpoints
from vise_jax.training.evaluators import Clock, Evaluation, Evaluator, Trace, changed_keys
from vise_jax.training.sharding import Layout
from vise_jax.training.state import TrainState
from vise_jax.training.step import make_train_step
from vise_jax.training.writers import MetricsWriter

# After a save that failed, another one is tried when so many seconds have passed.
_SECONDS_TO_RETRY = 60.0
# What a process tells the others with each batch: that it was asked to stop, and that a checkpoint is due.
_STOP, _SAVE = 0, 1


def train(config: ConfigDict, workdir: Path, evaluators: tuple[Evaluator, ...] = ()) -> Path:
    """Train as `config` says, going on where `workdir` left off, and export the encoder.

    Every process of a run calls it alike. On SIGTERM to any of them the run is saved and they end with status 0.

    Args:
        config: a diff of `vise_jax.config.base()`.
        workdir: the run folder; made if need be.
        evaluators: called every `training.evaluate_every` steps and at the end; their numbers go into the metrics.

    Returns:
        The folder of the exported encoder, `workdir/encoder`.

    Raises:
        UserError: wrong config or shards, a workdir of another experiment, a loss that is not finite, too many damaged
            examples, or a final state that can't be saved.
    """
    vise_config.validate(config)
    if not config.data.shards:
        raise UserError(
            "The config key data.shards is empty: say --config.data.shards=FOLDER, what label.py run wrote."
        )
    hosts.initialize(config.training)
    manifest = shards.read_manifest(Path(config.data.shards), damaged=True)
    if manifest["examples"] < config.training.batch_size:
        raise UserError(
            f"The shards {config.data.shards} hold {manifest['examples']:,} examples, fewer than a batch "
            f"(training.batch_size is {config.training.batch_size:,}): lower it, or label more posts."
        )
    steps = number_of_steps(config, manifest["examples"])
    architecture = describe_model(config, manifest["classes"])
    mesh = sharding.data_mesh()
    layout = sharding.layout(config, mesh.size)
    build = partial(models.build, **architecture, dtype=config.model.dtype, remat=config.training.remat)
    nnx.eval_shape(build)  # says what is wrong with the model before the folder is claimed
    layout = sharding.layout(
        config, mesh.size, run_dir.claim(workdir, config, manifest["fingerprint"], layout.bn_group)
    )

    model = cast(models.VisE, build(bn_group=layout.bn_group, seed=config.training.seed))
    with Checkpoints(workdir, config.training.keep_checkpoints) as checkpoints:
        begin = "starting from scratch"
        if config.training.init_from and checkpoints.latest() is None:
            folder = Path(config.training.init_from)
            run_dir.warm_start(model, folder, imagenet_preprocessing(config.data.image_size))
            begin = f"starting from the encoder {folder}"
        graphdef, state = train_state.create(model, optimizer.make(config.training, steps), layout)
        state = jax.device_put(state, train_state.shardings(mesh, layout))
        if restored := checkpoints.restore(like=state):
            state = restored[1]
            begin = f"going on after step {restored[0]:,}"
        done = restored[0] if restored else 0
        if jax.process_index() == 0:
            _introduce(config, manifest, layout, begin if done < steps else "nothing left to train", steps)
        bad = CorruptExamples(
            workdir / _mine("corrupt_examples.jsonl"), config.data.max_corrupt_fraction * manifest["examples"]
        )
        train_step = make_train_step(graphdef, config, steps, mesh, layout)
        evaluation = Evaluation(config, manifest, graphdef, mesh, layout, bad, evaluators)
        loop = _Loop(config, workdir, manifest, mesh, checkpoints, evaluation)
        state = loop.run(train_step, state, range(done, steps), bad)
    weights = train_state.on_one_device(state, mesh)
    return run_dir.export(workdir, config, architecture, manifest, nnx.merge(graphdef, weights))


def number_of_steps(config: ConfigDict, examples: int) -> int:
    """`training.steps`, or as many as `training.epochs` over so many examples take."""
    return config.training.steps or max(round(config.training.epochs * examples / config.training.batch_size), 1)


def describe_model(config: ConfigDict, classes: dict[str, int]) -> dict[str, Any]:
    """The arguments of `models.build` that the encoder will be described by: VisE with a head for each engagement.

    Args:
        config: the whole configuration.
        classes: the manifest's number of classes for each engagement.

    Raises:
        UserError: the shards have no labels for an engagement that is to be predicted.
    """
    for head in config.model.heads:
        if not classes.get(head):
            raise UserError(
                f"The config key model.heads names {head}, but the shards {config.data.shards} have no such labels: "
                "leave it out."
            )
    # What is left out decides how training computes, not what the encoder is.
    architecture = {key: value for key, value in config.model.items() if key not in ("heads", "bn_group", "dtype")}
    return architecture | {"heads": {head: classes[head] for head in config.model.heads}}


def _introduce(config: ConfigDict, manifest: dict[str, Any], layout: Layout, begin: str, steps: int) -> None:
    """Say what is about to happen."""
    for line in changed_keys(config):
        print(line, file=sys.stderr)
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    print(
        f"{begin}: {steps:,} steps of {config.training.batch_size:,} images out of {manifest['examples']:,}, "
        f"on {layout.devices} x {jax.devices()[0].device_kind}{processes}, batch norm over {layout.bn_group:,}",
        file=sys.stderr,
        flush=True,
    )


def _mine(name: str) -> str:
    """A file of this process: its number stands in the name, but for the first one."""
    index = jax.process_index()
    return name.replace(".", f"-{index}.") if index else name


class _Loop:
    """The steps of a run, with records, evaluations, checkpoints and a bar."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        manifest: dict[str, Any],
        mesh: Mesh,
        checkpoints: Checkpoints,
        evaluation: Evaluation,
    ):
        self._config, self._workdir, self._manifest, self._mesh = config, workdir, manifest, mesh
        self._checkpoints, self._evaluation = checkpoints, evaluation
        self._clock = Clock()
        self._last_save = time.monotonic()
        self._retry_at = float("inf")
        # Steps whose metrics are still on the devices: number, metrics, post ids of this process's examples.
        self._waiting: list[tuple[int, dict[str, jax.Array], np.ndarray]] = []
        self._told = np.zeros(2, int)

    def run(
        self,
        train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
        state: TrainState,
        steps: range,
        bad: CorruptExamples,
    ) -> TrainState:
        """Take the steps; `steps` are the numbers of steps done before each."""
        training = self._config.training
        batches = loader.batches(
            Path(self._config.data.shards),
            self._manifest,
            self._config.data,
            batch_size=training.batch_size,
            seed=training.seed,
            bad=bad,
            first_step=steps.start,
            rows=sharding.local_rows(self._mesh, training.batch_size),
        )
        trace = Trace(self._workdir, self._config.profile.steps)
        with (
            hosts.sigterm() as stop_asked,
            MetricsWriter(self._workdir, steps.start, jax.process_index() == 0) as self._writer,
            self._bar(steps) as self._progress,
        ):
            self._recorded, self._last = steps.start, steps.stop
            for step in range(steps.start + 1, steps.stop + 1):
                trace.before(step)
                batch = self._clock.next(batches, self._idle)
                post_ids = batch.pop("post_id")
                batch |= self._tell(post_ids, stop_asked())
                state, metrics = train_step(state, sharding.put_batch(self._mesh, batch))
                self._waiting.append((step, metrics, post_ids))
                # The metrics of a step are read while the next one runs.
                self._read(keep=1)
                if step == steps.start + 1:
                    jax.block_until_ready(metrics)
                    self._progress.print(f"first step after {self._clock.restart():,.1f} s")
                trace.after(step, state)
                last = step == steps.stop
                if self._evaluation and _due(step, training.evaluate_every, last):
                    self._evaluate(step, state)
                if _due(step, training.checkpoint_every, last) or self._told.any():
                    self._save(step, state, last)
        return state

    def _bar(self, steps: range) -> Progress:
        size = self._config.training.batch_size
        quiet = jax.process_index() > 0
        return Progress("training", steps.stop * size, "images", done=steps.start * size, quiet=quiet)

    def _idle(self) -> bool:
        """Whether the devices have nothing to do."""
        return all(
            metrics["loss"].is_ready()  # type: ignore[attr-defined]
            for _, metrics, _ in self._waiting
        )

    def _tell(self, post_ids: np.ndarray, stopping: bool) -> dict[str, np.ndarray]:
        """What goes with a batch beside its examples: which are damaged, and what this process has to say."""
        now, minutes = time.monotonic(), self._config.training.checkpoint_minutes
        due = jax.process_index() == 0 and 0 < minutes * 60 <= now - self._last_save
        signals = np.zeros((len(post_ids), 2), np.int32)
        signals[0] = stopping, due or now >= self._retry_at
        return {"signals": signals, "bad": (post_ids == b"").astype(np.int32)}

    def _read(self, keep: int, found: Mapping[str, float] | None = None) -> None:
        """Read the metrics of all steps but the newest `keep`, and write them down where they are due.

        Args:
            keep: how many stay on the devices.
            found: what an evaluation after the newest step found; it is written with that step's.
        """
        while len(self._waiting) > keep:
            step, metrics, post_ids = self._waiting.pop(0)
            values = {name: np.asarray(value) for name, value in metrics.items()}
            self._told += values.pop("signals")
            record = {"loss": values.pop("loss").item()} | {name: value.item() for name, value in values.items()}
            if not np.isfinite(record["loss"]):
                raise UserError(self._diverged(step, record, post_ids))
            self._progress.advance(self._config.training.batch_size, f"loss {record['loss']:.4f}")
            with_evaluation = found is not None and not self._waiting
            if _due(step, self._config.training.log_every, step == self._last) or with_evaluation:
                times = self._clock.measure(step - self._recorded, self._config.training.batch_size)
                self._writer.write(step, record | times | (dict(found or {}) if with_evaluation else {}))
                self._recorded = step
                self._look_at_saves()

    def _evaluate(self, step: int, state: TrainState) -> None:
        """Evaluate, and write what was found into the record of this step."""
        jax.block_until_ready(state.step)
        with self._clock.lost():
            found = self._evaluation(state)
        self._read(keep=0, found=found)
        self._progress.print(f"step {step:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
        if self._config.training.keep_best and "validation_loss" in found:
            with self._clock.lost():
                self._checkpoints.save_best(step, state, found["validation_loss"])

    def _save(self, step: int, state: TrainState, last: bool) -> None:
        """Start a save; where the run ends here, see it through."""
        # All metrics are read before, so that no checkpoint holds a state that has diverged.
        self._read(keep=0)
        stopping = bool(self._told[_STOP])
        with self._clock.lost():
            self._checkpoints.save(step, state)
            if last or stopping:
                # Within the block that catches SIGTERM: a second one would end the process, and the save with it.
                self._checkpoints.wait()
        self._told[:] = 0
        self._last_save, self._retry_at = time.monotonic(), float("inf")
        problem = self._look_at_saves()
        if problem and (last or stopping):
            raise UserError(
                f"Step {step:,} can't be saved ({problem}): mend that, and run the same command again; it goes on from "
                f"step {self._checkpoints.latest() or 0:,}."
            )
        if stopping:
            self._progress.print(f"SIGTERM: saved step {step:,}; the same command goes on from there.")
            sys.exit(0)

    def _look_at_saves(self) -> str:
        """Say so when a save has failed, and have another one tried; returns why."""
        if problem := self._checkpoints.problem():
            self._retry_at = time.monotonic() + _SECONDS_TO_RETRY
            self._progress.print(
                f"A checkpoint could not be saved ({problem}): the run goes on, and tries again in "
                f"{_SECONDS_TO_RETRY:.0f} s."
            )
        return problem

    def _diverged(self, step: int, record: Mapping[str, float], post_ids: np.ndarray) -> str:
        """Write down what the step's batch was; returns the sentence."""
        path = self._workdir / _mine("nonfinite.json")
        batch = {"step": step, **record, "post_ids": [post_id.decode("ascii", "replace") for post_id in post_ids]}
        artifact.write_text(path, json.dumps(batch, indent=2) + "\n")
        terms = ", ".join(f"{name} {value:g}" for name, value in record.items() if name.startswith("loss"))
        saved = self._checkpoints.latest()
        kept = f"step {saved:,} is the last checkpoint" if saved else "no checkpoint was saved yet"
        size = self._config.training.batch_size
        epoch, first = divmod((step - 1) * size, self._manifest["examples"])
        return (
            f"The loss is not finite at step {step:,} ({terms}; learning rate {record['learning_rate']:g}), with the "
            f"batch from example {first:,} of epoch {epoch:,} on, whose posts {path} names: {kept}; lower "
            "training.learning_rate and start in a new --workdir."
        )


def _due(step: int, every: int, last: bool) -> bool:
    """Whether something that is done every so many steps (0 = never), and at the last one, is done after this one."""
    return every > 0 and (last or step % every == 0)
