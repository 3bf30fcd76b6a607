"""Predicted engagement of images: a JSON line per image, and a self-contained page."""

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vise_jax import artifact
from vise_jax.data import images as data_images
from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.engagement import Labeler
from vise_jax.errors import UserError
from vise_jax.inference import extract, predict
from vise_jax.reporting import templates

_FORMAT_VERSION = 1
# Side of the pictures on the page, in pixels.
_SIDE = 320


def write(
    encoder: Encoder,
    labeler: Labeler,
    images: Dataset,
    output: Path,
    *,
    top: int,
    on_page: int,
    batch_size: int,
    threads: int,
    max_image_pixels: int,
) -> tuple[Path, int, int]:
    """Predict the engagement of images and write it, unless the same predictions have been written.

    Args:
        encoder: with heads, see `predict.check`.
        labeler: labeler of the predicted clusters.
        images: the dataset.
        output: a .jsonl file with a line for each image, ordered by path: `image`, and what `predict.predict`
            returns; or `error`, a sentence, for an image that can't be read. The page is written beside it, as .html.
        top: number of comment clusters per image.
        on_page: maximum number of images on the page, the first ones.
        batch_size: batch size of the encoder.
        threads: threads that decode; 0 = one per core.
        max_image_pixels: an image with more can't be read.

    Returns:
        the page's path, the number of images, and how many of them can't be read.

    Raises:
        UserError: see `predict.check` and `extract.computed`; another ending; or one of the files exists and
            holds something else.
    """
    predict.check(encoder, labeler)
    if output.suffix != ".jsonl":
        raise UserError(f"{output} ends in {output.suffix or 'nothing'}: name a file that ends in .jsonl.")
    page = output.with_suffix(".html")
    made_from = extract.key_of(encoder, images, encoder.preprocessing)
    key = artifact.fingerprint([_FORMAT_VERSION, made_from, labeler.fingerprint, top, on_page, output.name])
    ours = artifact.is_file(page) and f'content="{key}"'.encode() in page.read_bytes()
    if ours and artifact.is_file(output):
        lines = output.read_bytes().split(b"\n")
        # One that was cut since is written again.
        with contextlib.suppress(ValueError):
            records = [artifact.from_json(line) for line in lines if line]
            if len(records) == len(images):
                extract.clear(output)
                return page, len(images), sum("error" in record for record in records)
    for path in (output, page):
        if not ours and artifact.exists(path):
            raise UserError(f"{path} already exists and holds something else: name another file, or delete it first.")
    settings = {"batch_size": batch_size, "threads": threads, "max_image_pixels": max_image_pixels}
    with extract.computed(encoder, images, encoder.preprocessing, output, **settings) as (parts, about):
        cards: list[dict[str, Any]] = []
        # The page before the lines: where these are, the page is, too.
        artifact.make_directory(output.parent)
        with artifact.atomic_file(output) as file:
            for index, record in _records(encoder, labeler, images, parts, top):
                file.write(f"{json.dumps(record, ensure_ascii=False, allow_nan=False)}\n".encode())
                if len(cards) < on_page:
                    cards.append({**record, **_picture(images, index, record, max_image_pixels)})
            text = templates.render(
                "predictions.html.j2",
                key=key,
                encoder=encoder,
                labeler=labeler,
                images=len(images),
                rejected=len(about["rejected"]),
                output=output.name,
                cards=cards,
                buttons=templates.buttons(labeler.labels["reactions"]),
            )
            artifact.write_text(page, text)
    return page, len(images), len(about["rejected"])


def _records(
    encoder: Encoder, labeler: Labeler, images: Dataset, parts: list[Path], top: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each image's index and record, in the order of the dataset."""
    for part in map(extract.Part.read, parts):
        records: dict[int, dict[str, Any]] = {
            index: {"error": reason}
            for index, reason in zip(part.rejected.tolist(), part.reasons.tolist(), strict=True)
        }
        if len(part.indices):
            predicted = predict.predict(encoder, labeler, part.features, top)
            records |= dict(zip(part.indices.tolist(), predicted, strict=True))
        for index in sorted(records):
            yield index, {"image": images.names[index], **records[index]}


def _picture(images: Dataset, index: int, record: dict[str, Any], max_image_pixels: int) -> dict[str, str]:
    if "error" in record:
        return {}
    return {"picture": base64.b64encode(data_images.thumbnail(images, index, _SIDE, max_image_pixels)).decode()}
