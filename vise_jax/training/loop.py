"""The training loop: config and shards in, checkpoints, metrics and an encoder out."""

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

import vise_jax
from vise_jax import artefact, models
from vise_jax import config as vise_config
from vise_jax.data import pretraining, shards
from vise_jax.encoder import Encoder, imagenet_preprocessing
from vise_jax.errors import UserError
from vise_jax.progress import Progress
from vise_jax.training import optimizer, sharding
from vise_jax.training import state as train_state
from vise_jax.training.checkpoint import Checkpoints
from vise_jax.training.step import TrainStep, make_train_step
from vise_jax.training.writers import MetricsWriter

_FORMAT_VERSION = 1
# Keys that may change when a run goes on: they don't change what is computed. The shards are known by fingerprint,
# and what is in `labels` has become part of them.
_FREE_KEYS = frozenset({"data.shards", "data.threads", "training.checkpoint_every", "training.keep_checkpoints"})


def train(config: ConfigDict, workdir: Path) -> Path:
    """Train as `config` says, going on where `workdir` left off, and export the encoder.

    On SIGTERM the run is saved and the process ends with status 0.

    Args:
        config: a diff of `vise_jax.config.base()`.
        workdir: the run folder; made if need be.

    Returns:
        The folder of the exported encoder, `workdir/encoder`.

    Raises:
        UserError: wrong config or shards, a workdir of another experiment, or a loss that is not finite.
    """
    vise_config.validate(config)
    if not config.data.shards:
        raise UserError(
            "The config key data.shards is empty: say --config.data.shards=FOLDER, what label.py run wrote."
        )
    manifest = shards.read_manifest(Path(config.data.shards))
    mesh = sharding.data_mesh(config.training.batch_size)
    steps = number_of_steps(config, manifest["examples"])
    architecture, group = describe_model(config, manifest["classes"]), bn_group(config, devices=mesh.size)
    build = partial(models.build, **architecture, bn_group=group, seed=config.training.seed)
    nnx.eval_shape(build)  # says what is wrong with the model before the folder is claimed
    _claim(workdir, config, manifest["fingerprint"])

    graphdef, state = train_state.create(build(), optimizer.sgd(config.training, steps))
    state = jax.device_put(state, sharding.replicated(mesh))
    with Checkpoints(workdir, config.training.keep_checkpoints) as checkpoints:
        done = checkpoints.latest() or 0
        if done:
            state = checkpoints.restore(done, like=state)
        begin = f"going on after step {done:,}" if done else "starting from scratch"
        print(
            f"{begin if done < steps else 'nothing left to train'}: {steps:,} steps of "
            f"{config.training.batch_size:,} images out of {manifest['examples']:,}, "
            f"on {mesh.size} x {jax.devices()[0].device_kind}",
            file=sys.stderr,
        )
        train_step = make_train_step(graphdef, config, steps, mesh)
        state = _run_steps(config, workdir, manifest, mesh, train_step, state, checkpoints, range(done, steps))
    return _export(workdir, config, architecture, manifest, nnx.merge(graphdef, state.params, state.batch_stats))


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
    architecture = {key: value for key, value in config.model.items() if key not in ("heads", "bn_group")}
    return architecture | {"heads": {head: classes[head] for head in config.model.heads}}


def bn_group(config: ConfigDict, devices: int) -> int:
    """How many examples share batch statistics: `model.bn_group`, or those on one device.

    Raises:
        UserError: the groups don't fill the batch.
    """
    batch_size, group = config.training.batch_size, config.model.bn_group
    group = batch_size // devices if group is None else group
    if group and batch_size % group:
        raise UserError(f"The config key model.bn_group is {group}, but must divide training.batch_size, {batch_size}.")
    return group


def _run_steps(
    config: ConfigDict,
    workdir: Path,
    manifest: dict[str, Any],
    mesh: Mesh,
    train_step: TrainStep,
    state: train_state.TrainState,
    checkpoints: Checkpoints,
    steps: range,
) -> train_state.TrainState:
    """Take the steps, with records, checkpoints and a bar; `steps` are the numbers of steps done before each."""
    batch_size = config.training.batch_size
    batches = pretraining.batches(
        Path(config.data.shards),
        manifest,
        config.data,
        batch_size=batch_size,
        seed=config.training.seed,
        first_step=steps.start,
    )
    last_record = (steps.start, time.monotonic())

    def record(step: int, metrics: dict[str, jax.Array]) -> None:
        nonlocal last_record
        values = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite(values["loss"]):
            raise UserError(_diverged(step, values, checkpoints.latest()))
        bar.advance(batch_size, f"loss {values['loss']:.4f}")
        if step % config.training.log_every == 0 or step == steps.stop:
            now = time.monotonic()
            rate = (step - last_record[0]) * batch_size / (now - last_record[1])
            writer.write(step, {"loss": values.pop("loss"), **values, "images_per_second": round(rate, 2)})
            last_record = (step, now)

    with (
        _sigterm() as stop_asked,
        MetricsWriter(workdir, steps.start) as writer,
        Progress("training", steps.stop * batch_size, "images", done=steps.start * batch_size) as bar,
    ):
        waiting: list[tuple[int, dict[str, jax.Array]]] = []
        for step in range(steps.start + 1, steps.stop + 1):
            batch = next(batches)
            del batch["post_id"]
            state, metrics = train_step(state, sharding.put_batch(mesh, batch))
            waiting.append((step, metrics))
            stopping = stop_asked()
            saving = step % config.training.checkpoint_every == 0 or step == steps.stop or stopping
            # The metrics of a step are read while the next one runs; all of them before a checkpoint, so that none
            # holds a state that has diverged.
            while len(waiting) > (0 if saving else 1):
                record(*waiting.pop(0))
            if saving:
                checkpoints.save(step, state)
            if stopping:
                # Here, where a second SIGTERM doesn't end the process: a save would be lost with it.
                checkpoints.wait()
                bar.print(f"SIGTERM: saved step {step:,}; the same command goes on from there.")
                sys.exit(0)
    return state


def _diverged(step: int, metrics: dict[str, float], saved: int | None) -> str:
    terms = ", ".join(f"{name} {value:g}" for name, value in metrics.items() if name.startswith("loss"))
    kept = f"step {saved:,} is the last checkpoint" if saved else "no checkpoint was saved yet"
    return (
        f"The loss is not finite at step {step:,} ({terms}; learning rate {metrics['learning_rate']:g}): {kept}; "
        "lower training.learning_rate and start in a new --workdir."
    )


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has come; it no longer ends the process at once."""
    asked = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)


def _claim(workdir: Path, config: ConfigDict, shards_fingerprint: str) -> None:
    """Write `config.json`, or compare with the one that is there.

    Raises:
        UserError: the folder holds another experiment; names the keys that differ.
    """
    path = workdir / "config.json"
    # Through JSON, so that tuples compare equal to the lists that they are read back as.
    mine = json.loads(json.dumps({"config": vise_config.flat(config), "shards": shards_fingerprint}))
    if path.exists():
        theirs = artefact.read_description(workdir, path.name, version=_FORMAT_VERSION, made_by="train.py")
        keys = {key for key in mine["config"] | theirs["config"] if not key.startswith("labels.")} - _FREE_KEYS
        differing = sorted(key for key in keys if mine["config"].get(key) != theirs["config"].get(key))
        if mine["shards"] != theirs["shards"]:
            differing.append("the shards")
        if differing:
            raise UserError(
                f"{workdir} holds another experiment ({', '.join(differing[:10])} differ): name a new --workdir, "
                "or give the same config to go on."
            )
    elif workdir.exists() and (not workdir.is_dir() or any(entry.name[0] != "." for entry in workdir.iterdir())):
        raise UserError(f"{workdir} is no run folder: name a new --workdir.")
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        artefact.write_json(path, {"format_version": _FORMAT_VERSION, "kind": "run", **mine})


def _export(
    workdir: Path, config: ConfigDict, architecture: dict[str, Any], manifest: dict[str, Any], model: models.VisE
) -> Path:
    """Write the trained encoder, unless it is there already, and return its folder."""
    folder = workdir / "encoder"
    if folder.exists():
        return folder
    trained = {
        "vise_jax": vise_jax.__version__,
        "config": vise_config.flat(config) | {"data.shards": Path(config.data.shards).name},
        "shards": manifest["fingerprint"],
        "labeler": manifest["labeler"],
    }
    Encoder.from_model(
        model,
        architecture=architecture,
        preprocessing=imagenet_preprocessing(config.data.image_size),
        provenance={"trained": trained},
        licence="not stated: whoever trained this encoder decides, within the rights to the posts",
    ).save(folder)
    return folder
