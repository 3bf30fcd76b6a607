"""Jobs on a small simulated corpus: what they read, run and leave."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures
from two_hosts import TwoHosts

from vise_jax import config

# Files of a run that tell when it ran, and how fast.
_TIMES = (
    *("train.log", "train-1.log", "tensorboard", "compilation_cache", "compiled"),
    *("checkpoints", "weights", ".lock"),
)
# Of a run.
STEPS = 40
_READING = {"threads": 1, "max_image_pixels": 1_000_000}


def _labels() -> Any:
    labels = config.base().labels
    labels.update(comment_clusters=4, reaction_clusters=3, cluster_fraction=0.3, comment_dim=6, min_comment_count=2)
    labels.update(min_posts_to_stop=0, shard_megabytes=0.05, split_megabytes=0.02)
    return labels


def _posts(inputs: Path) -> list[Path]:
    from vise_jax.posts import expand

    return expand(f"{inputs}/corpus/posts/*.jsonl")


def fit(inputs: Path, output: Path) -> None:
    from vise_jax.labeling.fit import fit

    fit(_posts(inputs), _labels(), output / "labeler")


def label(inputs: Path, output: Path) -> None:
    from vise_jax.labeling.label import label

    label(_posts(inputs), inputs / "labeler", _labels(), output / "shards")


def delete(inputs: Path, output: Path) -> None:
    from vise_jax.labeling.delete import delete

    delete(output / "shards", _labels(), inputs / "labeler", inputs / "ids.txt")


def train(inputs: Path, output: Path, distributed: str = "off") -> None:
    from vise_jax.training import pretrain

    settings = config.base()
    settings.data.update(image_size=32, shards=str(inputs / "shards"), threads=1)
    settings.model.update(name="resnet18", width=4)
    settings.training.update(batch_size=8, steps=STEPS, checkpoint_every=5, log_every=1, keep_checkpoints=2)
    settings.training.update(distributed=distributed, heartbeat_seconds=5)
    pretrain.train(settings, output / "run")


def train_two(inputs: Path, output: Path, index: int) -> None:
    """The same run by two processes, each on its own host. This is the one of an index."""
    train(inputs, output, f"{TwoHosts.addresses[0]}:8476,2,{index}")


def convert(inputs: Path, output: Path) -> None:
    from vise_jax import interop

    interop.convert_to(output / "encoder", inputs / "weights.safetensors", "vise_jax")


def extract(inputs: Path, output: Path) -> None:
    from vise_jax.data import datasets
    from vise_jax.encoder import Encoder
    from vise_jax.inference import extract

    encoder, images = Encoder.load(inputs / "encoder"), datasets.open_unlabeled(inputs / "corpus" / "affect")
    # Parts of 32 images.
    extract._PART = 32
    extract.export(encoder, images, encoder.preprocessing, output / "features.npz", batch_size=16, **_READING)


def _evaluate(protocol: str, inputs: Path, output: Path) -> None:
    from vise_jax.evaluation import measure

    settings = config.evaluation()
    settings.update(task="folder", protocol=protocol, threads=1, batch_size=16)
    settings.finetune.update(epochs=2, batch_size=16, learning_rates=(0.01,), weight_decays=(0.0,), checkpoint_every=2)
    measure.measure(settings, str(inputs / "encoder"), inputs / "corpus" / "affect", output / "results", "trained")


def linear(inputs: Path, output: Path) -> None:
    _evaluate("linear", inputs, output)


def finetune(inputs: Path, output: Path) -> None:
    _evaluate("finetune", inputs, output)


def predict(inputs: Path, output: Path) -> None:
    from vise_jax.data import datasets
    from vise_jax.encoder import Encoder
    from vise_jax.engagement import Labeler
    from vise_jax.reporting import predictions

    predictions.write(
        Encoder.load(inputs / "encoder"),
        Labeler.load(inputs / "labeler"),
        datasets.open_unlabeled(inputs / "corpus" / "affect"),
        output / "predictions.jsonl",
        top=2,
        on_page=5,
        batch_size=16,
        **_READING,
    )


def explain(inputs: Path, output: Path) -> None:
    from vise_jax.data import datasets
    from vise_jax.evaluation import explained
    from vise_jax.reporting import explanations

    column = explained.open_column(str(inputs / "encoder"), "clusters", str(inputs / "labeler"), 0, 0)
    images = datasets.open_unlabeled(inputs / "corpus" / "affect")
    explanations.write([explanations.Explained(*column)], images, output / "maps", most=10, **_READING)


def reproduce(inputs: Path, output: Path) -> None:
    """Table 3 on a miniature dataset with one encoder: two evaluations, each in a process of its own, and a page."""
    from vise_jax.reporting import study
    from vise_jax.reproduction import paper, plan, run

    changes = "finetune.epochs=1", "finetune.learning_rates=(0.1,)", "finetune.weight_decays=(1e-4,)", "splits=2"
    planned = plan.Plan(paper.EXPERIMENTS["table3"], output / "study", plan.Settings(evaluation=changes))
    try:
        run.run(planned, Path(__file__).parents[2])
    finally:
        study.write(planned, output / "study" / "table3")


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job
    for job in (
        *(fit, label, delete, train, train_two, convert),
        *(extract, linear, finetune, predict, explain, reproduce),
    )
}


def prepare(inputs: Path) -> None:
    """Write what the jobs read: corpus, labeler, shards, an encoder, weights to convert, ids to delete."""
    from vise_jax import interop
    from vise_jax.data import shards
    from vise_jax.demo.corpus import make_corpus
    from vise_jax.encoder import Encoder

    make_corpus(inputs / "corpus", posts=150, labeled=120, processes=1)
    fit(inputs, inputs)
    label(inputs, inputs)
    train(inputs, inputs)
    (inputs / "run" / "encoder").rename(inputs / "encoder")
    shutil.rmtree(inputs / "run")
    encoder = Encoder.random("resnet18", 0)
    interop.export(encoder, "torchvision", inputs / "weights.safetensors")
    miniatures.unbiased_emotion(inputs / "study" / "data" / "unbiased_emotion")
    shutil.copytree(inputs / "encoder", inputs / "study" / "encoders" / "vise_1m-resnet50")
    manifest = shards.read_manifest(inputs / "shards")
    assert manifest["examples"] > 20, "the jobs are too small"
    lines = [line for path in _posts(inputs) for line in path.read_text("utf-8").splitlines()]
    (inputs / "ids.txt").write_text("".join(f"{json.loads(line)['post_id']}\n" for line in lines[::7]))


def begin(job: str, inputs: Path, output: Path) -> None:
    """Write what a job changes into its output directory."""
    if job == "delete":
        shutil.copytree(inputs / "shards", output / "shards")
    # Links, so that damage is done to what it writes only.
    if job == "reproduce":
        (output / "study").mkdir()
        for path in (inputs / "study").iterdir():
            (output / "study" / path.name).symlink_to(path)


def digest(output: Path) -> dict[str, str]:
    """Return the SHA-256 of each file, without what tells when the job ran and how fast."""
    from vise_jax.encoder import Encoder

    return {
        name: hashlib.sha256(_content(path)).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and not any(part in _TIMES for part in path.relative_to(output).parts)
        for name in [path.relative_to(output).as_posix()]
    } | {
        # Orbax's files have names that are drawn. Loading compares the weights with the SHA-256 of encoder.json.
        path.parent.relative_to(output).as_posix(): Encoder.load(path.parent).fingerprint
        for path in output.rglob("encoder.json")
    }


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "metrics.jsonl":
        kept = [
            {k: v for k, v in json.loads(line).items() if "second" not in k and k != "goodput"}
            for line in io.BytesIO(content)
        ]
        return json.dumps(kept).encode()
    if path.suffix == ".json" and b'"seconds"' in content:
        return json.dumps({k: v for k, v in json.loads(content).items() if k != "seconds"}).encode()
    return content
