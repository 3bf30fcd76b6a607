"""Jobs write through no link that is in their output directory, and read through none that leads out of their input."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
import hostile_files

from vise_jax import config
from vise_jax.errors import UserError
from vise_jax.importing.importer import import_posts
from vise_jax.importing.kinds import of_table
from vise_jax.labeling.label import label
from vise_jax.training import run_dir


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Posts with their labeler, and a file that is no one's business."""
    (directory := tmp_path / "inputs" / "labeler").mkdir(parents=True)
    hostile_files.READERS["labeler"].write(directory)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    return tmp_path / "inputs"


def _label(inputs: Path, output: Path) -> None:
    label([inputs / "posts" / "posts.jsonl"], inputs / "labeler", hostile_files.labels(), output)


def _train(inputs: Path, output: Path) -> None:
    with run_dir.acquire(output, dict(config.flat(config.base())), ["f"], 0):
        pass


def _import(inputs: Path, output: Path) -> None:
    (inputs / "table.jsonl").write_text('{"id": "1"}\n')
    import_posts([inputs / "table.jsonl"], of_table({"post_id": "id"}), output)


@pytest.mark.parametrize(
    ("job", "name"),
    [(_label, "records"), (_label, "x.tfrecord"), (_train, "train.log"), (_train, "checkpoints"), (_import, ".import")],
)
def test_no_job_writes_through_a_link(inputs: Path, job: Callable[[Path, Path], Any], name: str) -> None:
    output, secret = inputs.parent / "output", inputs.parent / "secret"
    job(inputs, output)
    if (output / name).is_dir():
        shutil.rmtree(output / name)
    (output / "import.json").unlink(missing_ok=True)
    is_directory = "." not in name or name == ".import"
    (output / name).symlink_to(secret if is_directory else secret / "file", target_is_directory=is_directory)
    with pytest.raises(UserError, match="is a link"):
        job(inputs, output)
    assert [path.name for path in secret.iterdir()] == ["file"]
    assert (secret / "file").read_text() == "secret"


@pytest.mark.parametrize("name", ["../secret/file", "/etc/passwd", "link.jpg", "linked/file", "a/../../secret/file"])
def test_images_outside_of_the_posts_are_not_read(inputs: Path, name: str) -> None:
    secret = inputs.parent / "secret"
    (secret / "file").write_bytes(hostile_files.picture(0))
    (inputs / "posts" / "link.jpg").symlink_to(secret / "file")
    (inputs / "posts" / "linked").symlink_to(secret, target_is_directory=True)
    name = name if name != "/etc/passwd" else str(secret / "file")
    posts = [{**post, "image": name} for post in hostile_files.POSTS] + [
        {**post, "post_id": f"q{number}", "image": f"{number}.jpg"} for number, post in enumerate(hostile_files.POSTS)
    ]
    (inputs / "posts" / "posts.jsonl").write_text("".join(f"{json.dumps(post)}\n" for post in posts))
    labels = hostile_files.labels()
    labels.cluster_fraction = 0.01
    labels.max_rejected_fraction = 1.0
    manifest = label([inputs / "posts" / "posts.jsonl"], inputs / "labeler", labels, inputs.parent / "shards")
    assert manifest["rejected"].keys() == {"image_path_leaves_folder"}
    assert manifest["examples"] <= len(hostile_files.POSTS)
