"""The paper's datasets through TensorFlow Datasets."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import vise_jax.data.tfds_builder  # noqa: F401
from vise_jax.evaluation.tasks import TASKS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
import miniatures


@pytest.mark.parametrize("task", miniatures.TASKS)
def test_miniatures_go_through_tfds(task, tmp_path):
    manual = miniatures.TASKS[task](tmp_path / "manual")
    config = tfds.download.DownloadConfig(manual_dir=str(manual))
    loaded = tfds.load(
        f"vise_tasks/{task}", data_dir=tmp_path / "tfds", download_and_prepare_kwargs={"download_config": config}
    )
    dataset = TASKS[task].open(manual, ())
    splits = np.array(dataset.splits or ["train"] * len(dataset))
    assert loaded.keys() == set(splits)
    for split, examples in loaded.items():
        rows = np.flatnonzero(splits == split)
        listed = list(examples.as_numpy_iterator())
        assert [example["name"].decode() for example in listed] == [dataset.names[row] for row in rows]
        assert [example["label"] for example in listed] == dataset.labels[rows].tolist()
        assert listed[0]["class"].decode() == dataset.classes[listed[0]["label"]]
        text = dataset.texts[rows[0]] if dataset.texts else ""
        assert listed[0]["text"].decode() == text
        decoded = np.asarray(Image.open(io.BytesIO(dataset.read(rows[0]))).convert("RGB")).astype(int)
        assert np.abs(listed[0]["image"].astype(int) - decoded).mean() < 2


def test_the_instructions_are_shown_where_files_are_missing(tmp_path):
    builder = tfds.builder("vise_tasks/cub", data_dir=tmp_path / "tfds")
    config = tfds.download.DownloadConfig(manual_dir=str(tmp_path / "nowhere"))
    with pytest.raises(AssertionError, match=r"CUB_200_2011/\{images\.txt"):
        builder.download_and_prepare(download_config=config)
