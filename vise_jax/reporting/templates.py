"""Render pages from templates; emoji and colors of the reaction buttons."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2

# The colorblind-safe palette of Okabe and Ito.
COLORS = ("#e69f00", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#7f7f7f")
_PICTURES = {
    "haha": "😆",
    "sorry": "😢",
    "sad": "😢",
    "angry": "😡",
    "wow": "😮",
    "love": "❤️",
    "like": "👍",
    "care": "🤗",
}


class Button(NamedTuple):
    """A reaction button, as pages and figures show it.

    Attributes:
        name: in `labels.reactions`.
        picture: an emoji, or "".
        color: as HTML.
    """

    name: str
    picture: str
    color: str


def buttons(names: Sequence[str]) -> list[Button]:
    """Return the buttons of a vocabulary. With more than there are colors, the colors repeat."""
    return [Button(name, _PICTURES.get(name, ""), COLORS[place % len(COLORS)]) for place, name in enumerate(names)]


def render(template: str, **values: Any) -> str:
    """Make a page. People's words come in as text everywhere: none of them can become markup or a script.

    Args:
        template: its file in this directory.
        **values: the template's variables.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vise_jax", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` escapes what could end the script's element, and nothing else has to be.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    return environment.get_template(template).render(**values)
