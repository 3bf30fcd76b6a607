"""Show what VisE learns from a simulated pairing of real images with real engagement.

    python benchmarks/evidence.py --images train.zip --labeled test.zip --posts posts.jsonl.gz --output EVIDENCE
    python benchmarks/evidence.py --quick

Images in classes are paired with real messages and reactions through a channel of known noise (`shared/pairing.py`).
The pipeline gets the paired posts only: it fits a labeler, labels the posts, trains an encoder, and the encoder is
measured on other labeled images: by a linear classifier, by nearest neighbors, and fine-tuned on few labels. The
studies change one thing each: the number of posts (Fig. 4), the heads (Table 3), the noise, the numbers of clusters,
the labels to fine-tune on, and the comment embeddings. Random initialization and training on the true labels are
measured beside them.

The same command resumes after an interruption. Every run takes the same number of steps, except that the numbers of
posts are trained on for the same number of epochs. `results.csv`, `tables.md`, `evidence.json` and the figures hold the
mean over the seeds and its 95% interval by Student's t. With --setting=gpu, a ResNet-18 of full width is trained for
longer. The last line is one JSON object: accuracies divided by those of random initialization.
"""

import dataclasses
import itertools
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import jax
import numpy as np
import pairing
from absl import flags
from evidence_report import write_report
from measuring import ratio
from ml_collections import ConfigDict
from simulated import pattern

from vise_jax import artifact, cli, config, machine
from vise_jax.data import datasets
from vise_jax.data.datasets import Dataset
from vise_jax.errors import UserError
from vise_jax.posts import REACTIONS

log = logging.getLogger(__name__)

QUICK = flags.DEFINE_bool("quick", False, "Drawn images and engagement, a tiny encoder: a smoke test.")
IMAGES = flags.DEFINE_string("images", None, "Images in class directories, or a zip of them, to be posted.")
LABELED = flags.DEFINE_string("labeled", None, "Other images of the same classes, to measure encoders on.")
POSTS = flags.DEFINE_string("posts", None, "Posts whose messages and reactions are paired with the images.")
TEXT_ENCODER = flags.DEFINE_string("text-encoder", "", "Encoder of texts (convert.py) for the study of embeddings.")
OUTPUT = flags.DEFINE_string("output", None, "Directory of everything; the same one resumes.")
SETTING = flags.DEFINE_enum("setting", "cpu", ("cpu", "gpu"), "Size of the encoder and of the training.")
STUDIES_FLAG = flags.DEFINE_list("studies", None, "Names of studies; by default all.")
SEEDS = flags.DEFINE_list(
    "seeds",
    ["0", "1", "2"],
    "Seeds of channel, labels and training. Processes with different ones may share a directory.",
)
REPORT = flags.DEFINE_bool("report", False, "Train nothing: report the cells that are there with all seeds.")


@dataclasses.dataclass(frozen=True)
class Setting:
    """How encoders are trained and measured.

    Attributes:
        encoder: name in `models.ENCODERS`.
        stem: see the config's `model.stem`.
        width: of its first stage.
        crop: side of the training crops in pixels.
        steps: of pre-training.
        batch: examples of a step.
        rate: peak learning rate per 256 examples.
        shots: labels of each class in the low-shot study.
        tuning_steps: steps of fine-tuning, with any number of labels.
        sizes: numbers of posts.
        epochs: of each size.
    """

    encoder: str
    stem: str
    width: int
    crop: int
    steps: int
    batch: int
    rate: float
    shots: tuple[int, ...] = (10, 50, 200)
    tuning_steps: int = 300
    sizes: tuple[int, ...] = (1000, 4000, 15_000)
    epochs: int = 4


SETTINGS = {
    # A CIFAR stem of width 8 takes longer, and learned too little in that time to help fine-tuning.
    "cpu": Setting(encoder="resnet18", stem="imagenet", width=32, crop=32, steps=1200, batch=64, rate=0.4),
    "gpu": Setting(encoder="resnet18", stem="cifar", width=64, crop=32, steps=20_000, batch=256, rate=0.1),
}
_QUICK = Setting(
    encoder="resnet18",
    stem="cifar",
    width=4,
    crop=16,
    steps=8,
    batch=16,
    rate=0.1,
    shots=(50,),
    tuning_steps=4,
    sizes=(60,),
)
# Labels of each class that every encoder is fine-tuned on.
_TUNED = 50
_TUNING_BATCH = 32
# Area of the crops, as a fraction of images of 32 pixels.
_CROPS = (0.3, 1.0)
# Fraction of the posts that are trained on; clusters are fitted on the others.
_TRAINED = 0.9


@dataclasses.dataclass(frozen=True)
class Cell:
    """One pre-training, by what differs between cells.

    Attributes:
        noise: of the channel.
        heads: what is predicted.
        comments: number of comment clusters.
        reactions: number of reaction clusters.
        examples: number of posts to train on; 0 = all.
        embedding: `labels.comment_encoder`.
        truth: whether engagement names the true class (`pairing.true_labels`).
        epochs: to train for; 0 = `Setting.steps`.
    """

    noise: float = 0.5
    heads: tuple[str, ...] = ("comments", "reactions")
    comments: int = 32
    reactions: int = 16
    examples: int = 0
    embedding: str = "lsa"
    truth: bool = False
    epochs: int = 0

    @property
    def name(self) -> str:
        """A directory's name that holds all values."""
        if self.truth:
            return "true_labels"
        heads = "+".join(self.heads)
        name = (
            f"noise{self.noise:g}-{heads}-k{self.comments}-{self.reactions}-n{self.examples or 'all'}-{self.embedding}"
        )
        return f"{name}-{self.epochs}epochs" if self.epochs else name


BASE = Cell()
TRUTH = Cell(noise=0.0, heads=("reactions",), truth=True)


def studies(setting: Setting, training: int) -> dict[str, dict[str, Cell]]:
    """Return the cells of each study by their label in tables and figures.

    Args:
        setting: has the sizes.
        training: number of posts to train on where all are used.
    """
    change = dataclasses.replace
    return {
        "heads": {
            "both": BASE,
            "comments": change(BASE, heads=("comments",)),
            "reactions": change(BASE, heads=("reactions",)),
        },
        "size": {
            f"{size or training:,}": change(BASE, examples=size, epochs=setting.epochs) for size in (*setting.sizes, 0)
        },
        "repeats": {f"{setting.sizes[0]:,}": change(BASE, examples=setting.sizes[0]), f"{training:,}": BASE},
        "noise": {f"{noise:g}": change(BASE, noise=noise) for noise in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)},
        "clusters": {
            f"{comments} and {reactions}": change(BASE, comments=comments, reactions=reactions)
            for comments, reactions in ((8, 16), (32, 16), (256, 16), (32, 4), (32, 64))
        },
        "embedding": {
            name: change(BASE, examples=setting.sizes[len(setting.sizes) // 2], embedding=name)
            for name in ("lsa", "transformer")
        },
        "lowshot": {"VisE": BASE},
    }


def main(words: list[str]) -> None:
    cli.no_words(words)
    if QUICK.value:
        with tempfile.TemporaryDirectory() as name:
            run(_QUICK, *simulated(Path(name)), Path(name) / "output", [0])
        return
    images, labeled, posts, output = (Path(cli.required(flag)) for flag in (IMAGES, LABELED, POSTS, OUTPUT))
    run(SETTINGS[SETTING.value], images, labeled, posts, output, [int(seed) for seed in SEEDS.value])


def run(setting: Setting, images: Path, labeled: Path, posts: Path, output: Path, seeds: Sequence[int]) -> None:
    """Measure all cells with all seeds, and write the tables and figures after each.

    Args:
        setting: of encoders.
        images: to be posted, see `datasets.open_labeled`.
        labeled: to measure encoders on.
        posts: file of posts.
        output: directory of everything.
        seeds: of channel, labels and training.
    """
    dataset = datasets.open_labeled(images)
    requested = studies(setting, round(_TRAINED * len(dataset)))
    if unknown := sorted(set(STUDIES_FLAG.value or ()) - requested.keys()):
        raise UserError(f"--studies has no {unknown[0]!r}: choose from {', '.join(requested)}.")
    if not TEXT_ENCODER.value:
        del requested["embedding"]
    names = STUDIES_FLAG.value or (["lowshot"] if QUICK.value else list(requested))
    chosen = {name: cells for name, cells in requested.items() if name in names}
    output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(output.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    engagement = pairing.read_engagement(posts)
    if len(dataset.classes) > 31:
        raise UserError(f"{images} has {len(dataset.classes)} classes: reactions can name 31 at most.")
    named = {study: {label: cell.name for label, cell in of.items()} for study, of in chosen.items()}
    about = {
        "benchmark": "evidence",
        "pairing": "simulated",
        "device": jax.devices()[0].device_kind,
        "setting": dataclasses.asdict(setting),
        "seeds": list(seeds),
        "images": {"posted": dataset.fingerprint, "classes": list(dataset.classes), "number": len(dataset)},
        "tuned": _TUNED,
        "cells": named,
    }
    # Every cell once; the studies take turns, the ends of each first.
    turns = itertools.zip_longest(*(ends_first(list(of.values())) for of in chosen.values()))
    cells = list(dict.fromkeys([BASE, TRUTH, *filter(None, itertools.chain.from_iterable(turns))]))
    if REPORT.value:
        cells = [cell for cell in cells if all(encoder_of(cell, seed, output).exists() for seed in seeds)]
        if not cells:
            raise UserError(f"{output} has no cell with an encoder of every seed: run the command without --report.")
    rows: list[dict[str, Any]] = []
    for cell in cells:
        for seed in seeds:
            encoder = pretrain_cell(cell, seed, setting, dataset, engagement, output)
            rows += measure_cell(cell.name, str(encoder), cell == BASE, seed, setting, labeled, output)
            if cell == BASE:
                rows += measure_cell("random", f"random:{encoder}", True, seed, setting, labeled, output)
        write_report(rows, named, _TUNED, setting.shots, about, output)
    print(json.dumps({**about, "ratios": ratios(rows, setting.shots)}))


def ends_first(cells: list[Cell]) -> list[Cell]:
    """Return the first, the last, the second, the second to last, …"""
    return [cells[-(place // 2) - 1 if place % 2 else place // 2] for place in range(len(cells))]


def encoder_of(cell: Cell, seed: int, output: Path) -> Path:
    return output / f"seed{seed}" / cell.name / "encoder"


def pretrain_cell(
    cell: Cell, seed: int, setting: Setting, dataset: Dataset, engagement: pairing.Engagement, output: Path
) -> Path:
    """Pair, fit, label and train, unless the encoder is there; return its directory."""
    from vise_jax.labeling import fit, label
    from vise_jax.training import pretrain

    encoder, directory = encoder_of(cell, seed, output), output / f"seed{seed}"
    if encoder.exists():
        return encoder
    log.info("%s, seed %d", cell.name, seed)
    experiment = configure(cell, seed, setting, len(dataset), len(dataset.classes))
    channel = "true" if cell.truth else f"noise{cell.noise:g}"
    posts = directory / f"posts-{channel}.parquet"
    if not posts.exists():
        posts.parent.mkdir(parents=True, exist_ok=True)
        write_posts(cell, seed, dataset, engagement, posts)
    # Cells that differ in neither share the labeler and the shards.
    kind = f"{channel}-k{cell.comments}-{cell.reactions}-{cell.embedding}"
    labeler, shards = directory / f"labeler-{kind}", directory / f"shards-{kind}-n{cell.examples or 'all'}"
    workers = machine.available_cpus()
    fit.fit([posts], experiment.labels, labeler, workers=workers)
    label.label([posts], labeler, experiment.labels, shards, workers=workers)
    experiment.data.shards = str(shards)
    pretrain.train(experiment, encoder.parent / "run")
    (encoder.parent / "run" / "encoder").rename(encoder)
    shutil.rmtree(encoder.parent / "run")
    return encoder


def configure(cell: Cell, seed: int, setting: Setting, posts: int, classes: int) -> ConfigDict:
    """Return the config of a cell's labels and training."""
    experiment = config.base()
    experiment.labels.update(
        comment_clusters=cell.comments,
        reaction_clusters=classes if cell.truth else cell.reactions,
        comment_encoder=cell.embedding,
        vectors=TEXT_ENCODER.value if cell.embedding == "transformer" else "",
        comment_dim=64,
        # The drawn posts of --quick are few.
        allow_fewer_clusters=QUICK.value,
        cluster_fraction=1 - _TRAINED,
        seed=seed,
        # One shard of a few megabytes is few to shuffle.
        shard_megabytes=8.0,
    )
    if cell.examples:
        experiment.labels.train_fraction = min(cell.examples / (_TRAINED * posts), 1.0)
    experiment.data.update(image_size=setting.crop, crop_area=_CROPS)
    experiment.model.update(name=setting.encoder, stem=setting.stem, width=setting.width, heads=cell.heads, bn_group=0)
    experiment.training.update(
        batch_size=setting.batch,
        **({"epochs": cell.epochs} if cell.epochs else {"steps": setting.steps}),
        learning_rate=setting.rate,
        weight_decay=5e-4,
        # Only at the end.
        checkpoint_every=1_000_000,
        evaluate_every=0,
        seed=seed,
    )
    return experiment


def write_posts(cell: Cell, seed: int, dataset: Dataset, engagement: pairing.Engagement, path: Path) -> None:
    """Write the paired posts, in an order that tells nothing of the classes."""
    order = np.random.default_rng([seed, 2]).permutation(len(dataset))
    labels = dataset.labels[order]
    if cell.truth:
        posts = pairing.true_labels(labels)
    else:
        channel = pairing.draw_channel(engagement, len(dataset.classes), cell.noise, seed)
        posts = pairing.through(channel, engagement, labels, seed)
    with artifact.atomic_file(path) as file:
        pairing.write_posts(dataset, order.tolist(), posts, file)


def measure_cell(
    name: str, encoder: str, reference: bool, seed: int, setting: Setting, labeled: Path, output: Path
) -> list[dict[str, Any]]:
    """Measure an encoder by every protocol; a reference also with every number of labels to fine-tune on."""
    from vise_jax.evaluation import measure

    dataset, rows = datasets.open_labeled(labeled), []
    shots = setting.shots if reference else (_TUNED,)
    for protocol, labels in [("linear", 0), ("knn", 0), *(("finetune", number) for number in shots)]:
        experiment = config.evaluation()
        experiment.update(protocol=protocol, seed=seed, splits=1, train_fraction=0.5, validation_fraction=0.1)
        if labels:
            count = labels * len(dataset.classes)
            # As many images to select on as to train on, at most a tenth.
            experiment.train_fraction = count / len(dataset)
            experiment.validation_fraction = min(count / len(dataset), 0.1)
            epochs = setting.tuning_steps * _TUNING_BATCH / count
            experiment.finetune.update(
                learning_rates=(0.4,),
                weight_decays=(5e-4,),
                batch_size=_TUNING_BATCH,
                epochs=epochs,
                evaluate_every=epochs / 5,
                crop_area=_CROPS,
                checkpoint_every=setting.tuning_steps,
            )
        result, _ = measure.measure(experiment, encoder, labeled, output / f"results{seed}", name=name)
        accuracy = result["metrics"]["accuracy"]["mean"]
        rows.append({"cell": name, "seed": seed, "protocol": protocol, "labels": labels, "accuracy": accuracy})
    return rows


def ratios(rows: Sequence[dict[str, Any]], shots: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the accuracy of the base cell divided by that of random initialization, by protocol."""
    found = {}
    for protocol, labels in (("linear", 0), ("knn", 0), *(("finetune", number) for number in shots)):
        ours, theirs = (
            np.array([row["accuracy"] for row in rows if (row["cell"], row["protocol"], row["labels"]) == what])
            for what in ((BASE.name, protocol, labels), ("random", protocol, labels))
        )
        found[f"random {protocol} {labels}".removesuffix(" 0")] = ratio(ours, theirs)
    return found


def simulated(directory: Path) -> tuple[Path, Path, Path]:
    """Write drawn images of three classes and simulated posts; return the arguments of `run`."""
    draw = np.random.default_rng(0)
    for kind, count in (("images", 40), ("labeled", 200)):
        for label, cells in (("few", 3), ("some", 6), ("many", 12)):
            (directory / kind / label).mkdir(parents=True)
            for number in range(count):
                (directory / kind / label / f"{number}.jpg").write_bytes(pattern(draw, cells, (32, 32)))
    words = np.array([f"word{number}" for number in range(120)])
    lines = [
        json.dumps(
            {
                "post_id": str(number),
                "image": None,
                "comments": [" ".join(draw.choice(words[number % 6 :: 6], 5))],
                "reactions": dict(
                    zip(REACTIONS, (10 * draw.dirichlet([0.3] * 5) + 3).astype(int).tolist(), strict=True)
                ),
            }
        )
        for number in range(600)
    ]
    (directory / "posts.jsonl").write_text("\n".join(lines) + "\n")
    return directory / "images", directory / "labeled", directory / "posts.jsonl"


if __name__ == "__main__":
    cli.run(main, __doc__)
