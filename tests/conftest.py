"""Strict JAX on four virtual CPU devices, for every test; engagement shards small enough to train on; a labeler made by
hand, and an encoder that predicts its clusters."""

import contextlib
import io
import os
import platform
import runpy
from collections.abc import Callable
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
# Programs are compiled once for all workers and commands, and for later runs on this machine from any checkout.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vise_jax-tests" / platform.node()),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vise_jax import artifact, models, variables
from vise_jax.data import shards
from vise_jax.encoder import Encoder
from vise_jax.engagement import Labeler
from vise_jax.engagement.comments import CommentEncoder
from vise_jax.models import resnet
from vise_jax.preprocessing import Preprocessing
from vise_jax.text_encoder import TextEncoder

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Half the time to compile: tests are about numbers, not speed. Commands that tests start are optimized.
jax.config.update("jax_disable_most_optimizations", True)
# Two blocks, which compile in a quarter of a ResNet-18's time: for tests of the training step and loop.
resnet.ENCODERS["tiny"] = {"block": resnet.BasicBlock, "blocks": (1, 1, 0, 0)}
resnet.ENCODERS["tiny_next"] = {**resnet.ENCODERS["resnext101_32x8d"], "blocks": (1, 1, 0, 0)}
models.ENCODERS = (*models.ENCODERS, "tiny", "tiny_next")


@pytest.fixture(scope="session")
def load_config() -> Callable[[str], ConfigDict]:
    """Loads what `--config` names: FILE.py[:ARGUMENT], relative to the repository."""

    def load(words: str) -> ConfigDict:
        path, _, argument = words.partition(":")
        get_config = runpy.run_path(str(Path(__file__).parents[1] / path))["get_config"]
        return get_config(argument) if argument else get_config()

    return load


@pytest.fixture(scope="module", autouse=True)
def _release_programs():
    """Drop the compiled programs of a module, which would fill the memory of a worker."""
    yield
    jax.clear_caches()


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40 + number % 9, 48, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if number % 4 == 0 else "JPEG")
    return file.getvalue()


def example(number: int) -> dict:
    return {
        "image/encoded": picture(number),
        "post_id": b"%04d" % number,
        "comments/labels": list(range(number % 4)),
        "comments/weights": [1.0] * (number % 4),
        "reactions/label": number % 3 - 1,
    }


@pytest.fixture(scope="session")
def make_example():
    """From a number to the example of that number in `shards_folder`."""
    return example


@pytest.fixture(scope="session")
def shards_folder(tmp_path_factory) -> Path:
    """41 examples in shards of different sizes; example n has n % 4 comment labels and the reaction n % 3 - 1."""
    directory = tmp_path_factory.mktemp("shards")
    sizes = [9, 1, 12, 4, 8, 7]
    numbers = iter(range(41))
    written = [
        shards.write_shard([example(next(numbers)) for _ in range(size)], directory / f"s-{shard}.tfrecord")
        for shard, size in enumerate(sizes)
    ]
    manifest = {
        "format_version": shards.FORMAT_VERSION,
        "posts": 41,
        "examples": 41,
        "classes": {"comments": 3, "reactions": 2},
        "max_comment_labels": 3,
        "shards": written,
        "validation": {"examples": 0, "shards": []},
        "labeler": "0",
        "fingerprint": "1",
    }
    artifact.write_json(directory / "manifest.json", manifest)
    return directory


@pytest.fixture(scope="session")
def labeler() -> Labeler:
    """Four comment clusters, of which number 2 is suppressed, and three reaction clusters."""
    vocabulary = ["dog", "🐶", "sea", "<script>alert(1)</script>", "secret", "'\"&"]
    terms = np.array([[0, 1, -1], [2, 3, -1], [4, -1, -1], [5, -1, -1]], np.int32)
    return Labeler(
        {"comment_encoder": "lsa", "reactions": ["haha", "sorry", "angry", "wow", "love"]},
        "check",
        CommentEncoder("lsa", vocabulary, np.ones(6, np.float32), np.eye(6, 2, dtype=np.float32)),
        np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32),
        np.array([[0, 0, 0, 0, 1], [0.4, 0.4, 0.4, 0.4, 0.4], [0.1, 0.9, 0.3, 0, 0]], np.float32),
        terms,
        np.where(terms >= 0, 0.5, 0).astype(np.float32),
        np.array([2], np.int32),
    )


@pytest.fixture(scope="session")
def trained(labeler) -> Encoder:
    """An encoder with random weights that says that it was trained on that labeler's labels."""
    architecture = {"name": "resnet18", "width": 4, "stem": "cifar", "heads": labeler.classes}
    return Encoder.from_model(
        models.build(**architecture, seed=1),
        architecture=architecture,
        preprocessing=Preprocessing.imagenet(16),
        provenance={"trained": {"labeler": labeler.fingerprint}},
        license="<b>CC0</b>",
    )


@pytest.fixture(scope="session")
def make_result() -> Callable[..., dict]:
    """From changes of its keys to a complete result of a linear probe, as `results.write` takes it."""

    def make(value: float = 0.5, std: float | None = None, metric: str = "accuracy", **changes: object) -> dict:
        selected = {"settings": {"l2": 0.1}, "validation": value, "test": value, "details": {}}
        other = {"settings": {"l2": 0.01}, "validation": value / 2, "test": value / 2, "details": {}}
        split = {"seed": 0, "variant": "", "sizes": {"train": 4, "validation": 2, "test": 2}, "metrics": {}}
        split |= {"per_class_accuracy": [1.0, None], "confusion": [[2, 0], [0, 0]]}
        data = {"name": "birds", "fingerprint": "d" * 64, "images": 8, "left_out": {"images": 0, "names": []}}
        encoder = {"name": "x", "fingerprint": "f" * 64, "modality": "image", "architecture": {}, "preprocessing": {}}
        return {
            "task": "cub",
            "protocol": "linear",
            "setting": "image",
            "config": {"linear.iterations": 500, "task": "cub"},
            "primary": metric,
            "metrics": {metric: {"mean": value, "std": std, "values": [value]}},
            "selection": {"split": "validation", "metric": metric, "grid": {"l2": [0.01, 0.1]}, "selected": [{}]},
            "splits": [{**split, "sweep": [other, selected], "selected": selected}],
            "encoder": {**encoder, "feature_dim": 2, "provenance": {}, "license": "CC0"},
            "text_encoder": None,
            "data": {**data, "truncated_texts": 0, "leaks": None, "classes": ["a", "b"], "official_splits": True},
            "seconds": 1.0,
            **changes,
        }

    return make


WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(28))]


@pytest.fixture(scope="session")
def text_encoder() -> TextEncoder:
    """A transformer of one layer with random weights, for texts of the words w0 to w27, up to 16 tokens."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    sizes = {"layers": 1, "width": 16, "attention_heads": 2, "intermediate_width": 16, "vocabulary": 32}
    sizes |= {"positions": 18, "segments": 1, "first_position": 2, "epsilon": 1e-5}
    architecture = models.resolve("transformer", **sizes, pooling="mean", unit_length=False)
    weights = variables.of_model(models.build(**architecture, seed=2))
    # Larger embeddings than of a new network, so that texts differ.
    weights["embeddings/word_embeddings/embedding"] *= 20
    return TextEncoder(architecture, weights, tokenizer.to_str().encode(), 16, {}, "CC0")


class Killed(BaseException):
    """A kill, as tests see it."""


@pytest.fixture
def run_with_kills(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], int, int], int]:
    """Run an action, killed after `first` atomic writes, then again, each time after `more` more, until it ends.

    Returns the number of kills.
    """
    write = artifact.atomic_file

    def run(action: Callable[[], object], first: int, more: int) -> int:
        left = kills = 0

        def limited(path: Path) -> contextlib.AbstractContextManager:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return write(path)

        monkeypatch.setattr(artifact, "atomic_file", limited)
        # A job that was killed removes nothing.
        monkeypatch.setattr("vise_jax.labeling.label.output_dir.remove", lambda output: None)
        while True:
            left = first + more * kills
            try:
                action()
                return kills
            except Killed:
                kills += 1

    return run
