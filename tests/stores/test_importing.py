"""An export in a bucket becomes posts in a bucket: the bytes of the same import on disk."""

import json
from pathlib import Path
from typing import Any

import pytest

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.importing import importer, kinds
from vise_jax.posts import expand

TABLE = kinds.of_table({"post_id": "id", "image": "file", "comments": "replies[].text", "reactions.love": "loves"})
RECORDS = [
    {"id": "1", "file": "a.jpg", "replies": [{"text": "so cute"}, {"text": "😍"}], "loves": 3},
    {"id": "2", "file": "deeper/b.jpg", "replies": [{"text": "no"}], "loves": 0},
    {"id": "3", "file": "missing.jpg", "replies": [], "loves": 1},
    {"id": "4", "file": "../escaped.jpg", "replies": [], "loves": 1},
]


def prepare(root: Path) -> None:
    artifact.make_directory(root / "out" / "images" / "deeper")
    artifact.write_text(root / "export.jsonl", "".join(f"{json.dumps(record)}\n" for record in RECORDS))
    for name in ("images/a.jpg", "images/deeper/b.jpg", "escaped.jpg"):
        artifact.write_text(root / "out" / name, "photo")


def import_posts(root: Path) -> dict[str, Any]:
    return importer.import_posts(expand(f"{root}/export.jsonl"), TABLE, root / "out", images=root / "out" / "images")


def test_an_import_in_a_bucket_is_that_of_the_disk(store: Any, tmp_path: Path) -> None:
    root = artifact.location(f"{store.root}/some")
    for where in (root, tmp_path):
        prepare(where)
    found, expected = import_posts(root), import_posts(tmp_path)
    posts = (root / "out" / "00000.jsonl").read_bytes()
    assert posts == (tmp_path / "out" / "00000.jsonl").read_bytes()
    assert [json.loads(line)["image"] for line in posts.splitlines()] == [
        "images/a.jpg",
        "images/deeper/b.jpg",
        None,
        None,
    ]
    assert {**found, "import": ""} == {**expected, "import": ""}
    assert import_posts(root) == found
    with pytest.raises(UserError, match="are not in"):
        importer.import_posts(expand(f"{root}/export.jsonl"), TABLE, root / "out", images=root / "elsewhere")
