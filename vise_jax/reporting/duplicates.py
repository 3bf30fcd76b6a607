"""Near-duplicate images of shards, for the page of the clusters."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from vise_jax.data import shards
from vise_jax.data.formats import to_rgb
from vise_jax.errors import UserError

# Pixels, of the longer side of an image on the page.
_SIDE = 112


def read(directory: Path, shown: int) -> dict[str, Any]:
    """Read what the manifest of shards says of near-duplicates.

    Args:
        directory: the shards.
        shown: number of groups whose images are shown, the largest.

    Returns:
        `groups`, `examples` and `left_out` of the manifest; `sizes`, number of posts of the largest groups; and
        `shown`, of each shown group its `posts` and `images`, JPEG files in base64.

    Raises:
        UserError: the shards are damaged.
    """
    manifest = shards.read_manifest(directory)
    counted = manifest.get("duplicates", {"groups": 0, "examples": 0, "left_out": 0, "largest": []})
    examples = {shard["name"]: shard["examples"] for shard in (*manifest["shards"], *manifest["validation"]["shards"])}

    def thumbnail(shard: str, record: int) -> str:
        if shard not in examples or record >= examples[shard]:
            raise UserError(f"{directory / 'manifest.json'} names an example that no shard has: copy it again.")
        return _thumbnail(shards.read_image(directory / shard, examples[shard], record))

    return {
        **{name: counted[name] for name in ("groups", "examples", "left_out")},
        "sizes": [group["posts"] for group in counted["largest"]],
        "shown": [
            {"posts": group["posts"], "images": [thumbnail(**member) for member in group["members"]]}
            for group in counted["largest"][:shown]
        ],
    }


def _thumbnail(encoded: bytes) -> str:
    file = io.BytesIO()
    with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
        image.draft(None, (_SIDE, _SIDE))
        small = to_rgb(image)
        small.thumbnail((_SIDE, _SIDE))
        small.save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()
