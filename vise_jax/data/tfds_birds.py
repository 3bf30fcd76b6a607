"""CUB-200-2011 as TensorFlow Datasets prepares it: `caltech_birds2011`, read in place."""

from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError

from vise_jax import artifact
from vise_jax.data import datasets, records
from vise_jax.data.datasets import Dataset
from vise_jax.data.listing import LIMITS, MISSING, ImageFile, Limits, file_inside
from vise_jax.errors import UserError


def open_prepared(directory: Path, limits: Limits = LIMITS) -> Dataset:
    """Open the newest prepared version.

    Args:
        directory: `caltech_birds2011` in the data directory of TensorFlow Datasets.
        limits: bounds of what is read.

    Raises:
        UserError: no prepared version there, files other than TFRecord, or a damaged record.
    """
    versions = sorted(
        (tuple(map(int, version.name.split("."))), version)
        for version in directory.iterdir()
        if version.name.replace(".", "").isdigit() and (version / "dataset_info.json").is_file()
    )
    if not versions:
        raise UserError(f"{directory} has no prepared version: run tfds build caltech_birds2011.")
    version = versions[-1][1]
    files: dict[str, ImageFile] = {}
    labels: dict[str, str] = {}
    splits: dict[str, str] = {}
    try:
        info = artifact.from_json((version / "dataset_info.json").read_bytes())
        classes = (version / "label.labels.txt").read_text("utf-8").split()
        shards = [
            (split["name"], f"{number:05d}-of-{len(split['shardLengths']):05d}", int(length))
            for split in info["splits"]
            for number, length in enumerate(split["shardLengths"])
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{version} can't be read: run tfds build caltech_birds2011 again.") from error
    for split, number, length in shards:
        file = f"caltech_birds2011-{split}.tfrecord-{number}"
        place = file_inside(version, file, version / "dataset_info.json", (), must_exist=False)
        path = place.path
        if place.stamp == MISSING:
            raise UserError(f"{path} is missing: run tfds build caltech_birds2011 again, with its default file format.")
        try:
            for name, label, image in _read_shard(path, length):
                files[name], labels[name], splits[name] = image, classes[label], split
        except (OSError, ValueError, IndexError, DecodeError) as error:
            raise UserError(f"{path} is damaged: run tfds build caltech_birds2011 again.") from error
    return datasets.build(directory, files, labels, splits, limits=limits)


def _read_shard(path: Path, length: int) -> list[tuple[str, int, ImageFile]]:
    """Return name, label and place of each image.

    Raises:
        UserError: a record has a wrong checksum.
        one of `ValueError`, `IndexError` and `DecodeError`: it is no image with a name and a label.
    """
    index, modified = records.read_index(path, length), path.stat().st_mtime_ns
    images = []
    for number in range(length):
        (record,), corrupt = records.read_records(path, index, [number])
        if corrupt:
            raise UserError(f"Record {number} of {path} is damaged: run tfds build caltech_birds2011 again.")
        features = tf.train.Example.FromString(record).features.feature
        name, label, image = (features[key] for key in ("image/filename", "label", "image"))
        (encoded,) = image.bytes_list.value
        offset = int(index[number, 0]) + record.index(encoded)
        place = ImageFile(path, None, (len(encoded), modified), offset)
        images.append((name.bytes_list.value[0].decode(), label.int64_list.value[0], place))
    return images
