"""Time training from shards beside its bare step, and extraction beside its bare forward pass.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --encoder resnet50 --width 64 --image_size 224 --batch 16 --rounds 7

Training is `vise_jax.training.loop` on simulated shards, whose images are a seventh longer than the crops; every step
reads a batch, records its metrics and shows the progress. Between two turns of the loop, the same compiled step takes a
turn on a batch that is on the device already. Extraction is `vise_jax.inference.extract` on a directory of images of
that size; in its bare turn the encoder has all images in memory, decoded. A ratio is the bare time divided by that of
the whole: 1 means that reading costs nothing. The cores that decode are those that compute, on CPUs.

The last line is one JSON object.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import jax
import numpy as np
from absl import flags
from measuring import ratio
from simulated import pattern, write_shards

from vise_jax import cli, config, machine, models
from vise_jax.data import datasets, shards
from vise_jax.data import images as data_images
from vise_jax.data.records import CorruptExamples
from vise_jax.encoder import Encoder
from vise_jax.inference import extract
from vise_jax.preprocessing import Preprocessing
from vise_jax.training import loop, pretrain, sharding, step
from vise_jax.training.state import TrainState

QUICK = flags.DEFINE_bool("quick", False, "A small encoder and 15 short rounds: a smoke test.")
ENCODER = flags.DEFINE_string("encoder", "resnet18", "Encoder.")
WIDTH = flags.DEFINE_integer("width", None, "Width of its stem; by default 32.", 1)
IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "Side of the crops in pixels.", 32)
BATCH = flags.DEFINE_integer("batch", None, "Images of a step; by default 64.", 1)
STEPS = flags.DEFINE_integer("steps", None, "Steps of a turn; by default 20.", 1)
ROUNDS = flags.DEFINE_integer("rounds", None, "Turns of each; by default 9.", 1)

# Steps of the loop before a turn, which empty the queues that filled during the bare turn.
_SKIPPED = 6
_IMAGES = 512


def main(words: list[str]) -> None:
    cli.no_words(words)
    steps, rounds = STEPS.value or (4 if QUICK.value else 20), ROUNDS.value or (15 if QUICK.value else 9)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        draw, side = np.random.default_rng(0), IMAGE_SIZE.value * 8 // 7
        encoded = [pattern(draw, 9, (side, side)) for _ in range(64 if QUICK.value else _IMAGES)]
        seconds = {
            "training": train(directory, encoded, steps, rounds),
            "extraction": extract_features(directory, encoded, rounds),
        }
    ratios = {}
    for kind, (whole, bare, images) in seconds.items():
        ratios[kind] = found = ratio(np.array(bare), np.array(whole))
        print(
            f"{kind}: {images / np.median(whole):,.0f} images/s, bare {images / np.median(bare):,.0f}: "
            f"{found['median']:.3f} of it ({found['low']:.3f} to {found['high']:.3f})"
        )
    print(
        json.dumps(
            {
                "benchmark": "end_to_end",
                "device": jax.devices()[0].device_kind,
                "ratios": ratios,
                "images_per_second": {
                    kind: {"whole": images / np.median(whole), "bare": images / np.median(bare)}
                    for kind, (whole, bare, images) in seconds.items()
                },
                "encoder": ENCODER.value,
                "width": width(),
                "image_size": IMAGE_SIZE.value,
                "batch": batch_size(),
                "steps": steps,
                "rounds": rounds,
                "cores": machine.available_cpus(),
                "versions": {"jax": jax.__version__},
            }
        )
    )


def width() -> int:
    return WIDTH.value or (8 if QUICK.value else 32)


def batch_size() -> int:
    return BATCH.value or (16 if QUICK.value else 64)


class Turns:
    """A training step that stops after each turn of the loop for a bare turn of its own.

    Attributes:
        whole: seconds of the loop's turns.
        bare: seconds of the same number of steps on a batch that is on the device.
    """

    def __init__(self, train_step: step.TrainStep, steps: int):
        self._step, self._steps, self._done = train_step, steps, 0
        self._start = 0.0
        self.whole: list[float] = []
        self.bare: list[float] = []

    def __call__(self, state: TrainState, batch: Any, control: Any) -> tuple[TrainState, Any]:
        if self._done == _SKIPPED:
            jax.block_until_ready(state)
            self._start = time.perf_counter()
        if self._done == _SKIPPED + self._steps:
            jax.block_until_ready(state)
            self.whole.append(time.perf_counter() - self._start)
            start = time.perf_counter()
            for _ in range(self._steps):
                state, _ = self._step(state, batch, control)
            jax.block_until_ready(state)
            self.bare.append(time.perf_counter() - start)
            self._done = 0
        self._done += 1
        return self._step(state, batch, control)


def train(directory: Path, encoded: list[bytes], steps: int, rounds: int) -> tuple[list[float], list[float], int]:
    """Return the seconds of the loop's turns and of the bare ones, and the images of a turn."""
    size = batch_size()
    # Steps are counted from 1 after a bare turn, and its own step is the first.
    total = rounds * (_SKIPPED + steps) + 1
    examples = max(4 * size, len(encoded))
    write_shards(
        directory / "shards", lambda number: encoded[number % len(encoded)], examples, 8, comments=5000, reactions=128
    )
    experiment = config.base()
    experiment.data.update(shards=str(directory / "shards"), image_size=IMAGE_SIZE.value)
    experiment.model.update(name=ENCODER.value, width=width())
    experiment.training.update(batch_size=size, steps=total)
    config.validate(experiment)
    manifest = shards.read_manifest(directory / "shards")
    mesh = sharding.data_mesh()
    layout = sharding.layout(size, mesh.size)
    architecture = pretrain.describe_model(experiment, manifest["classes"])

    def build(bn_group: int) -> Any:
        return models.build(**architecture, bn_group=bn_group, dtype=experiment.model.dtype)

    task = pretrain.make_task(experiment, manifest, build, CorruptExamples(directory / "corrupt.jsonl"))
    rate, optimizer = pretrain.make_optimizer(experiment.training, total)
    settings = loop.Settings(
        steps=total,
        seed=0,
        checkpoint_every=total,
        checkpoint_minutes=0,
        keep_checkpoints=1,
        log_every=10,
        evaluate_every=0,
        profile_steps=(0, 0),
    )
    made: list[Turns] = []

    def make_step(*args: Any, **keys: Any) -> Turns:
        made.append(Turns(step.make_train_step(*args, **keys), steps))
        return made[0]

    loop.fit(task, optimizer, rate, directory / "run", settings, mesh=mesh, layout=layout, make_step=make_step)
    return made[0].whole, made[0].bare, steps * size


def extract_features(directory: Path, encoded: list[bytes], rounds: int) -> tuple[list[float], list[float], int]:
    """Return the seconds of extracting the features of all images and of computing them from decoded ones."""
    (directory / "images").mkdir()
    for number, content in enumerate(encoded):
        (directory / "images" / f"{number:05d}.jpg").write_bytes(content)
    dataset = datasets.open_unlabeled(directory / "images")
    preprocessing = Preprocessing.imagenet(IMAGE_SIZE.value)
    architecture: dict[str, Any] = {"name": ENCODER.value, "width": width()}
    encoder = Encoder.from_model(
        models.build(**architecture), architecture=architecture, preprocessing=preprocessing, provenance={}, license="0"
    )
    settings = {"threads": 0, "max_image_pixels": 10**8}
    [decoded] = data_images.batches(dataset, range(len(dataset)), preprocessing, len(dataset), **settings)
    whole, bare = [], []
    for turn in range(rounds + 1):
        start = time.perf_counter()
        with extract.computed(
            encoder, dataset, preprocessing, directory / f"{turn}.npz", batch_size=batch_size(), **settings
        ):
            middle = time.perf_counter()
        encoder.features(decoded, batch_size())
        if turn:  # the first compiles
            whole.append(middle - start)
            bare.append(time.perf_counter() - middle)
    return whole, bare, len(dataset)


if __name__ == "__main__":
    cli.run(main, __doc__)
