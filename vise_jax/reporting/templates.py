"""Render pages from templates; the emoji of the five buttons."""

from typing import Any

import jinja2

from vise_jax.posts import REACTIONS

# The colorblind-safe palette of Okabe and Ito, in the order of REACTIONS.
COLORS = ("#e69f00", "#0072b2", "#d55e00", "#009e73", "#cc79a7")
# Name, picture and color of each.
BUTTONS = list(zip(REACTIONS, ("😆", "😢", "😡", "😮", "❤️"), COLORS, strict=True))


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
    return environment.get_template(template).render(buttons=BUTTONS, **values)
