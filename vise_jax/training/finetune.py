"""Fine-tuning: train a classifier end to end from encoders (Sec. 4.3), on the engine of pre-training."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
from flax import nnx
from jax.sharding import Mesh

from vise_jax import arrays, artifact, models, variables
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.models.classifier import Classifier
from vise_jax.models.norm import BatchNorm
from vise_jax.preprocessing import Preprocessing, normalize
from vise_jax.text_encoder import TextEncoder
from vise_jax.training import loop, optimizer, sharding
from vise_jax.training import state as train_state
from vise_jax.training.mirror import Mirror
from vise_jax.training.sharding import Layout
from vise_jax.training.state import TrainState
from vise_jax.training.step import TrainStep, make_train_step
from vise_jax.training.task import Batch, Evaluator, Task, Terms

Batches = Iterator[dict[str, np.ndarray]]
# Arrays of a classifier by path.
Weights = dict[str, np.ndarray]
_BEST = "best.safetensors"


@dataclass(frozen=True)
class Settings:
    """How to fine-tune; the config keys `finetune.*` of the same names have the defaults and their meaning."""

    batch_size: int
    epochs: float
    momentum: float
    warmup_fraction: float
    trainable: str
    batch_norm: str
    evaluate_every: float
    checkpoint_every: int


class FineTuner:
    """Fine-tunes a classifier several times; all runs share one compiled program.

    Args:
        image: encoder of images, or None.
        text: encoder of texts, or None.
        preprocessing: of the images.
        frozen_dim: number of features that are computed beforehand.
        classes: number of classes, K.
        settings: shared by all runs.
        dtype: of activations, see the config key `model.dtype`.
    """

    def __init__(
        self,
        image: Encoder | None,
        text: TextEncoder | None,
        preprocessing: Preprocessing | None,
        *,
        frozen_dim: int,
        classes: int,
        settings: Settings,
        dtype: str = "auto",
    ):
        self._image, self._text, self._preprocessing = image, text, preprocessing
        self._frozen_dim, self._classes, self._settings, self._dtype = frozen_dim, classes, settings, dtype
        self._mesh = sharding.data_mesh()
        self._layout = sharding.layout(settings.batch_size, self._mesh.size, key="finetune.batch_size")
        # Learning rate divided by its peak, by length of the run.
        self._shapes: dict[int, optimizer.Rate] = {}
        self._steps: dict[tuple[nnx.GraphDef, int], TrainStep] = {}
        self._predictors: dict[nnx.GraphDef, Callable[[nnx.State, Batch], jax.Array]] = {}

    def train(
        self,
        batches: Callable[[int, np.ndarray], Batches],
        examples: int,
        workdir: Path,
        *,
        learning_rate: float,
        weight_decay: float,
        seed: int,
        measure: Callable[[Callable[[Batch], np.ndarray]], float] | None,
        mirror: Mirror | None = None,
    ) -> Weights:
        """Train one classifier, resuming from the newest checkpoint in `workdir`.

        Args:
            batches: see `Task.batches`; `labels` int32 [L] beside the inputs of `Classifier`.
            examples: number of training examples.
            workdir: of checkpoints, metrics and the best weights.
            learning_rate: peak, per 256 examples.
            weight_decay: of kernels.
            seed: of the head's initial weights.
            measure: from a function that maps a batch to probabilities, float32 [B, K], to a number, larger is better.
                The weights of the evaluation with the largest one are returned; None for the last weights.
            mirror: of a run directory in an object store, whose copy on disk is `workdir`.

        Returns:
            The weights by path.

        Raises:
            UserError: as `loop.fit`.
        """
        settings = self._settings
        steps = max(round(settings.epochs * examples / settings.batch_size), 1)
        every = max(round(settings.evaluate_every * examples / settings.batch_size), 1)
        if steps not in self._shapes:
            self._shapes[steps] = optimizer.learning_rate(
                1.0, steps, schedule="cosine", warmup_fraction=settings.warmup_fraction, decays=1, decay_factor=1.0
            )
        shape = self._shapes[steps]
        update = optimizer.sgd_of_grid(
            shape,
            momentum=settings.momentum,
            peak_rate=learning_rate * settings.batch_size / 256,
            weight_decay=weight_decay,
        )

        def evaluators(graphdef: nnx.GraphDef, mesh: Mesh, layout: Layout) -> tuple[Evaluator, ...]:
            return (_BestEvaluator(measure, self._predictor(graphdef), mesh, workdir),) if measure else ()

        task = Task(
            build=lambda bn_group: self._build(bn_group, seed),
            batches=batches,
            examples=examples,
            normalize=self._normalize,
            loss_sums=_loss_sums,
            counts=_counts,
            forward=functools.partial(_forward, train=settings.batch_norm == "train" and settings.trainable == "all"),
            trainable=self._trainable(),
            # The loader flips.
            flip=False,
            evaluators=evaluators,
        )

        def make_step(
            graphdef: nnx.GraphDef,
            task: Task,
            update: optax.GradientTransformation,
            rate: optimizer.Rate,
            *,
            seed: int,
            mesh: Mesh,
            layout: Layout,
        ) -> TrainStep:
            # Runs of one length differ in their state and data only.
            if (graphdef, steps) not in self._steps:
                self._steps[graphdef, steps] = make_train_step(
                    graphdef, task, update, rate, seed=seed, mesh=mesh, layout=layout
                )
            return self._steps[graphdef, steps]

        model = loop.fit(
            task,
            update,
            shape,
            workdir,
            loop.Settings(
                steps=steps,
                seed=0,
                checkpoint_every=settings.checkpoint_every,
                checkpoint_minutes=0.0,
                keep_checkpoints=1,
                log_every=max(every // 10, 1),
                evaluate_every=every if measure else 0,
                profile_steps=(),
            ),
            mesh=self._mesh,
            layout=self._layout,
            mirror=mirror,
            start="starting from the encoder",
            make_step=make_step,
        )
        if measure:
            return _best(workdir)[0]
        return {name: np.asarray(value) for name, value in variables.of_model(model).items()}

    def predict(self, weights: Weights) -> Callable[[Batch], np.ndarray]:
        """Return the function from a batch to probabilities, float32 [B, K], with these weights."""
        graphdef, state = nnx.split(self._build(self._layout.bn_group, 0))
        filled = [
            (path, variable.replace(jnp.asarray(weights["/".join(map(str, path))])))
            for path, variable in nnx.to_flat_state(state)
        ]
        return functools.partial(_probabilities, self._predictor(graphdef), nnx.from_flat_state(filled))

    def _build(self, bn_group: int, seed: int) -> Classifier:
        image = text = None
        if self._image is not None:
            architecture = {key: value for key, value in self._image.architecture.items() if key != "heads"}
            # Without the heads of pre-training. Copies, since the training step consumes its state.
            weights = {
                name.removeprefix("encoder/"): jnp.array(value)
                for name, value in self._image.weights.items()
                if not name.startswith("heads/")
            }
            image = variables.with_weights(architecture, weights, bn_group=bn_group, dtype=self._dtype)
        if self._text is not None:
            copies = {name: jnp.array(value) for name, value in self._text.weights.items()}
            text = variables.with_weights(self._text.architecture, copies, dtype=self._dtype)
        rngs = nnx.Rngs(seed)
        return Classifier(image, text, frozen_dim=self._frozen_dim, classes=self._classes, rngs=rngs)

    def _trainable(self) -> nnx.filterlib.Filter:
        if self._settings.trainable == "head":
            return nnx.PathContains("head")
        if self._settings.batch_norm == "train":
            return nnx.Param
        model = nnx.eval_shape(lambda: self._build(0, 0))
        norms = {path for path, module in nnx.iter_modules(model) if isinstance(module, BatchNorm)}
        return lambda path, value: tuple(path[:-1]) not in norms

    def _normalize(self, images: jax.Array) -> jax.Array:
        if self._preprocessing is None:
            raise ValueError("a classifier without an image encoder has no images")
        return normalize(images, self._preprocessing)

    def _predictor(self, graphdef: nnx.GraphDef) -> Callable[[nnx.State, Batch], jax.Array]:
        """Return the compiled function from weights and a batch to probabilities."""
        if graphdef not in self._predictors:

            def predictor(weights: nnx.State, batch: Batch) -> jax.Array:
                inputs = dict(batch)
                if "images" in inputs:
                    inputs["images"] = self._normalize(inputs["images"])
                model = nnx.merge(graphdef, weights)
                return jax.nn.softmax(model(inputs, train=False).astype(jnp.float32))

            options = models.compiler_options(jax.default_backend())
            self._predictors[graphdef] = jax.jit(predictor, compiler_options=options)
        return self._predictors[graphdef]


class _BestEvaluator:
    """Measures a state on validation, and writes the weights that are best so far."""

    def __init__(
        self,
        measure: Callable[[Callable[[Batch], np.ndarray]], float],
        predictor: Callable[[nnx.State, Batch], jax.Array],
        mesh: Mesh,
        workdir: Path,
    ):
        self._measure, self._predictor, self._mesh, self._workdir = measure, predictor, mesh, workdir
        self._best: float | None = None

    def run(self, state: TrainState) -> dict[str, float]:
        """Return `validation`."""
        weights = train_state.on_one_device(state, self._mesh)
        value = self._measure(functools.partial(_probabilities, self._predictor, weights))
        # A resumed run finds the same best weights again, after some of its steps.
        if self._best is None:
            before = (self._workdir / _BEST).is_file()
            self._best = float(_best(self._workdir)[1]["validation"]) if before else -np.inf
        if value > self._best:
            self._best = value
            flat = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(weights)}
            write_weights(self._workdir / _BEST, flat, {"validation": repr(value), "step": str(int(state.step))})
        return {"validation": value}


def write_weights(path: Path, weights: Weights, about: dict[str, str] | None = None) -> None:
    """Write weights atomically, as safetensors with metadata."""
    with artifact.atomic_file(path) as file:
        file.write(arrays.to_safetensors(weights, about))


def read_weights(path: Path, advice: str) -> tuple[Weights, dict[str, str]]:
    """Read weights that `write_weights` wrote, and their metadata.

    Args:
        path: of the file.
        advice: what to do about a damaged one, for the message.

    Raises:
        UserError: the file is missing or damaged.
    """
    with artifact.explained(path):
        content = path.read_bytes()
    try:
        return arrays.from_safetensors(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {advice}.") from error


def best_step(workdir: Path) -> int:
    """Return the step of the weights that were best on validation."""
    with safetensors.safe_open(workdir / _BEST, "numpy") as file:
        return int(file.metadata()["step"])


def _best(workdir: Path) -> tuple[Weights, dict[str, str]]:
    return read_weights(workdir / _BEST, f"delete {workdir}, and run the same command again")


def _probabilities(predictor: Callable[[nnx.State, Batch], jax.Array], weights: nnx.State, batch: Batch) -> np.ndarray:
    return np.asarray(predictor(weights, batch), np.float32)


def _forward(model: nnx.Module, batch: Batch, *, train: bool) -> Mapping[str, jax.Array]:
    return {"class": model(batch, train=train)}  # type: ignore[operator]


def _loss_sums(output: Mapping[str, jax.Array], batch: Batch) -> Terms:
    losses = optax.softmax_cross_entropy_with_integer_labels(output["class"].astype(jnp.float32), batch["labels"])
    return {"class": losses.sum()}


def _counts(batch: Batch) -> Terms:
    return {"class": jnp.float32(batch["labels"].size)}
