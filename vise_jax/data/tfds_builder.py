"""TensorFlow Datasets of the paper's downstream tasks, from the files that their authors distribute.

Importing this module registers `vise_tasks`, with a config for each task:

    import tensorflow_datasets as tfds
    import vise_jax.data.tfds_builder
    tfds.load("vise_tasks/cub", data_dir=..., download_and_prepare_kwargs={"download_config":
        tfds.download.DownloadConfig(manual_dir=DIRECTORY_WITH_CUB_200_2011)})
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vise_jax.data import datasets, paper_datasets
from vise_jax.data.datasets import Dataset


@dataclass(kw_only=True)
class TaskConfig(tfds.core.BuilderConfig):
    """A task.

    Attributes:
        open: from the directory with the manually downloaded files to the dataset.
    """

    open: Callable[[Path], Dataset] = datasets.open_labeled


class ViseTasks(tfds.core.GeneratorBasedBuilder):
    """Images with labels, and with texts and groups where a task has them; both are "" elsewhere.

    Without official splits, all examples are in the split `train`. Encoded images are stored as they are.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Get the files from their authors, and give the directory that holds them as `manual_dir`:

    unbiased_emotion  images/EMOTION/OBJECT/*
    politics          politics.csv (columns image, label, split) and the images that it names
    hateful_memes     train.jsonl, dev.jsonl or dev_seen.jsonl, img/*
    cub               CUB_200_2011/{images.txt,image_class_labels.txt,train_test_split.txt,classes.txt,images/*}
    folder            CLASS/*, or train/CLASS/*, validation/CLASS/* and test/CLASS/*
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        TaskConfig(name="unbiased_emotion", open=paper_datasets.open_unbiased_emotion),
        TaskConfig(name="politics", open=paper_datasets.open_politics),
        TaskConfig(name="hateful_memes", open=paper_datasets.open_hateful_memes),
        TaskConfig(name="cub", open=paper_datasets.open_cub),
        TaskConfig(name="folder", open=datasets.open_labeled),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            # The names of the classes are only known from the files.
            "label": tfds.features.Scalar(np.int64),
            "class": tfds.features.Text(),
            "text": tfds.features.Text(),
            "group": tfds.features.Text(),
            "name": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            # Names and order of examples are the dataset's.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        dataset = self.builder_config.open(Path(dl_manager.manual_dir))
        names = dataset.splits or ("train",) * len(dataset)
        return {
            split: self._generate_examples(dataset, [index for index, name in enumerate(names) if name == split])
            for split in dict.fromkeys(names)
        }

    def _generate_examples(self, dataset: Dataset, indices: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices:
            yield (
                index,
                {
                    "image": dataset.read(index),
                    "label": int(dataset.labels[index]),
                    "class": dataset.classes[dataset.labels[index]],
                    "text": dataset.texts[index] if dataset.texts else "",
                    "group": dataset.groups[index] if dataset.groups else "",
                    "name": dataset.names[index],
                },
            )
