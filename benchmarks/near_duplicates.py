"""Measure how well perceptual hashes find planted near-duplicates, and time the search beside comparing all pairs.

    python benchmarks/near_duplicates.py --images DIR
    python benchmarks/near_duplicates.py --quick

Every image is changed in each way: recompressed, scaled, brightened, cropped, framed. Recall is the fraction of the
changed images within a distance of their original; false pairs are pairs of different originals within it (which
includes duplicates that were there before). Without --images they are simulated: colors that blur into each other.
The last line is one JSON object; a ratio above 1 means that this project is ahead.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import numpy as np
from absl import flags
from measuring import ratio
from PIL import Image, ImageEnhance
from rich.console import Console
from rich.table import Table
from simulated import pattern

from vise_jax import cli, machine
from vise_jax.data import near_duplicates, perceptual
from vise_jax.data.images import FORMATS

QUICK = flags.DEFINE_bool("quick", False, "Few images and hashes, 2 rounds: a smoke test.")
IMAGES = flags.DEFINE_string("images", None, "A directory of images; by default simulated ones.")
HASHES = flags.DEFINE_integer("hashes", None, "Random hashes of the timed search; by default 50,000.", 2)
ROUNDS = flags.DEFINE_integer("rounds", None, "Turns that each search takes; by default 5.", 1)
DISTANCES = (0, 2, 4, 6, 8)
# Distance of the timed search, the default of labels.duplicate_distance.
TIMED = 4


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, fraction: float) -> Image.Image:
    x, y = round(image.width * fraction / 2), round(image.height * fraction / 2)
    return image.crop((x, y, image.width - x, image.height - y))


def _framed(image: Image.Image, fraction: float) -> Image.Image:
    frame = Image.new("RGB", (round(image.width * (1 + fraction)), round(image.height * (1 + fraction))), "white")
    frame.paste(image, (round(image.width * fraction / 2), round(image.height * fraction / 2)))
    return frame


# What becomes of an image, and the JPEG quality that it is saved with.
CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "JPEG quality 30": (lambda image: image, 30),
    "scaled to a half": (lambda image: _scaled(image, 1 / 2), 92),
    "scaled to a third": (lambda image: _scaled(image, 1 / 3), 92),
    "gray": (lambda image: image.convert("L"), 92),
    "20% brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.2), 92),
    "cropped by 2%": (lambda image: _cropped(image, 0.02), 92),
    "cropped by 5%": (lambda image: _cropped(image, 0.05), 92),
    "cropped by 10%": (lambda image: _cropped(image, 0.1), 92),
    "framed by 5%": (lambda image: _framed(image, 0.05), 92),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 92),
}


def main(words: list[str]) -> None:
    cli.no_words(words)
    quick = QUICK.value
    files = _files(20 if quick else 200)
    originals = [np.uint64(perceptual.hash_file(encoded, FORMATS)) for encoded in files]
    recall = {}
    for name, (change, quality) in CHANGES.items():
        changed = [_hash(change(_decode(encoded)), quality) for encoded in files]
        differing = np.bitwise_count(np.array(originals) ^ np.array(changed))
        recall[name] = {distance: float((differing <= distance).mean()) for distance in DISTANCES}
    pairs = np.bitwise_count(np.array(originals)[:, None] ^ np.array(originals)[None])[np.triu_indices(len(files), 1)]
    false = {distance: int((pairs <= distance).sum()) for distance in DISTANCES}
    table = Table(title=f"{len(files):,} images: fraction within a distance of the original")
    for title in ("", *map(str, DISTANCES)):
        table.add_column(title, justify="right")
    for name, found in recall.items():
        table.add_row(name, *(f"{found[distance]:.1%}" for distance in DISTANCES))
    table.add_row(f"pairs of {len(pairs):,}", *(f"{false[distance]:,}" for distance in DISTANCES))
    Console().print(table)
    count = HASHES.value or (5_000 if quick else 50_000)
    seconds = _time(np.random.default_rng(0).integers(0, 2**63, count, np.uint64), ROUNDS.value or (2 if quick else 5))
    ratios = {"all pairs": ratio(1 / np.array(seconds["blocks"]), 1 / np.array(seconds["all pairs"]))}
    print(f"{count:,} hashes: {np.median(seconds['blocks']):.2f} s, all pairs {np.median(seconds['all pairs']):.2f} s")
    print(
        json.dumps(
            {
                "benchmark": "near_duplicates",
                "device": f"{machine.available_cpus()} CPUs",
                "ratios": ratios,
                "images": len(files),
                "simulated": IMAGES.value is None,
                "recall": recall,
                "pairs": len(pairs),
                "false_pairs": false,
                "hashes": count,
                "distance": TIMED,
            }
        )
    )


def _files(count: int) -> list[bytes]:
    if IMAGES.value is None:
        draw = np.random.default_rng(0)
        return [pattern(draw, 12, (320, 240)) for _ in range(count)]
    paths = sorted(path for path in Path(IMAGES.value).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [path.read_bytes() for path in paths[: None if not QUICK.value else count]]


def _decode(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded), formats=FORMATS).convert("RGB")


def _hash(image: Image.Image, quality: int) -> np.uint64:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return np.uint64(perceptual.hash_file(file.getvalue(), FORMATS))


def _time(hashes: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Time both searches, turn by turn; they find the same pairs."""

    def all_pairs() -> int:
        rows = max((1 << 24) // len(hashes), 1)
        near = 0
        for first in range(0, len(hashes), rows):
            near += int((np.bitwise_count(hashes[first : first + rows, None] ^ hashes[None]) <= TIMED).sum())
        return (near - len(hashes)) // 2

    seconds: dict[str, list[float]] = {"blocks": [], "all pairs": []}
    for _ in range(rounds):
        began = time.perf_counter()
        found = len(near_duplicates.near_pairs(hashes, TIMED))
        middle = time.perf_counter()
        if all_pairs() != found:
            raise AssertionError("the two searches found other pairs")
        seconds["blocks"].append(middle - began)
        seconds["all pairs"].append(time.perf_counter() - middle)
    return seconds


if __name__ == "__main__":
    cli.run(main, __doc__)
