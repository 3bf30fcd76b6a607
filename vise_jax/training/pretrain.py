"""Pre-training: predict the engagement of posts from their images (Sec. 3.3)."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vise_jax import artifact, hosts, models
from vise_jax import config as vise_config
from vise_jax import logging as vise_logging
from vise_jax.errors import UserError
from vise_jax.preprocessing import Preprocessing, normalize
from vise_jax.training import engagement_loss, loop, optimizer, run_dir, sharding
from vise_jax.training.evaluators import FeatureEvaluator, Probe, ValidationEvaluator
from vise_jax.training.mirror import Mirror
from vise_jax.training.optimizer import Rate
from vise_jax.training.sharding import Layout
from vise_jax.training.task import Evaluator, Task

if TYPE_CHECKING:
    from vise_jax.data.records import CorruptExamples

log = logging.getLogger(__name__)


@hosts.explained()
def train(config: ConfigDict, workdir: Path, make_probe: Callable[[], Probe] | None = None) -> Path:
    """Pre-train an encoder as `config` says, resuming in `workdir`, and export it.

    Every process of a run calls it alike.

    Args:
        config: a diff of `vise_jax.config.base()`.
        workdir: the run directory, a path or a URL, created if it doesn't exist.
        make_probe: called on the first process, once the config is valid; the probe measures the features every
            `training.evaluate_every` steps and at the end.

    Returns:
        The directory of the exported encoder, `workdir/encoder`.

    Raises:
        UserError: an invalid config or shards, a workdir of another experiment or in use, and as `loop.fit`.
    """
    vise_config.validate(config, vise_config.base)
    training = config.training
    if not config.data.shards:
        raise UserError(
            "The config key data.shards is empty: set --config.data.shards=DIR, the output of label.py run."
        )
    hosts.initialize(training.distributed, training.heartbeat_seconds)
    # Imported here: a step of this task is built without TensorFlow (benchmarks).
    from vise_jax.data import deletions, shards
    from vise_jax.data.records import CorruptExamples

    manifest = shards.read_manifest(artifact.location(config.data.shards), damaged=True)
    if manifest["examples"] < training.batch_size:
        raise UserError(
            f"The shards {config.data.shards} hold {manifest['examples']:,} examples, fewer than a batch "
            f"(training.batch_size is {training.batch_size:,}): lower it, or label more posts."
        )
    architecture, values = describe_model(config, manifest["classes"]), vise_config.flat(config)
    mesh = sharding.data_mesh()
    divide = functools.partial(sharding.layout, training.batch_size, mesh.size, microbatches=training.microbatches)
    layout = divide(bn_group=config.model.bn_group)
    build = functools.partial(models.build, **architecture, dtype=config.model.dtype, remat=training.remat)
    nnx.eval_shape(build)  # an invalid model is an error before the run directory is created
    with (
        run_dir.acquire(workdir, values, deletions.fingerprints(manifest), layout.bn_group) as run,
        vise_logging.to_file(run.path / hosts.of_process("train.log")),
    ):
        run_dir.cache_compilations(run.path)
        layout = divide(bn_group=run.bn_group)
        # Posts that were deleted since the first start keep their positions.
        manifest = deletions.as_of(manifest, run.shards)
        steps = number_of_steps(config, manifest["examples"])
        corrupt = CorruptExamples(run.path / hosts.of_process("corrupt_examples.jsonl"))
        probes: list[Probe] = []
        if make_probe:
            hosts.on_first(lambda: probes.append(make_probe()))
        probe = probes[0] if probes else None

        def from_start(bn_group: int) -> nnx.Module:
            model = cast(models.VisE, build(bn_group=bn_group, seed=training.seed))
            # A run that has a checkpoint resumes from it instead.
            if training.init_from and not run_dir.checkpoints(workdir):
                preprocessing = Preprocessing.imagenet(config.data.image_size)
                run_dir.write_origin(run.path, run_dir.warm_start(model, training.init_from, preprocessing))
            return model

        task = make_task(config, manifest, from_start, corrupt, probe, with_probe=make_probe is not None)
        rate, update = make_optimizer(training, steps)
        settings = loop.Settings(
            steps=steps,
            seed=training.seed,
            checkpoint_every=training.checkpoint_every,
            checkpoint_minutes=training.checkpoint_minutes,
            keep_checkpoints=training.keep_checkpoints,
            log_every=training.log_every,
            evaluate_every=training.evaluate_every,
            profile_steps=tuple(config.profile.steps),
            corrupt_examples=lambda: len(corrupt),
            check_corrupt=corrupt_limit(run.path, manifest, config.data.max_corrupt_fraction, run.mirror),
        )
        if jax.process_index() == 0:
            for line in changed_keys(config):
                log.info(line)
        start = f"starting from the encoder {training.init_from}" if training.init_from else "starting from scratch"
        model = loop.fit(
            task, update, rate, run.path, settings, mesh=mesh, layout=layout, mirror=run.mirror, start=start
        )
        preprocessing = Preprocessing.imagenet(config.data.image_size)
        origin = run_dir.read_origin(run.path)
        return run_dir.export(workdir, values, architecture, preprocessing, manifest, cast(models.VisE, model), origin)


def make_task(
    config: ConfigDict,
    manifest: dict[str, Any],
    build: Callable[[int], nnx.Module],
    corrupt: "CorruptExamples | None" = None,
    probe: Probe | None = None,
    with_probe: bool = False,
) -> Task:
    """Return the task: engagement shards, Eq. 1, validation and the probe.

    Args:
        config: the whole config.
        manifest: of the shards.
        build: from the size of a batch-norm group to the model.
        corrupt: log of the corrupt examples of this process; needed to yield batches.
        probe: measures features, on the first process.
        with_probe: whether the first process has a probe; all must know.
    """
    preprocessing = Preprocessing.imagenet(config.data.image_size)
    to_input = functools.partial(normalize, preprocessing=preprocessing)
    data, training, directory = config.data, config.training, artifact.location(config.data.shards)

    def log_of_corrupt() -> "CorruptExamples":
        if corrupt is None:
            raise ValueError("a task without a log of corrupt examples has no batches")
        return corrupt

    def batches(first_step: int, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        from vise_jax.data import loader

        return _with_ids(
            loader.batches(
                directory,
                manifest,
                batch_size=training.batch_size,
                seed=training.seed,
                corrupt=log_of_corrupt(),
                first_step=first_step,
                rows=rows,
                **loader_settings(data),
            )
        )

    def evaluators(graphdef: nnx.GraphDef, mesh: Mesh, layout: Layout) -> tuple[Evaluator, ...]:
        def validation_batches() -> Iterator[dict[str, np.ndarray]]:
            from vise_jax.data import loader

            rows = sharding.local_rows(mesh, layout.batch_size)
            return _with_ids(
                loader.validation_batches(
                    directory,
                    manifest,
                    preprocessing,
                    batch_size=layout.batch_size,
                    corrupt=log_of_corrupt(),
                    threads=data.threads,
                    rows=rows,
                )
            )

        chosen: list[Evaluator] = []
        if manifest["validation"]["examples"]:
            chosen.append(ValidationEvaluator(validation_batches, graphdef, mesh, layout, to_input))
        if with_probe:
            chosen.append(FeatureEvaluator(probe, graphdef, mesh, to_input))
        return tuple(chosen)

    return Task(
        build=build,
        batches=batches,
        examples=manifest["examples"],
        normalize=to_input,
        loss_sums=engagement_loss.loss_sums,
        counts=lambda batch: {head: known.sum() for head, known in engagement_loss.labeled(batch).items()},
        flip=config.data.flip,
        evaluators=evaluators,
    )


def loader_settings(data: ConfigDict) -> dict[str, Any]:
    """Return the arguments of `loader.batches` that the `data` section sets."""
    from vise_jax.data.epoch_order import Shuffle

    return {
        "shuffle": Shuffle(data.shuffle_shards, data.shuffle_block, data.shuffle_slots, data.shuffle_window),
        "image_size": data.image_size,
        "crop_area": tuple(data.crop_area),
        "crop_ratio": tuple(data.crop_ratio),
        "antialias": data.antialias,
        "scaled_decoding": data.scaled_decoding,
        "threads": data.threads,
    }


def _with_ids(batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Rename the loader's `post_id` to the engine's `example_id`."""
    for batch in batches:
        yield {("example_id" if name == "post_id" else name): column for name, column in batch.items()}


def make_optimizer(training: ConfigDict, steps: int) -> tuple[Rate, optax.GradientTransformation]:
    """Return the learning rate and the optimizer of the `training` section for a run of `steps`."""
    rate = optimizer.learning_rate(
        # Linear scaling (Goyal et al. 2017).
        training.learning_rate * training.batch_size / 256,
        steps,
        schedule=training.schedule,
        warmup_fraction=training.warmup_fraction,
        decays=training.decays,
        decay_factor=training.decay_factor,
    )
    if training.optimizer == "adamw":
        betas, epsilon = tuple(training.adam_betas), training.adam_epsilon
        return rate, optimizer.adamw(rate, betas=betas, epsilon=epsilon, weight_decay=training.weight_decay)
    return rate, optimizer.sgd(rate, momentum=training.momentum, weight_decay=training.weight_decay)


def number_of_steps(config: ConfigDict, examples: int) -> int:
    """Return `training.steps`, or the steps that `training.epochs` over `examples` take."""
    return config.training.steps or max(round(config.training.epochs * examples / config.training.batch_size), 1)


def describe_model(config: ConfigDict, classes: Mapping[str, int]) -> dict[str, Any]:
    """Return the architecture of the encoder: the arguments of `models.build`, with one head per engagement.

    Args:
        config: the whole config.
        classes: the manifest's number of classes per engagement.

    Raises:
        UserError: the shards have no labels for a head in `model.heads`, or an encoder that can't be trained.
    """
    if config.model.name == "detectron2_resnet50":
        raise UserError(
            "The batch norms of detectron2_resnet50 are frozen, so that it can't be trained from scratch: choose "
            "another model.name, e.g. resnet50."
        )
    for head in config.model.heads:
        if not classes.get(head):
            raise UserError(
                f"The config key model.heads names {head}, but the shards {config.data.shards} have no such labels: "
                "leave it out."
            )
    # The keys that are left out decide how training computes, not what the encoder is.
    architecture = {key: value for key, value in config.model.items() if key not in ("heads", "bn_group", "dtype")}
    return architecture | {"heads": {head: classes[head] for head in config.model.heads}}


def changed_keys(config: ConfigDict) -> list[str]:
    """Return a line `key = value (default …)` for each key that differs from its default."""
    defaults = vise_config.flat(vise_config.base())
    return [
        f"{key} = {value!r} (default {defaults[key]!r})"
        for key, value in vise_config.flat(config).items()
        if value != defaults[key]
    ]


def corrupt_limit(
    workdir: Path, manifest: dict[str, Any], max_fraction: float, mirror: Mirror | None = None
) -> Callable[[int], None]:
    """Return a function that adds newly found corrupt examples, and raises UserError above a fraction of all examples.

    Every process calls it with the same numbers, and all raise together.
    """
    names, limit = {shard["name"] for shard in manifest["shards"]}, max_fraction * manifest["examples"]
    shown = mirror.remote if mirror else workdir
    total = hosts.from_first(count_corrupt(workdir, names))

    def add(found: int) -> None:
        nonlocal total
        total += found
        if total > limit:
            # Two processes may have found the same example. The first one decides.
            if mirror:
                mirror.exchange("corrupt_examples.jsonl")
            total = hosts.from_first(count_corrupt(workdir, names))
        if total > limit:
            raise UserError(
                f"{total:,} of {manifest['examples']:,} training examples are corrupt: "
                f"{shown}/corrupt_examples*.jsonl name their shards; copy these again, or raise the config key "
                "data.max_corrupt_fraction."
            )

    return add


def count_corrupt(workdir: Path, shards: set[str]) -> int:
    """Return the number of distinct corrupt examples of `shards` that the processes of a run have logged."""
    examples = set()
    for path in workdir.glob("corrupt_examples*.jsonl"):
        for _, entry in artifact.json_lines(path, ("shard", "record")):
            if entry["shard"] in shards:
                examples.add((entry["shard"], entry["record"]))
    return len(examples)
