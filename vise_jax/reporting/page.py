"""The page of the clusters: one HTML file that needs no network and no other file."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from vise_jax import artefact
from vise_jax.posts import REACTIONS
from vise_jax.reporting import figures
from vise_jax.reporting.clusters import MIN_TOGETHER

# What the buttons look like, in the order of REACTIONS.
_BUTTONS = dict(zip(REACTIONS, ("😆", "😢", "😡", "😮", "❤️"), strict=True))

_ABOUT = {
    "labels_per_post": "Labels per post: how many examples have none, one, two or more comment clusters.",
    "balance": "Balance: examples by rank of the cluster, and Lorenz curves.",
    "co_occurrence": "Co-occurrence of the largest clusters: red is more often than elsewhere, blue more seldom.",
}


def environment() -> jinja2.Environment:
    """Where the templates are, with everything that they are given as text, never as markup."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("vise_jax", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` escapes what could end the script's element, and nothing else has to be.
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    return made


def render(summary: dict[str, Any], drawn: Mapping[str, bytes], examples: Mapping[int, list[str]]) -> str:
    """Make the page. People's words come in as text everywhere: none of them can become markup or a script.

    Args:
        summary: what `clusters.summarise` returned.
        drawn: PNG files by name, as `figures.draw` returns them.
        examples: masked comments by comment cluster; empty for none.
    """
    data = {
        "comments": [{**row, "sample": examples.get(row["number"], [])} for row in summary["comments"]],
        "reactions": {cluster["number"]: cluster["name"] for cluster in summary["reactions"]},
    }
    return (
        environment()
        .get_template("clusters.html.j2")
        .render(
            summary=summary,
            data=data,
            about=_ABOUT,
            images={name: base64.b64encode(content).decode() for name, content in drawn.items()},
            buttons=list(zip(_BUTTONS.items(), figures.COLOURS, strict=True)),
            min_together=MIN_TOGETHER,
            with_examples=bool(examples),
        )
    )


def write(summary: dict[str, Any], examples: Mapping[int, list[str]], output: Path) -> None:
    """Write the figures and `index.html` into the folder `output`, each file whole; the page comes last.

    Args:
        summary: what `clusters.summarise` returned.
        examples: masked comments by comment cluster; empty for none.
        output: the folder; files of an earlier report in it are replaced.
    """
    drawn = figures.draw(summary)
    text = render(summary, drawn, examples)
    output.mkdir(parents=True, exist_ok=True)
    for name, content in drawn.items():
        with artefact.whole_file(output / f"{name}.png") as file:
            file.write(content)
    artefact.write_text(output / "index.html", text)
