"""What can be seen of a run while it goes on: its times, what is new in its config, and how well it does."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vise_jax import config as vise_config
from vise_jax.data import loader
from vise_jax.data.records import CorruptExamples
from vise_jax.encoder import imagenet_preprocessing, normalize
from vise_jax.training import sharding
from vise_jax.training import state as train_state
from vise_jax.training.sharding import Layout
from vise_jax.training.state import TrainState
from vise_jax.training.step import make_evaluation_step

# Maps images, uint8 [B, S, S, 3], to features, float32 [B, D].
Features = Callable[[np.ndarray], np.ndarray]
# Maps the encoder as it is to numbers by their names, e.g. {"knn_accuracy": 0.4}; runs on the first process alone.
Evaluator = Callable[[Features], Mapping[str, float]]


def changed_keys(config: ConfigDict) -> list[str]:
    """A line for each key that differs from its default, `key = value (default …)`."""
    defaults = vise_config.flat(vise_config.base())
    return [
        f"{key} = {value!r} (default {defaults[key]!r})"
        for key, value in vise_config.flat(config).items()
        if value != defaults[key]
    ]


class Clock:
    """Where the time of a run goes.

    Everything is counted from the end of the first step on, which compiles. Time in steps is what is left when the rest
    is taken away: waiting for data with nothing to do on the devices, blocking saves, evaluations.
    """

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()
        self._lost = {"data": 0.0, "other": 0.0}
        self._lost_before = dict(self._lost)

    def restart(self) -> float:
        """Count from now on; returns the seconds since it was made."""
        seconds = time.monotonic() - self._begin
        self.__init__()  # type: ignore[misc]
        return seconds

    @contextlib.contextmanager
    def lost(self, on: str = "other") -> Iterator[None]:
        """Count the time of the block as lost, on "data" or on something "other"."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._lost[on] += time.monotonic() - start

    def next(self, batches: Iterator[Any], idle: Callable[[], bool]) -> Any:
        """The next batch; the wait for it is lost if the devices are idle when it comes."""
        start = time.monotonic()
        batch = next(batches)
        if idle():
            self._lost["data"] += time.monotonic() - start
        return batch

    def measure(self, steps: int, images: int) -> dict[str, float]:
        """The times of the steps since this was last asked: see `docs/pods.md`.

        Args:
            steps: how many there were.
            images: of one step, over all processes.
        """
        now = time.monotonic()
        data, other = (self._lost[key] - self._lost_before[key] for key in ("data", "other"))
        seconds = now - self._last
        values = {
            "images_per_second": steps * images / seconds,
            "step_seconds": (seconds - other) / steps,
            "data_seconds": data / steps,
            "goodput": 1 - sum(self._lost.values()) / (now - self._begin),
        }
        self._last, self._lost_before = now, dict(self._lost)
        return {name: round(value, 4) for name, value in values.items()} | _device_memory()


def _device_memory() -> dict[str, int]:
    """Peak bytes in use on this process's first device, where the backend says."""
    found = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {} if found is None else {"device_bytes": found}


class Trace:
    """A JAX trace of the steps from `first` to `last`, in the folder `profile` of the run.

    Args:
        workdir: the run folder.
        steps: the config's `profile.steps`.
    """

    def __init__(self, workdir: Path, steps: tuple[int, ...]):
        self._folder = workdir / "profile"
        self._first, self._last = steps or (0, 0)
        self._running = False

    def before(self, step: int) -> None:
        """To be called before each step."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """To be called with the state after each step."""
        if self._running and step >= self._last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False


class Evaluation:
    """The validation shards and the evaluators.

    Args:
        config: the whole configuration.
        manifest: of the shards.
        graphdef: structure of the model.
        mesh: all devices.
        layout: how the batch is divided.
        bad: where damaged examples are named.
        evaluators: called on the first process.
    """

    def __init__(
        self,
        config: ConfigDict,
        manifest: dict[str, Any],
        graphdef: nnx.GraphDef,
        mesh: Mesh,
        layout: Layout,
        bad: CorruptExamples,
        evaluators: tuple[Evaluator, ...],
    ):
        self._config, self._manifest, self._graphdef = config, manifest, graphdef
        self._mesh, self._layout, self._bad, self._evaluators = mesh, layout, bad, evaluators
        self._preprocessing = imagenet_preprocessing(config.data.image_size)
        self._step = make_evaluation_step(graphdef, config, mesh, layout)
        self._encode = jax.jit(self._features)

    def __bool__(self) -> bool:
        return bool(self._evaluators or self._manifest["validation"]["examples"])

    def _features(self, weights: nnx.State, images: jax.Array) -> jax.Array:
        model = nnx.merge(self._graphdef, weights)
        return model.encoder(normalize(images, self._preprocessing), train=False)[0]

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Evaluate; every process has to call it.

        Returns:
            `validation_loss`, and for each head `validation_loss_HEAD`, `validation_top1_HEAD` and
            `validation_top5_HEAD` (means over its labeled examples), where there are validation shards; on the first
            process, what the evaluators return.
        """
        values = self._on_validation_shards(state) if self._manifest["validation"]["examples"] else {}
        if self._evaluators:
            weights = train_state.on_one_device(state, self._mesh)
            if jax.process_index() == 0:
                for evaluator in self._evaluators:
                    values |= evaluator(lambda images: np.asarray(self._encode(weights, images)))
        return values

    def _on_validation_shards(self, state: TrainState) -> dict[str, float]:
        batches = loader.validation_batches(
            Path(self._config.data.shards),
            self._manifest,
            self._config.data,
            self._preprocessing,
            batch_size=self._layout.batch_size,
            bad=self._bad,
            rows=sharding.local_rows(self._mesh, self._layout.batch_size),
        )
        sums: dict[str, float] = {}
        for batch in batches:
            del batch["post_id"]
            found = self._step(state.params, state.batch_stats, sharding.put_batch(self._mesh, batch))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        heads = [name.removeprefix("labeled_") for name in sums if name.startswith("labeled_")]
        means = {
            f"validation_{name}_{head}": sums[f"{name}_{head}"] / max(sums[f"labeled_{head}"], 1)
            for name in ("loss", "top1", "top5")
            for head in heads
        }
        return {"validation_loss": sum(means[f"validation_loss_{head}"] for head in heads)} | means
