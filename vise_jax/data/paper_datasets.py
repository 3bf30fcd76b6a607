"""The datasets of the paper's downstream tasks, in the layouts that their authors distribute (Sec. 4.2)."""

from collections.abc import Sequence
from pathlib import Path

from vise_jax import artifact
from vise_jax.data import datasets
from vise_jax.data.datasets import Dataset
from vise_jax.data.listing import LIMITS, ImageFile, Limits, file_inside, list_images
from vise_jax.errors import UserError

# Classes of Hateful Memes by their label in the files. Average precision is that of the second one by name.
_MEME_CLASSES = {0: "benign", 1: "hateful"}


def open_unbiased_emotion(path: str | Path, link_roots: Sequence[str | Path] = (), limits: Limits = LIMITS) -> Dataset:
    """Open UnbiasedEmotion (Panda et al. 2018): `images/EMOTION/OBJECT/*`, or the directory `images` itself.

    The class is the emotion. There is no official split.

    Raises:
        UserError: an image outside of the emotions' directories, an emotion without images, a single emotion.
    """
    path, roots = Path(path), [Path(root) for root in link_roots]
    root = path / "images" if (path / "images").is_dir() else path
    files, directories = list_images(root, roots, limits)
    labels = {name: name.split("/")[0] for name in files}
    if outside := sorted(name for name in files if "/" not in name):
        raise UserError(f"The image {outside[0]} in {root} is in no directory of an emotion: move it into one.")
    if empty := sorted({name for name in directories if "/" not in name} - set(labels.values())):
        raise UserError(f"The class directory {empty[0]} in {root} holds no images: fill it or delete it.")
    return datasets.build(path, files, labels, limits=limits)


def open_politics(path: str | Path, link_roots: Sequence[str | Path] = (), limits: Limits = LIMITS) -> Dataset:
    """Open Politics (Thomas & Kovashka 2019): a CSV file with the columns `image`, `label` (left, right) and `split`.

    Args:
        path: the file, or a directory with `politics.csv`. docs/datasets.md says how to make it.
        link_roots: directories that links may point into.
        limits: bounds of what is read.

    Raises:
        UserError: no such file or no column `split`, or another label; see `datasets.open_labeled`.
    """
    path = Path(path)
    file = path / "politics.csv" if path.is_dir() else path
    _require(file, "a CSV file with the columns image, label and split")
    dataset = datasets.open_labeled(file, link_roots, limits)
    if dataset.splits is None:
        raise UserError(f"{file} has no column 'split': add that of the official split.")
    if dataset.classes != ("left", "right"):
        raise UserError(f"{file} has the labels {', '.join(dataset.classes)}: use left and right.")
    return dataset


def open_hateful_memes(path: str | Path, link_roots: Sequence[str | Path] = (), limits: Limits = LIMITS) -> Dataset:
    """Open Hateful Memes, phase 1 (Kiela et al. 2020): `train.jsonl`, `dev.jsonl` or `dev_seen.jsonl`, and `img/`.

    The official validation set is what the paper reports on (Sec. 4.2), so that it is the test split here. `dev.jsonl`
    is read if both are there. `test.jsonl` has no labels and is not read.

    Raises:
        UserError: a missing file, a line that is no meme, a label other than 0 and 1, or an image that is listed twice.
    """
    path = Path(path)
    validation = path / "dev.jsonl"
    if not validation.is_file():
        validation = path / "dev_seen.jsonl"
    lines = {"train": path / "train.jsonl", "test": validation}
    files: dict[str, ImageFile] = {}
    labels: dict[str, str] = {}
    splits: dict[str, str] = {}
    texts: dict[str, str] = {}
    for split, file in lines.items():
        _require(file, "one meme per line")
        for number, meme in enumerate(_json_lines(file), start=1):
            name, label, text = (meme.get(key) for key in ("img", "label", "text"))
            if not isinstance(name, str) or not isinstance(text, str):
                raise UserError(f"{file} has no 'img' or no 'text' in line {number}: get the file again.")
            if type(label) is not int or label not in _MEME_CLASSES:
                raise UserError(f"{file} has the label {label!r} in line {number}: use 0 and 1.")
            if name in files:
                raise UserError(f"{path} names the image {name} twice, the second time in {file.name}: drop a line.")
            files[name] = file_inside(path, name, file, link_roots, must_exist=False)
            labels[name], splits[name], texts[name] = _MEME_CLASSES[label], split, text
    return datasets.build(path, files, labels, splits, texts, limits=limits)


def open_cub(path: str | Path, link_roots: Sequence[str | Path] = (), limits: Limits = LIMITS) -> Dataset:
    """Open CUB-200-2011 (Wah et al. 2011).

    Args:
        path: the directory with `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `images/`, and
            perhaps `classes.txt`; or one that has it as its subdirectory `CUB_200_2011`; or the data directory of
            TensorFlow Datasets in which `caltech_birds2011` is prepared.
        link_roots: directories that links may point into.
        limits: bounds of what is read.

    Raises:
        UserError: a missing file, files that list different images, or a line with another number of words; see
            `tfds_birds.open_prepared`.
    """
    path = Path(path)
    if (path / "caltech_birds2011").is_dir():
        # It imports TensorFlow, which takes seconds.
        from vise_jax.data import tfds_birds

        return tfds_birds.open_prepared(path / "caltech_birds2011", limits)
    root = path / "CUB_200_2011" if (path / "CUB_200_2011").is_dir() else path
    names, labels, is_train = (
        _table(root / name) for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    if not names.keys() == labels.keys() == is_train.keys():
        raise UserError(
            f"{root} lists different images in images.txt, image_class_labels.txt and train_test_split.txt: get them "
            "again."
        )
    classes = _table(root / "classes.txt") if (root / "classes.txt").is_file() else {}
    if unknown := sorted(set(labels.values()) - classes.keys()) if classes else []:
        raise UserError(
            f"{root / 'image_class_labels.txt'} has the class {unknown[0]}, which classes.txt lacks: get both again."
        )
    # Without classes.txt, the directory of an image has the name of its class.
    of_image = {names[key]: classes.get(label) or names[key].split("/")[0] for key, label in labels.items()}
    files = {
        name: file_inside(root / "images", name, root / "images.txt", link_roots, must_exist=False)
        for name in names.values()
    }
    split = {name: "train" if is_train[key] == "1" else "test" for key, name in names.items()}
    return datasets.build(path, files, of_image, split, limits=limits)


def _table(path: Path) -> dict[str, str]:
    """Read lines `KEY VALUE`."""
    _require(path, "two words per line")
    rows = [line.split() for line in _text(path).split("\n") if line.strip()]
    if wrong := [number for number, row in enumerate(rows, start=1) if len(row) != 2]:
        raise UserError(f"{path} has no two words in line {wrong[0]}: get the file again.")
    return dict(rows)


def _json_lines(path: Path) -> list[dict[str, object]]:
    memes = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                meme = artifact.from_json(line)
            except ValueError as error:
                raise UserError(f"{path} is no JSON in line {number}: get the file again.") from error
            if not isinstance(meme, dict):
                raise UserError(f"{path} holds no object in line {number}: get the file again.")
            memes.append(meme)
    return memes


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as UTF-8: get the file again.") from error


def _require(path: Path, content: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing: it needs {content}, see docs/datasets.md.")
