"""Time the batches that pre-training reads beside torch DataLoaders, on the same JPEG files and as many cores.

    python benchmarks/input.py
    python benchmarks/input.py --threads 4 --rounds 5
    python benchmarks/input.py --large --batches 4 --rounds 7

800 simulated photographs of about 500 x 375 pixels are made: noise whose spectrum falls like that of natural images.
With --large 100 of 2048 x 1536 pixels, and ours also with `data.scaled_decoding`.
Every variant gives random-resized-crops, uint8 [B, 224, 224, 3], antialiased, with areas and ratios of `config.base()`,
drawn by torchvision's law, in random order:

- vise_jax: `vise_jax.data.pretraining.batches` from engagement shards, with their labels;
- torch DataLoader, from a file an image, images only: with Pillow (`Image.open`, `convert`, `resize` with a box), with
  simplejpeg (OpenCV resizes), with OpenCV alone. OpenCV averages areas where a crop shrinks, since its bilinear filter
  is not antialiased.

None flips: ours does that on the device. Simplejpeg that only decodes, in threads and in processes, is the limit that
the share is of. Each variant is a process of its own, which has started before a clock starts. They take turns, round
by round, so that a machine that slows down slows all of them; a turn is timed once the queues that filled in the
meantime are empty. The files are in the page cache. Peers that are not installed are left out:

    pip install torch simplejpeg opencv-python-headless

The last line is one JSON object; a ratio above 1 means that this project is ahead of that peer.
"""

import importlib.metadata
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "shared"))
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import numpy as np
from absl import flags
from measuring import Prepared, Variant, peak_bytes, ratio, take_turns
from PIL import Image

from vise_jax import cli, config, machine

QUICK = flags.DEFINE_bool("quick", False, "96 photographs, 2 short rounds: a smoke test.")
PHOTOS = flags.DEFINE_integer("photos", None, "Photographs; by default 800, or 100 large ones.", 8)
LARGE = flags.DEFINE_bool("large", False, "Photographs of 2048 x 1536 pixels.")
BATCH = flags.DEFINE_integer("batch", None, "Images in a batch; by default 64.", 1)
BATCHES = flags.DEFINE_integer("batches", None, "Batches in a turn; by default 25.", 1)
ROUNDS = flags.DEFINE_integer("rounds", None, "Turns that each variant takes; by default 10.", 1)
THREADS = flags.DEFINE_integer("threads", 2, "Threads of ours, workers of a DataLoader.", 1)

OURS, SCALED = "vise_jax", "vise_jax, scaled decoding"
DECODERS = {"Pillow": ("PIL",), "simplejpeg": ("simplejpeg", "cv2"), "OpenCV": ("cv2",)}
PEERS = {f"torch DataLoader, {decoder}": decoder for decoder in DECODERS}
DECODE_ONLY = ("simplejpeg, decode only, threads", "simplejpeg, decode only, processes")
SHARDS = 8
# Batches to throw away before a turn: more than any variant's queues hold.
QUEUED = 8


class Settings(NamedTuple):
    """What all variants share."""

    directory: Path
    batch_size: int
    threads: int
    large: bool = False


def main(words: list[str]) -> None:
    cli.no_words(words)
    quick = QUICK.value
    count = PHOTOS.value or (96 if quick else 100 if LARGE.value else 800)
    batch_size = BATCH.value or (16 if quick else 64)
    rounds, batches = ROUNDS.value or (2 if quick else 10), BATCHES.value or (6 if quick else 25)
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(Path(name), batch_size, THREADS.value, LARGE.value)
        file_bytes = write_photos(settings.directory, count, settings.large)
        print(f"{count} photographs of {file_bytes / count / 1000:.0f} KB", flush=True)
        variants = {name: Variant(prepare, name, settings) for name in installed(settings.large)}
        seconds = take_turns(variants, rounds, batches)
        peaks = {name: variant.end() for name, variant in variants.items()}
    speeds = {variant: batch_size * batches / times for variant, times in seconds.items()}
    medians = {variant: float(np.median(speed)) for variant, speed in speeds.items()}
    for variant, speed in medians.items():
        print(f"{variant}: {speed:,.0f} images/s, {peaks[variant] / 2**20:,.0f} MiB at most, its processes added up")
    ratios = {}
    for ours in (OURS, SCALED)[: 1 + settings.large]:
        ratios[ours] = {variant: ratio(speeds[ours], speeds[variant]) for variant in speeds if variant in PEERS}
        for variant, found in ratios[ours].items():
            print(f"{ours}: {found['median']:.2f} times {variant} ({found['low']:.2f} to {found['high']:.2f})")
    share = None
    if limits := [variant for variant in medians if variant in DECODE_ONLY]:
        limit = max(limits, key=medians.__getitem__)
        share = {"of": limit, **ratio(speeds[OURS], speeds[limit])}
        print(f"{share['median']:.2f} of {limit} ({share['low']:.2f} to {share['high']:.2f})")
    print(
        json.dumps(
            {
                "benchmark": "input",
                "device": "cpu",
                "ratios": ratios[OURS],
                "ratios_scaled": ratios.get(SCALED),
                "share_of_decode_only": share,
                "images_per_second": medians,
                "peak_bytes": peaks,
                "photos": count,
                "bytes_a_photo": file_bytes / count,
                "batch": batch_size,
                "batches": batches,
                "rounds": rounds,
                "large": settings.large,
                "threads": settings.threads,
                "cores": machine.available_cpus(),
                "versions": {
                    module: _version(module) for module in ("tensorflow", "torch", "PIL", "simplejpeg", "cv2")
                },
            }
        )
    )


def photo(number: int, large: bool = False) -> bytes:
    """Return a JPEG file of about 50 KB, large of 1 MB: noise whose amplitude at frequency f is proportional to f^-1.3.

    That of photographs falls with powers around -1 (Field 1987); the steeper one stands for their smooth areas. The
    chroma varies less than the luma and is subsampled, as cameras do.
    """
    generator = np.random.default_rng(number)
    width, height = ((500, 375), (375, 500), (500, 333), (500, 400))[number % 4]
    if large:
        width, height = ((2048, 1536), (1536, 2048))[number % 2]
    side = 2048 if large else 512
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    amplitudes = np.maximum(frequencies, 1 / side) ** -1.3
    real, imaginary = generator.standard_normal((2, 3, *amplitudes.shape))
    noise = np.fft.irfft2(amplitudes * (real + 1j * imaginary))
    noise *= (np.array([48, 14, 14]) / noise.std((1, 2)))[:, None, None]
    pixels = np.clip(np.moveaxis(noise, 0, 2)[:height, :width] + 128, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "YCbCr").save(file, "JPEG", quality=90 if large else 80)
    return file.getvalue()


def write_photos(directory: Path, count: int, large: bool = False) -> int:
    """Write `photos/NUMBER.jpg` and the same as engagement shards, `shards`; the files' bytes together."""
    from simulated import write_shards

    (directory / "photos").mkdir()

    def image(number: int) -> bytes:
        encoded = photo(number, large)
        (directory / "photos" / f"{number}.jpg").write_bytes(encoded)
        return encoded

    write_shards(directory / "shards", image, count, SHARDS, comments=5000, reactions=128)
    return sum(path.stat().st_size for path in (directory / "photos").iterdir())


def installed(large: bool = False) -> list[str]:
    """Return the variants that can run here; print what the others lack."""
    variants = [OURS, SCALED] if large else [OURS]
    needs = {peer: ("torch", *DECODERS[decoder]) for peer, decoder in PEERS.items()}
    needs |= {DECODE_ONLY[0]: ("simplejpeg",), DECODE_ONLY[1]: ("torch", "simplejpeg")}
    for variant, modules in needs.items():
        if missing := [module for module in modules if not importlib.util.find_spec(module)]:
            print(f"{' and '.join(missing)} not installed: no {variant}.", flush=True)
        else:
            variants.append(variant)
    return variants


def prepare(variant: str, settings: Settings) -> Prepared:
    """Return a function that times batches, and one for the peak memory in bytes of this process and its children."""
    images = batches_of(variant, settings)

    def turn(batches: int) -> float:
        for _ in range(QUEUED):
            next(images)
        start = time.perf_counter()
        for _ in range(batches):
            next(images)
        return time.perf_counter() - start

    return turn, _peaks_of_all


def batches_of(variant: str, settings: Settings) -> Iterator[Any]:
    """Yield batches without end: uint8 [B, S, S, 3], or the output of a decoder alone."""
    return _ours(settings, variant == SCALED) if variant in (OURS, SCALED) else _theirs(variant, settings)


def _ours(settings: Settings, scaled: bool) -> Iterator[np.ndarray]:
    from vise_jax.data import loader, shards
    from vise_jax.data.epoch_order import Shuffle
    from vise_jax.data.records import CorruptExamples

    directory, data = settings.directory / "shards", config.base().data
    batches = loader.batches(
        directory,
        shards.read_manifest(directory),
        batch_size=settings.batch_size,
        seed=0,
        corrupt=CorruptExamples(settings.directory / "corrupt_examples.jsonl"),
        shuffle=Shuffle(data.shuffle_shards, data.shuffle_block, data.shuffle_slots, data.shuffle_window),
        image_size=data.image_size,
        crop_area=tuple(data.crop_area),
        crop_ratio=tuple(data.crop_ratio),
        antialias=data.antialias,
        scaled_decoding=scaled,
        threads=settings.threads,
    )
    for batch in batches:
        yield batch["images"]


def _theirs(variant: str, settings: Settings) -> Iterator[Any]:
    paths = sorted((settings.directory / "photos").iterdir())
    if variant == DECODE_ONLY[0]:
        return _decoded_in_threads(paths, settings)
    import torch_input

    data = config.base().data
    change: Callable[[Path], np.ndarray] = torch_input.decode_only
    if variant in PEERS:
        change = torch_input.transform(PEERS[variant], data.image_size, data.crop_area, data.crop_ratio)
    return torch_input.batches(paths, change, settings.batch_size, settings.threads)


def _decoded_in_threads(paths: list[Path], settings: Settings) -> Iterator[list[int]]:
    import simplejpeg

    def pixels(path: Path) -> int:
        return simplejpeg.decode_jpeg(path.read_bytes()).size

    endless = itertools.cycle(paths)
    with ThreadPoolExecutor(settings.threads) as pool:
        while True:
            yield list(pool.map(pixels, itertools.islice(endless, settings.batch_size)))


def _peaks_of_all() -> int:
    children = [child.pid for child in multiprocessing.active_children() if child.pid]
    return sum(map(peak_bytes, [os.getpid(), *children]))


def _version(module: str) -> str | None:
    if not importlib.util.find_spec(module):
        return None
    # A module of another name than its package has one package, or several that are the same (OpenCV's).
    return importlib.metadata.version(importlib.metadata.packages_distributions()[module][0])


if __name__ == "__main__":
    cli.run(main, __doc__)
