"""What has to be run for an experiment of the paper, in order, and what each command needs.

Everything lies below one directory, the workdir:

    data/TASK                     the datasets, see docs/datasets.md
    weights/METHOD.*              published checkpoints, e.g. weights/moco-resnet50.pth; weights/text/ for RoBERTa
    posts/vise_1m, vise_250m      posts files, see docs/data-format.md
    encoders, labelers, shards, runs, results       what the commands write

Any of them may be a link.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vise_jax import artifact, config
from vise_jax.evaluation.tasks import TASKS
from vise_jax.posts import SUFFIXES
from vise_jax.reproduction.paper import METHODS, VISE_1M, Column, Experiment, Method

# Images per second of a training step, as measured on 2 CPU cores (docs/performance.md). A forward pass takes a third.
# ResNet-101 was not measured: ResNet-50's, by the ratio of their operations (4.1 / 7.8).
MEASURED = {"resnet50": 3.77, "resnet101": 1.98, "resnext101_32x16d": 0.30}
MEASURED_ON = "2 CPU cores"
_TEXT = "text"
# Suffixes of checkpoints, as convert.py reads them.
_SUFFIXES = (".pth", ".pt", ".th", ".tar", ".safetensors", ".npz")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: in the plan's table.
        words: script and arguments. One that ends in `/*.json` stands for the single file that it matches.
        output: directory or file that exists when the step is done.
        last: glob of the file in the directory that is written last.
        needs: paths below the workdir that are missing; empty when it can run once those before it are done.
        work: images through forward and backward pass, 0 where it takes no such time.
        backbone: of that work.
    """

    name: str
    words: tuple[str, ...]
    output: Path
    last: str = "*.json"
    needs: tuple[str, ...] = ()
    work: float = 0.0
    backbone: str = ""

    @property
    def is_done(self) -> bool:
        """Whether its output is there."""
        return any(self.output.glob(self.last)) if self.output.is_dir() else self.output.is_file()

    def hours(self, images_per_second: Mapping[str, float]) -> float | None:
        """Return the estimated device hours; None where no speed is known."""
        if not self.work:
            return 0.0
        speed = images_per_second.get(self.backbone)
        return self.work / speed / 3600 if speed else None


@dataclass(frozen=True)
class Settings:
    """Keys of configs that differ from the paper's, as KEY=VALUE.

    Attributes:
        pretraining: for label.py and train.py.
        evaluation: for evaluate.py.
    """

    pretraining: Sequence[str] = ()
    evaluation: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """The steps of an experiment.

    Attributes:
        experiment: of the paper.
        workdir: see the module.
        settings: of all commands.
    """

    experiment: Experiment
    workdir: Path
    settings: Settings = field(default_factory=Settings)

    @cached_property
    def steps(self) -> list[Step]:
        """All steps in order, each once."""
        found: dict[Path, Step] = {}
        for method, column in self.experiment.cells():
            for step in (*self._encoder(method), *self._text_encoder(method, column), self.measurement(method, column)):
                found.setdefault(step.output, step)
        steps = list(found.values())
        if self.experiment.kind == "maps":
            steps.append(self._maps())
        return steps

    def measurement(self, method: str, column: Column) -> Step:
        """Return the step that measures a cell."""
        words = ["scripts/evaluate.py", "--config", f"configs/eval.py:{column.config}"]
        needs = [*self._missing_encoder(method), *self._missing_data(column.task)]
        if method == _TEXT:
            words += ["--text-encoder", self.source(_TEXT)]
        else:
            words += ["--encoder", self.source(method)]
            if self._uses_text(column):
                words += ["--text-encoder", self.source(_TEXT)]
                needs += self._missing_encoder(_TEXT)
        words += ["--name", METHODS[method].name, "--data", str(self.workdir / "data" / column.task)]
        words += ["--output", str(self.results(method, column)), *self._changes(self.settings.evaluation)]
        return Step(
            f"{METHODS[method].name}: {column.title}",
            tuple(words),
            self.results(method, column),
            needs=tuple(dict.fromkeys(needs)),
            work=_work(column),
            backbone=METHODS[method].backbone,
        )

    def results(self, method: str, column: Column) -> Path:
        """Return the directory of a cell's result. Other settings of the commands have another one."""
        changed = _suffix(self.settings.pretraining, self.settings.evaluation)
        return self.workdir / "results" / f"{method}-{column.name}{changed}"

    @property
    def maps(self) -> Path:
        """The directory of the class activation maps. Other settings of the commands have another one."""
        return self.workdir / "fig7" / f"maps{_suffix(self.settings.pretraining, self.settings.evaluation)}"

    def source(self, method: str) -> str:
        """Return `--encoder` of a method: converted, or put there by the user, before trained."""
        if METHODS[method].group == "random":
            return f"random:{METHODS[method].backbone}"
        if self._is_trained_here(method):
            return str(self.run(method) / "encoder")
        return str(self.workdir / "encoders" / method)

    def run(self, method: str) -> Path:
        """Return the run directory of a VisE method."""
        return self.workdir / "runs" / f"{method}{_suffix(self.settings.pretraining)}"

    def labeler(self, method: str) -> Path:
        """Return the labeler of a VisE method; those of the same posts share one."""
        return self.workdir / "labelers" / f"{METHODS[method].posts}{_suffix(self.settings.pretraining)}"

    def shards(self, method: str) -> Path:
        """Return the shards of a VisE method; those of the same posts and size share them."""
        one = METHODS[method]
        subset = f"-{one.examples}" if one.posts == "vise_1m" and one.examples != VISE_1M else ""
        return self.workdir / "shards" / f"{one.posts}{subset}{_suffix(self.settings.pretraining)}"

    def _is_trained_here(self, method: str) -> bool:
        encoder = self.workdir / "encoders" / method
        return bool(METHODS[method].pretraining) and not encoder.exists() and not self._weights(method)

    def _encoder(self, method: str) -> list[Step]:
        """Return the steps that give an encoder: none, a conversion, or labeling and training."""
        one, encoder = METHODS[method], self.workdir / "encoders" / method
        if self._is_trained_here(method):
            return self._pretraining(method, one)
        # A finished conversion stays a step of the plan; an encoder that was put there is none.
        if one.group == "random" or (encoder.exists() and not self._weights(method)):
            return []
        weights = self._weights(method) or self.workdir / "weights" / method
        arch = () if method == _TEXT else ("--arch", one.backbone)
        words = ("scripts/convert.py", "--source", one.source, *arch, "--weights", str(weights))
        needs = tuple(self._missing_encoder(method))
        return [Step(f"{one.name}: convert", (*words, "--output", str(encoder)), encoder, needs=needs)]

    def _pretraining(self, method: str, one: Method) -> list[Step]:
        changes, needs = self._changes(self.settings.pretraining), tuple(self._missing_encoder(method))
        globs = self._posts(one.posts) or [str(self.workdir / "posts" / one.posts / "*.jsonl")]
        posts = ("--posts", ",".join(globs))
        config = ("--config", f"configs/{one.pretraining}")
        # A labeler is of all posts, whatever subset is trained on.
        every = ("--config", f"configs/{one.posts}.py:{one.backbone}")
        labeler, shards, run = self.labeler(method), self.shards(method), self.run(method)
        to_shards = ("--labeler", str(labeler), "--output", str(shards))
        return [
            Step(
                f"{one.posts}: fit the labeler",
                ("scripts/label.py", "fit", *every, *posts, "--output", str(labeler), *changes),
                labeler,
                needs=needs,
            ),
            Step(
                f"{shards.name}: label",
                ("scripts/label.py", "run", *config, *posts, *to_shards, *changes),
                shards,
                "manifest.json",
                needs,
            ),
            Step(
                f"{one.name}: train",
                ("scripts/train.py", *config, f"--config.data.shards={shards}", "--workdir", str(run), *changes),
                run / "encoder",
                needs=needs,
                work=one.examples * one.epochs,
                backbone=one.backbone,
            ),
        ]

    def _text_encoder(self, method: str, column: Column) -> list[Step]:
        return self._encoder(_TEXT) if method == _TEXT or self._uses_text(column) else []

    def _maps(self) -> Step:
        (column,) = self.experiment.columns
        words, needs = ["scripts/explain.py"], self._missing_data(column.task)
        for method in self.experiment.methods:
            words += ["--encoder", self.source(method), "--head", f"{self.results(method, column)}/*.json"]
            needs += self._missing_encoder(method)
        images = self.workdir / "data" / column.task / "images"
        words += ["--images", str(images), "--output", str(self.maps), "--most", "24"]
        page = self.maps / "index.html"
        return Step("class activation maps", tuple(words), page, needs=tuple(dict.fromkeys(needs)))

    def _missing_encoder(self, method: str) -> list[str]:
        """Return what has to be there to get an encoder, in a list of one alternative; empty where all is there."""
        one = METHODS[method]
        if one.group == "random" or (self.workdir / "encoders" / method).exists() or self._weights(method):
            return []
        if one.pretraining and self._posts(one.posts):
            return []
        ways = [f"posts/{one.posts}"] if one.pretraining else []
        ways += [f"weights/{method}{'.*' if method != _TEXT else '/'}"] if one.source else []
        return [" or ".join(ways)]

    def _missing_data(self, task: str) -> list[str]:
        return [] if (self.workdir / "data" / task).exists() else [f"data/{task}"]

    def _weights(self, method: str) -> Path | None:
        directory = self.workdir / "weights"
        if method == _TEXT:
            return directory / _TEXT if (directory / _TEXT).is_dir() else None
        if not METHODS[method].source:
            return None
        paths = (directory / f"{method}{suffix}" for suffix in _SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def _posts(self, name: str) -> list[str]:
        """Return a glob for each kind of posts files that is there."""
        directory = self.workdir / "posts" / name
        return [str(directory / f"*{suffix}") for suffix in SUFFIXES if any(directory.glob(f"*{suffix}"))]

    @staticmethod
    def _uses_text(column: Column) -> bool:
        setting = column.setting or TASKS[column.task].setting.get(column.protocol, "image")
        return setting in ("image_text", "image_frozen_text", "text")

    @staticmethod
    def _changes(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"--config.{value}" for value in values)


def _suffix(*settings: Sequence[str]) -> str:
    """Return a suffix of directories that other settings than the paper's have."""
    return f"-{artifact.fingerprint([list(values) for values in settings])[:8]}" if any(settings) else ""


def _work(column: Column) -> float:
    """Return the images of a measurement, as those of training steps."""
    counts = TASKS[column.task].examples
    total = sum(counts.values())
    if column.protocol == "linear":
        # Features are computed once.
        return total / 3
    defaults = config.evaluation()
    if column.task == "unbiased_emotion":
        fraction, splits = defaults.train_fraction, defaults.splits
    else:
        # Half of the birds are the official train set.
        fraction, splits = 0.5 if column.task == "cub" else 1 - defaults.held_out_fraction, 1
    runs = len(defaults.finetune.learning_rates) * len(defaults.finetune.weight_decays) + TASKS[column.task].refit
    return fraction * total * splits * defaults.finetune.epochs * runs
