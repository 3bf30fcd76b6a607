"""Datasets in their authors' layouts, and what is refused."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from vise_jax.data import paper_datasets
from vise_jax.data.paper_datasets import open_cub, open_hateful_memes, open_politics, open_unbiased_emotion
from vise_jax.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
import miniatures


def test_unbiased_emotion(tmp_path):
    dataset = open_unbiased_emotion(miniatures.unbiased_emotion(tmp_path / "data"))
    assert (len(dataset), dataset.classes, dataset.splits) == (72, miniatures.EMOTIONS, None)
    assert dataset.names[0] == "anger/car/anger_1.jpg"
    directly = open_unbiased_emotion(tmp_path / "data" / "images")
    assert (directly.names, directly.labels.tolist()) == (dataset.names, dataset.labels.tolist())


def test_politics(tmp_path):
    dataset = open_politics(miniatures.politics(tmp_path))
    assert (dataset.classes, dataset.splits.count("train"), dataset.splits.count("test")) == (("left", "right"), 30, 12)


@pytest.mark.parametrize("dev", ["dev.jsonl", "dev_seen.jsonl"])
def test_hateful_memes(tmp_path, dev):
    dataset = open_hateful_memes(miniatures.hateful_memes(tmp_path, dev))
    assert (dataset.splits.count("train"), dataset.splits.count("test")) == (40, 12)
    by_name = {name: number for number, name in enumerate(dataset.names)}
    meme = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[1])
    number = by_name[meme["img"]]
    assert dataset.texts[number] == meme["text"]
    assert dataset.classes[dataset.labels[number]] == "hateful"
    assert dataset.read(number) == (tmp_path / meme["img"]).read_bytes()


def test_cub(tmp_path):
    dataset = open_cub(miniatures.cub(tmp_path))
    assert dataset.classes == ("001.Bird_0", "002.Bird_1", "003.Bird_2", "004.Bird_3")
    assert (dataset.splits.count("train"), dataset.splits.count("test")) == (48, 16)
    (tmp_path / "CUB_200_2011" / "classes.txt").unlink()
    without = open_cub(tmp_path / "CUB_200_2011")
    assert without.labels.tolist() == dataset.labels.tolist()


def test_lines_of_memes_end_where_files_say_so(tmp_path):
    dataset = open_hateful_memes(miniatures.hateful_memes(tmp_path, "dev.jsonl"))
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    meme = json.loads(lines[0]) | {"text": "one\u2028two\x85three"}
    (tmp_path / "train.jsonl").write_text("\n".join([json.dumps(meme, ensure_ascii=False), *lines[1:]]))
    again = open_hateful_memes(tmp_path)
    assert again.names == dataset.names
    assert "one\u2028two\x85three" in again.texts


def edit(path, number, text):
    lines = path.read_text().splitlines()
    lines[number] = text
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "dev_seen.jsonl").unlink(), r"dev_seen\.jsonl is missing: it needs one meme per line"),
        (lambda d: edit(d / "train.jsonl", 4, "{"), r"train\.jsonl is no JSON in line 5"),
        (lambda d: edit(d / "train.jsonl", 4, "[]"), r"train\.jsonl holds no object in line 5"),
        (lambda d: edit(d / "train.jsonl", 4, '{"img": "a.png"}'), r"no 'img' or no 'text' in line 5"),
        (lambda d: edit(d / "train.jsonl", 4, '{"img": "a", "text": "b", "label": 7}'), "the label 7 in line 5"),
        (
            lambda d: edit(d / "train.jsonl", 4, '{"img": "../a.png", "text": "b", "label": 1}'),
            "paths must be relative and stay in its directory",
        ),
        (
            lambda d: edit(d / "dev_seen.jsonl", 4, '{"img": "img/t0001.png", "text": "b", "label": 1}'),
            r"names the image img/t0001\.png twice, the second time in dev_seen",
        ),
        (
            lambda d: (d / "train.jsonl").write_text(
                (d / "train.jsonl").read_text().replace('"label": 1', '"label": 0')
            ),
            "hateful has images for test but none for train",
        ),
    ],
)
def test_memes_that_are_refused(tmp_path, break_it, message):
    directory = miniatures.hateful_memes(tmp_path / "memes")
    break_it(directory)
    with pytest.raises(UserError, match=message):
        open_hateful_memes(directory)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "train_test_split.txt").unlink(), r"train_test_split\.txt is missing: it needs two words"),
        (lambda d: edit(d / "images.txt", 2, "3"), r"images\.txt has no two words in line 3"),
        (lambda d: edit(d / "images.txt", 2, "999 a.jpg"), "lists different images"),
        (lambda d: edit(d / "image_class_labels.txt", 2, "3 77"), r"has the class 77, which classes\.txt lacks"),
        (lambda d: (d / "images.txt").write_bytes(b"\xff\xfe\x00"), "can't be read as UTF-8"),
    ],
)
def test_birds_that_are_refused(tmp_path, break_it, message):
    directory = miniatures.cub(tmp_path)
    break_it(directory / "CUB_200_2011")
    with pytest.raises(UserError, match=message):
        open_cub(directory)


def test_emotions_that_are_refused(tmp_path):
    directory = miniatures.unbiased_emotion(tmp_path)
    (directory / "images" / "awe").mkdir()
    with pytest.raises(UserError, match=r"class directory awe in .* holds no images"):
        open_unbiased_emotion(directory)
    (directory / "images" / "awe").rmdir()
    shutil.copy(next(directory.rglob("*.jpg")), directory / "images" / "stray.jpg")
    with pytest.raises(UserError, match=r"stray\.jpg in .* is in no directory of an emotion"):
        open_unbiased_emotion(directory)


def test_politics_that_are_refused(tmp_path):
    directory = miniatures.politics(tmp_path)
    path = directory / "politics.csv"
    text = path.read_text()
    path.write_text(text.replace("right", "wrong"))
    with pytest.raises(UserError, match="has the labels left, wrong"):
        open_politics(directory)
    path.write_text("\n".join(line.rpartition(",")[0] for line in text.splitlines()))
    with pytest.raises(UserError, match="no column 'split'"):
        open_politics(directory)
    path.unlink()
    with pytest.raises(UserError, match=r"politics\.csv is missing: .*docs/datasets\.md"):
        open_politics(directory)


def test_a_missing_image_is_an_error_when_it_is_read(tmp_path):
    directory = miniatures.hateful_memes(tmp_path / "memes")
    (directory / "img" / "t0002.png").unlink()
    dataset = open_hateful_memes(directory)
    assert len(dataset) == 52
    with pytest.raises(UserError, match=r"The image img/t0002\.png in memes is missing"):
        dataset.read(dataset.names.index("img/t0002.png"))
    assert paper_datasets.open_hateful_memes(directory).fingerprint == dataset.fingerprint


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path]:
    """The miniature of CUB in the authors' layout, and as TensorFlow Datasets prepares it."""
    import tensorflow_datasets as tfds

    root = miniatures.cub(tmp_path_factory.mktemp("authors"))
    dataset = open_cub(root)
    features = {
        "image": tfds.features.Image(),
        "image/filename": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=list(dataset.classes)),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
    }

    def examples(split: str) -> list[dict]:
        return [
            {
                "image": io.BytesIO(dataset.read(index)),
                "image/filename": dataset.names[index],
                "label": int(dataset.labels[index]),
                "segmentation_mask": np.zeros((4, 4, 1), np.uint8),
            }
            for index in np.flatnonzero(np.array(dataset.splits) == split)
        ]

    data_dir = tmp_path_factory.mktemp("tfds")
    for version in ("0.1.1", "0.2.0"):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="caltech_birds2011",
            version=version,
            features=tfds.features.FeaturesDict(features),
            split_datasets={split: list(enumerate(examples(split))) for split in ("train", "test")},
            data_dir=data_dir,
            disable_shuffling=True,
        )
    return root, data_dir


def test_birds_that_tensorflow_datasets_prepared(prepared):
    authors, ours = map(open_cub, prepared)
    assert (ours.names, ours.classes, ours.splits) == (authors.names, authors.classes, authors.splits)
    np.testing.assert_array_equal(ours.labels, authors.labels)
    assert [ours.read(index) for index in range(len(ours))] == [authors.read(index) for index in range(len(authors))]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: shutil.rmtree(d), "has no prepared version: run tfds build"),
        (lambda d: (d / "label.labels.txt").unlink(), "can't be read: run tfds build"),
        (lambda d: next(d.glob("*-test.tfrecord-*")).unlink(), "is missing: run tfds build"),
        (lambda d: flip(next(d.glob("*-train.tfrecord-*"))), r"Record 0 of .* is damaged: run tfds build"),
    ],
)
def test_prepared_birds_that_are_damaged(break_it, message, prepared, tmp_path):
    shutil.copytree(prepared[1] / "caltech_birds2011" / "0.2.0", tmp_path / "caltech_birds2011" / "0.2.0")
    break_it(tmp_path / "caltech_birds2011" / "0.2.0")
    with pytest.raises(UserError, match=message):
        open_cub(tmp_path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
