"""Random crops of JPEG files through a torch DataLoader, as PyTorch's users would write it: the peers of
`benchmarks/input.py`."""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

# left, top, right, bottom, in pixels
Box = tuple[int, int, int, int]
Transform = Callable[[Path], np.ndarray]


def transform(
    decoder: str, image_size: int, crop_area: tuple[float, float], crop_ratio: tuple[float, float]
) -> Transform:
    """Return a function from a JPEG file to a random crop, antialiased: uint8 [image_size, image_size, 3].

    Args:
        decoder: "Pillow", "simplejpeg" (OpenCV resizes) or "OpenCV".
        image_size: side of the result.
        crop_area: range of the crop's area, as a fraction of the image's.
        crop_ratio: range of its width divided by its height.
    """
    if decoder == "Pillow":
        from PIL import Image

        def pillow(path: Path) -> np.ndarray:
            with Image.open(path) as file:
                image = file.convert("RGB")
            box = random_box(*image.size, crop_area, crop_ratio)
            return np.array(image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box))

        return pillow

    import cv2

    # The workers are the parallelism.
    cv2.setNumThreads(0)

    def crop(image: Any) -> np.ndarray:
        left, top, right, bottom = random_box(image.shape[1], image.shape[0], crop_area, crop_ratio)
        shrinks = min(right - left, bottom - top) > image_size
        # OpenCV's bilinear filter is not antialiased; its filter that is averages over areas.
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(image[top:bottom, left:right], (image_size, image_size), interpolation=how)

    if decoder == "OpenCV":
        how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        return lambda path: crop(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), how))
    import simplejpeg

    return lambda path: crop(simplejpeg.decode_jpeg(path.read_bytes()))


def decode_only(path: Path) -> np.ndarray:
    """Decode a JPEG file with simplejpeg, and only say how many pixels it has: int64 [1]."""
    import simplejpeg

    return np.array([simplejpeg.decode_jpeg(path.read_bytes()).size])


def random_box(width: int, height: int, crop_area: tuple[float, float], crop_ratio: tuple[float, float]) -> Box:
    """Draw a crop as torchvision's RandomResizedCrop does."""
    for _ in range(10):
        target = width * height * random.uniform(*crop_area)
        ratio = math.exp(random.uniform(math.log(crop_ratio[0]), math.log(crop_ratio[1])))
        columns, rows = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            left, top = random.randint(0, width - columns), random.randint(0, height - rows)
            return left, top, left + columns, top + rows
    rows = min(height, round(width / crop_ratio[0]))
    columns = min(width, round(height * crop_ratio[1]))
    left, top = (width - columns) // 2, (height - rows) // 2
    return left, top, left + columns, top + rows


class Photos(Dataset):
    """Files and their transform, as a dataset."""

    def __init__(self, paths: list[Path], transform: Transform):
        self._paths, self._transform = paths, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._transform(self._paths[index]))


class Endless:
    """Batches of indices, in random order, epoch after epoch, without a break."""

    def __init__(self, count: int, batch_size: int):
        self._count, self._batch_size = count, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator, waiting = torch.Generator().manual_seed(0), []
        while True:
            waiting += torch.randperm(self._count, generator=generator).tolist()
            while len(waiting) >= self._batch_size:
                yield waiting[: self._batch_size]
                waiting = waiting[self._batch_size :]


def batches(paths: list[Path], transform: Transform, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Yield batches without end: the transform's results, stacked."""
    photos, sampler = Photos(paths, transform), Endless(len(paths), batch_size)
    # Forked, as is the default on Linux; a process that was spawned itself would spawn.
    context = "fork" if workers else None
    yield from DataLoader(photos, batch_sampler=sampler, num_workers=workers, multiprocessing_context=context)
