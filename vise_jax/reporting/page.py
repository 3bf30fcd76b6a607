"""The page of the clusters: one HTML file that needs no network and no other file."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vise_jax import artifact
from vise_jax.reporting import figures, templates
from vise_jax.reporting.clusters import MIN_TOGETHER

_ABOUT = {
    "labels_per_post": "Labels per post: how many examples have none, one, two or more comment clusters.",
    "balance": "Balance: examples by rank of the cluster, and Lorenz curves.",
    "co_occurrence": "Co-occurrence of the largest clusters: red is more often than elsewhere, blue more seldom.",
}


def render(
    summary: dict[str, Any],
    drawn: Mapping[str, bytes],
    examples: Mapping[int, list[str]],
    duplicates: dict[str, Any] | None = None,
) -> str:
    """Make the page.

    Args:
        summary: what `clusters.summarize` returned.
        drawn: PNG files by name, as `figures.draw` returns them.
        examples: masked comments by comment cluster; empty for none.
        duplicates: what `duplicates.read` returned.
    """
    data = {
        "comments": [{**row, "sample": examples.get(row["number"], [])} for row in summary["comments"]],
        "separate": summary["separate"],
        "reactions": {cluster["number"]: cluster["name"] for cluster in summary["reactions"]},
    }
    return templates.render(
        "clusters.html.j2",
        summary=summary,
        buttons=templates.buttons(summary["buttons"]),
        data=data,
        about=_ABOUT,
        images={name: base64.b64encode(content).decode() for name, content in drawn.items()},
        min_together=MIN_TOGETHER,
        with_examples=bool(examples),
        duplicates=duplicates,
    )


def write(
    summary: dict[str, Any],
    examples: Mapping[int, list[str]],
    output: Path,
    duplicates: dict[str, Any] | None = None,
) -> None:
    """Write the figures and `index.html` into the directory `output`, each atomically; the page comes last.

    Args:
        summary: what `clusters.summarize` returned.
        examples: masked comments by comment cluster; empty for none.
        output: the directory; files of an earlier report in it are replaced.
        duplicates: what `duplicates.read` returned.
    """
    drawn = figures.draw(summary)
    text = render(summary, drawn, examples, duplicates)
    artifact.make_directory(output)
    for name, content in drawn.items():
        with artifact.atomic_file(output / f"{name}.png") as file:
            file.write(content)
    artifact.write_text(output / "index.html", text)
