"""Class activation maps of several encoders side by side, as in the paper's Figure 7: PNG files and a page."""

import base64
import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageOps
from scipy.special import softmax

from vise_jax import artifact
from vise_jax.data import images as data_images
from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.inference import explain
from vise_jax.inference.explain import AffineHead
from vise_jax.progress import Progress
from vise_jax.reporting import templates

# Side of a panel in pixels, and the width of the gap between two.
_SIDE, _GAP = 224, 8
# Perceptually uniform and colorblind-safe.
_COLORS = matplotlib.colormaps["viridis"]
# Opacity of the map where it is largest.
_OPACITY = 0.65


class Explained(NamedTuple):
    """An encoder with a head.

    Attributes:
        name: shown above its column.
        encoder: of images.
        head: a classifier of its features.
        classes: names of the classes.
    """

    name: str
    encoder: Encoder
    head: AffineHead
    classes: Sequence[str]


def overlay(image: np.ndarray, activation: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Lay a map over a gray image, interpolated bilinearly between the centers of its locations.

    Args:
        image: uint8 [S, S, 3].
        activation: float32 [h, h]; its smallest value is transparent, its largest yellow.
        centers: float64 [h], pixels, see `explain.location_centers`.

    Returns:
        uint8 [S, S, 3].
    """
    low, high = float(activation.min()), float(activation.max())
    scaled = (activation - low) / (high - low) if high > low else np.zeros_like(activation)
    pixels = np.arange(len(image))
    rows = np.stack([np.interp(pixels, centers, column) for column in scaled.T], axis=1)
    weight = np.stack([np.interp(pixels, centers, row) for row in rows])[:, :, None]
    gray = np.asarray(ImageOps.grayscale(Image.fromarray(image)), np.float32)[:, :, None]
    colors = _COLORS(weight[:, :, 0])[:, :, :3].astype(np.float32) * 255
    return (gray * (1 - _OPACITY * weight) + colors * _OPACITY * weight).round().astype(np.uint8)


def write(
    columns: Sequence[Explained],
    images: Dataset,
    output: Path,
    *,
    most: int,
    threads: int,
    max_image_pixels: int,
) -> tuple[Path, int, int]:
    """Write a PNG per image with the map of the predicted class of each encoder, and `index.html`.

    The true class is shown if the images have labels. Each map is scaled to its own range.

    Args:
        columns: the encoders.
        images: the images.
        output: directory; files of an earlier call in it are replaced, the page last.
        most: number of images, the first ones.
        threads: number of decoding threads; 0 = one per available CPU.
        max_image_pixels: refuse larger images.

    Returns:
        The path of the page, the number of explained images, and of those that can't be decoded.
    """
    count = min(most, len(images))
    explainers = [explain.make_explainer(column.encoder, column.head) for column in columns]
    artifact.make_directory(output)
    cards: list[dict[str, Any]] = []
    rejected = 0
    with contextlib.ExitStack() as stack, Progress("class activation maps", count, "images") as progress:
        # Each encoder has its own preprocessing.
        decoded = [
            stack.enter_context(
                contextlib.closing(
                    data_images.decode_each(
                        images, range(count), column.encoder.preprocessing, threads, max_image_pixels
                    )
                )
            )
            for column in columns
        ]
        for index, versions in enumerate(zip(*decoded, strict=True)):
            progress.advance(1)
            errors = [version for version in versions if isinstance(version, UserError)]
            if errors:
                rejected += 1
                progress.print(f"left out: {errors[0]}")
                continue
            panels, predictions = [_panel(versions[0])], []
            for column, explainer, image in zip(columns, explainers, versions, strict=True):
                explained = explainer(image[None], None)
                best = int(explained.logits[0].argmax())
                probabilities = softmax(explained.logits[0])
                predictions.append(
                    {
                        "encoder": column.name,
                        "class": column.classes[best],
                        "probability": float(probabilities[best]),
                    }
                )
                activation = explained.maps[0]
                centers = explain.location_centers(column.encoder, len(activation), len(image))
                panels.append(_panel(overlay(image, activation, centers)))
            name = f"{index:05d}.png"
            content = _png(panels)
            with artifact.atomic_file(output / name) as file:
                file.write(content)
            truth = images.classes[images.labels[index]] if images.classes else None
            cards.append(
                {
                    "image": images.names[index],
                    "file": name,
                    "truth": truth,
                    "predictions": predictions,
                    "picture": base64.b64encode(content).decode(),
                }
            )
    if not cards:
        raise UserError(f"None of the {count:,} images of {images.title} can be decoded: give other images.")
    page = output / "index.html"
    artifact.write_text(
        page, templates.render("explanations.html.j2", columns=columns, cards=cards, title=images.title)
    )
    return page, len(cards), rejected


def _panel(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))


def _png(panels: list[np.ndarray]) -> bytes:
    gap = np.full((_SIDE, _GAP, 3), 255, np.uint8)
    parts = [panels[0]]
    for panel in panels[1:]:
        parts += [gap, panel]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(file, "PNG")
    return file.getvalue()
