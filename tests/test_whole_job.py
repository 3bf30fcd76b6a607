"""The whole job: posts, labels, training, evaluation, on a small corpus and a small encoder."""

import ast
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

import vise_jax
from vise_jax.demo.corpus import make_corpus
from vise_jax.labeling.fit import fit
from vise_jax.labeling.label import label

ROOT = Path(__file__).parents[1]
STEPS = 60
KEYS = [
    "--config.labels.comment_clusters=6",
    "--config.labels.reaction_clusters=4",
    "--config.labels.cluster_fraction=0.5",
    "--config.labels.comment_dim=8",
    "--config.data.image_size=32",
    "--config.model.width=4",
    "--config.training.batch_size=8",
    f"--config.training.steps={STEPS}",
    "--config.training.checkpoint_every=7",
]
# One device: these runs are not about sharding. Nor are they about speed: half the time to compile.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def command(script: str, *words: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *map(str, words)]


def run(script: str, *words: str | Path) -> str:
    result = subprocess.run(command(script, *words), capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """Corpus, labeler and shards."""
    directory = tmp_path_factory.mktemp("job")
    make_corpus(directory / "corpus", posts=120, labeled=60)
    posts = sorted((directory / "corpus" / "posts").glob("*.jsonl"))
    labels = demo_config().labels
    fit(posts, labels, directory / "labeler")
    label(posts, directory / "labeler", labels, directory / "shards")
    return directory


@pytest.fixture(scope="module")
def trained(job) -> Path:
    """The job, and an undisturbed run."""
    run("train", *training(job), "--workdir", job / "run")
    return job


def demo_config() -> ConfigDict:
    """Return configs/demo.py with the changes of KEYS."""
    spec = importlib.util.spec_from_file_location("demo_config", ROOT / "configs" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    keys = dict(key.removeprefix("--config.").split("=") for key in KEYS)
    config.update_from_flattened_dict({key: ast.literal_eval(value) for key, value in keys.items()})
    return config


def training(directory: Path) -> list[str]:
    return ["--config", "configs/demo.py", *KEYS, f"--config.data.shards={directory / 'shards'}"]


def metrics(run_folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    times = {"images_per_second", "step_seconds", "data_seconds", "goodput"}
    return [{key: value for key, value in record.items() if key not in times} for record in records]


def state(run_folder: Path) -> dict[str, np.ndarray]:
    return ocp.StandardCheckpointer().restore((run_folder / "checkpoints" / str(STEPS) / "default").absolute())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, 0),
    ],
)
@pytest.mark.slow
def test_an_ended_run_resumes_to_the_same_bits(trained, sent, status):
    workdir = trained / sent.name
    process = subprocess.Popen(
        command("train", *training(trained), "--workdir", workdir), env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    # Ended with a checkpoint on the disk and, most likely, records beyond it.
    while process.poll() is None and not (workdir / "checkpoints" / "14").exists():
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait() == status
    assert not (workdir / "encoder").exists(), "the run was over before it could be ended: take more steps"
    run("train", *training(trained), "--workdir", workdir)
    assert metrics(workdir) == metrics(trained / "run")
    undisturbed, resumed = state(trained / "run"), state(workdir)
    assert undisturbed.keys() == resumed.keys()
    for name, value in undisturbed.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@pytest.mark.slow
def test_what_a_run_writes(trained):
    records = metrics(trained / "run")
    assert [record["step"] for record in records] == list(range(10, STEPS + 1, 10))
    assert all(np.isclose(r["loss"], r["loss_comments"] + r["loss_reactions"], rtol=1e-5) for r in records)
    assert (trained / "run" / "config.json").exists()
    assert list((trained / "run" / "tensorboard").iterdir())


def test_the_shards_hold_no_words(job):
    words = set()
    for path in (job / "corpus" / "posts").glob("*.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            words |= {word.encode() for comment in json.loads(line)["comments"] for word in comment.split()}
    words = {word for word in words if len(word) > 6}
    assert len(words) > 20
    for path in [*(job / "shards").glob("*.tfrecord"), *(job / "shards").rglob("*.json")]:
        content = path.read_bytes()
        assert not [word for word in words if word in content], path


@pytest.mark.slow
def test_the_encoder_is_evaluated_and_reported(trained):
    for encoder in (trained / "run" / "encoder", f"random:{trained / 'run' / 'encoder'}"):
        words = ["--encoder", encoder, "--data", trained / "corpus" / "affect", "--output", trained / "results"]
        run("evaluate", "--config", "configs/eval.py:folder,linear", "--config.linear.iterations=20", *words)
    results = [json.loads(path.read_text()) for path in (trained / "results").glob("*.json")]
    assert len(results) == 2
    means = [result["metrics"][result["primary"]]["mean"] for result in results]
    assert all(0 <= mean <= 1 for mean in means)
    run("report", "--results", trained / "results", "--output", trained / "report")
    table = (trained / "report" / "table.md").read_text()
    assert all(f"{100 * mean:.1f}" in table for mean in means)


@pytest.mark.slow
def test_the_encoder_gives_features(trained):
    encoder = vise_jax.Encoder.load(trained / "run" / "encoder")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    features = encoder.features(images)
    assert features.shape == (3, 32)
    assert features.dtype == np.float32
    np.testing.assert_allclose(encoder.feature_map(images).mean((1, 2)), features, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_workdir_of_another_experiment_is_refused(trained):
    words = command("train", *training(trained), "--config.training.seed=5", "--workdir", trained / "run")
    result = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert result.returncode == 1
    assert "training.seed" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_what_was_trained_predicts_the_labeler_s_clusters(trained):
    output = trained / "predictions.jsonl"
    photos = trained / "corpus" / "topic" / "test"
    given = ["--encoder", trained / "run" / "encoder", "--labeler", trained / "labeler", "--images", photos]
    assert "20 images" in run("predict", *given, "--output", output)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert all(line["comments"][0]["words"] for line in lines)
    assert all(abs(sum(line["reactions"].values()) - 1) < 1e-5 for line in lines)
