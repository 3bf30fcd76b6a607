"""Layout-true miniature copies of the datasets of the paper's tasks, with simulated images and texts."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

EMOTIONS = ("anger", "fear", "joy", "love", "sadness", "surprise")


def picture(path: Path, label: int, random: np.random.Generator) -> None:
    """Write a JPEG whose color tells its class, under noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = 128 + 100 * np.array([np.cos(label), np.sin(label), np.cos(2 * label)])
    pixels = color + random.normal(0, 40, (24, 28, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, "JPEG")


def unbiased_emotion(directory: Path) -> Path:
    """12 images of each emotion, of two objects."""
    random = np.random.default_rng(0)
    for label, emotion in enumerate(EMOTIONS):
        for number in range(12):
            path = directory / "images" / emotion / ("dog", "car")[number % 2] / f"{emotion}_{number}.jpg"
            picture(path, label, random)
    return directory


def politics(directory: Path) -> Path:
    """30 images to train and 12 to test on."""
    random, rows = np.random.default_rng(1), ["image,label,split"]
    for number in range(42):
        label, split = number % 2, "train" if number < 30 else "test"
        picture(directory / "photos" / f"{number}.jpg", label, random)
        rows.append(f"photos/{number}.jpg,{('left', 'right')[label]},{split}")
    (directory / "politics.csv").write_text("\n".join(rows) + "\n")
    return directory


def hateful_memes(directory: Path, dev: str = "dev_seen.jsonl") -> Path:
    """40 memes to train and 12 to validate on, and 3 without labels."""
    random = np.random.default_rng(2)
    for name, count in {"train.jsonl": 40, dev: 12, "test.jsonl": 3}.items():
        lines = []
        for number in range(count):
            label = number % 2
            identifier = f"{name[0]}{number:04d}"
            picture(directory / "img" / f"{identifier}.png", label, random)
            words = random.choice([["w1", "w2", "w3"], ["w4", "w5", "w3"]][label], 6)
            meme = {"id": identifier, "img": f"img/{identifier}.png", "text": " ".join(words)}
            lines.append(json.dumps(meme | ({} if name == "test.jsonl" else {"label": label})))
        (directory / name).write_text("\n".join(lines) + "\n")
    return directory


def cub(directory: Path) -> Path:
    """4 species with 12 images to train and 4 to test on, in the subdirectory of the authors' archive."""
    root, random = directory / "CUB_200_2011", np.random.default_rng(3)
    images, labels, splits = list[str](), list[str](), list[str]()
    species = [f"{number + 1:03d}.Bird_{number}" for number in range(4)]
    for label, name in enumerate(species):
        for number in range(16):
            key = len(images) + 1
            picture(root / "images" / name / f"{name}_{number}.jpg", label, random)
            images.append(f"{key} {name}/{name}_{number}.jpg")
            labels.append(f"{key} {label + 1}")
            splits.append(f"{key} {int(number < 12)}")
    classes = [f"{label + 1} {name}" for label, name in enumerate(species)]
    files = {"images": images, "image_class_labels": labels, "train_test_split": splits, "classes": classes}
    for name, lines in files.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return directory


TASKS = {"unbiased_emotion": unbiased_emotion, "politics": politics, "hateful_memes": hateful_memes, "cub": cub}
