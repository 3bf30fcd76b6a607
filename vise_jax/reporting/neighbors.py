"""Nearest neighbors of an image: a table, and a page that needs no network and no other file."""

import base64
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vise_jax import artifact
from vise_jax.data import images as data_images
from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.reporting import templates

# Side of the pictures on the page, in pixels.
_SIDE = 320


def show(ranked: list[tuple[str, float]]) -> None:
    """Print the neighbors: as wide as the terminal, as wide as it needs to be elsewhere."""
    table = Table(title="nearest neighbors")
    for title in ("", "cosine"):
        table.add_column(title, justify="right")
    table.add_column("image", overflow="fold")
    for number, (name, cosine) in enumerate(ranked, start=1):
        table.add_row(f"{number}", f"{cosine:.4f}", Text(name))
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def write(
    encoder: Encoder,
    query: Dataset,
    ranked: list[tuple[str, float]],
    images: Dataset,
    output: Path,
    max_image_pixels: int,
) -> None:
    """Write the page, replacing an existing one.

    Args:
        encoder: encoder of the compared features.
        query: a dataset of one image.
        ranked: names and cosines of its neighbors.
        images: dataset of the neighbors.
        output: a .html file.
        max_image_pixels: refuse larger images.

    Raises:
        UserError: another suffix, a neighbor that is not in `images`, or one that can't be decoded.
    """
    if output.suffix != ".html":
        raise UserError(f"{output} ends in {output.suffix or 'nothing'}: name a file that ends in .html.")
    places = {name: place for place, name in enumerate(images.names)}
    missing = [name for name, _ in ranked if name not in places]
    if missing:
        raise UserError(f"The image {missing[0]} is not in {images.title}: give the images that extract.py was given.")

    def card(images: Dataset, place: int, cosine: float) -> dict[str, str | float]:
        picture = base64.b64encode(data_images.thumbnail(images, place, _SIDE, max_image_pixels)).decode()
        return {"image": images.names[place], "cosine": cosine, "picture": picture}

    cards = [card(query, 0, 1.0), *(card(images, places[name], cosine) for name, cosine in ranked)]
    artifact.make_directory(output.parent)
    artifact.write_text(output, templates.render("neighbors.html.j2", encoder=encoder, cards=cards))
