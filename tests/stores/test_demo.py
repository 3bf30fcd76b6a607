"""Posts to predictions with every artifact in a bucket: the files of the same commands on disk."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax import config as vise_config
from vise_jax.data import datasets
from vise_jax.demo.corpus import make_corpus
from vise_jax.encoder import Encoder
from vise_jax.engagement import Labeler
from vise_jax.evaluation import clusters as agreement
from vise_jax.evaluation import explained, measure, results
from vise_jax.inference import extract, feature_files, neighbors
from vise_jax.labeling.fit import fit
from vise_jax.labeling.label import label
from vise_jax.posts import expand
from vise_jax.reporting import clusters, curves, explanations, page, predictions, runs, sensitivity, tables
from vise_jax.training import pretrain

# Each goes all the way.
pytestmark = pytest.mark.slow

READING = {"threads": 2, "max_image_pixels": 1_000_000}


def whole_demo(root: Path, evaluation: Callable[[str], ConfigDict]) -> dict[str, Any]:
    """Run the demo below a directory; return what is compared: SHA-256 of files, and numbers."""
    config = vise_config.base()
    config.labels.update(comment_clusters=4, reaction_clusters=3, cluster_fraction=0.3, comment_dim=6)
    config.labels.update(min_comment_count=2, min_posts_to_stop=0, shard_megabytes=0.05)
    config.data.update(image_size=32, shards=str(root / "shards"), threads=2)
    config.model.update(name="tiny", width=8)
    config.training.update(batch_size=8, steps=6, checkpoint_every=3, log_every=1)
    make_corpus(root / "corpus", posts=60, labeled=36, processes=1)
    posts = expand(f"{root}/corpus/posts/*.jsonl")
    fit(posts, config.labels, root / "labeler")
    label(posts, root / "labeler", config.labels, root / "shards")
    pretrain.train(config, root / "run")
    encoder, labeler = Encoder.load(root / "run" / "encoder"), Labeler.load(root / "labeler")

    measured = {}
    with datasets.on_disk(root / "corpus" / "affect") as data:
        for protocol in ("linear", "finetune"):
            settings = evaluation(f"folder,{protocol}")
            settings.threads = 2
            settings.finetune.update(epochs=1, batch_size=8, learning_rates=(0.01,), weight_decays=(0.0,), seeds=1)
            result, path = measure.measure(settings, str(root / "run" / "encoder"), data, root / "results", "trained")
            measured[protocol] = result["metrics"]
            again, same = measure.measure(settings, str(root / "run" / "encoder"), data, root / "results", "trained")
            assert (again, same) == (result, path)
        images = datasets.open_unlabeled(data)
        query = datasets.open_unlabeled(next(data.rglob("*.jpg")))
        for name in ("features.npz", "features.parquet"):
            extract.export(encoder, images, encoder.preprocessing, root / name, batch_size=16, **READING)
        nearest = neighbors.nearest(encoder, root / "features.parquet", query, 3, READING["max_image_pixels"])
        predictions.write(
            encoder, labeler, images, root / "predictions.jsonl", top=2, on_page=3, batch_size=16, **READING
        )
        column = explained.open_column(str(root / "run" / "encoder"), "clusters", str(root / "labeler"), 0, 0)
        explanations.write([explanations.Explained(*column)], images, root / "maps", most=2, **READING)
    every = results.read_all(root / "results")
    tables.write(every, root / "report")
    sensitivity.write(every, root / "report")
    page.write(clusters.summarize(*clusters.read(root / "labeler", root / "shards")), {}, root / "report")
    curves.write(runs.read([root / "run"]), root / "report")
    return {
        "metrics": measured,
        "nearest": nearest,
        "agreement": agreement.agreement(root / "corpus", labeler),
        "features": np.concatenate([features for _, features in feature_files.read(root / "features.npz")]).tolist(),
        "losses": [json.loads(line)["loss"] for line in (root / "run" / "metrics.jsonl").read_bytes().splitlines()],
        "files": {
            f"{part}/{name}": hashlib.sha256(content).hexdigest()
            for part in ("corpus/posts", "labeler", "shards", "run/encoder", "maps", "")
            for name, content in artifact.read_files(root / part, "").items()
            # Features and predictions are tied to the dataset, whose files have other times.
            if name != ".lock" and not name.startswith(("features.", "predictions."))
        },
        # The names of measurements end in a fingerprint, also of the times of the dataset's files.
        **{
            part: {re.sub(r"-[0-9a-f]{8}\.", ".", name) for name in artifact.entries(root / part)}
            for part in ("results", "report")
        },
        "predicted": (root / "predictions.jsonl").read_bytes(),
    }


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory: pytest.TempPathFactory, load_config: Callable[[str], ConfigDict]) -> dict[str, Any]:
    return whole_demo(tmp_path_factory.mktemp("demo"), lambda argument: load_config(f"configs/eval.py:{argument}"))


def test_the_demo_in_a_bucket_is_that_of_the_disk(
    store: Any, on_disk: dict[str, Any], load_config: Callable[[str], ConfigDict]
) -> None:
    root = artifact.location(f"{store.root}/demo")
    found = whole_demo(root, lambda argument: load_config(f"configs/eval.py:{argument}"))
    assert found.keys() == on_disk.keys()
    for name, value in on_disk.items():
        assert found[name] == value, name
    # No parts, locks or runs are left.
    assert not [name for name in artifact.tree(root) if "/." in f"/{name}" and not name.endswith(".lock")]
