"""Records and tables of labels: no flipped bit goes unnoticed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.labeling.input_split import parse_record, write_record
from vise_jax.labeling.tables import read_table, write_table

RECORD = {
    "file": "p.jsonl",
    "sha256": "0f",
    "posts": 3,
    "splits": {1: 2},
    "shards": {"train": {"bytes": 17}},
    "x": None,
}
TABLE = {
    "post_ids": np.arange(32, dtype=np.uint8),
    "comment_counts": np.array([1, 2], np.int32),
    "comment_labels": np.array([3, 0, 1], np.int32),
    "reaction_labels": np.array([-1, 2], np.int32),
    "lengths": np.array([100, 200], np.uint32),
}


def each_flip(path: Path, read: Callable[[], Any], equal: Callable[[Any], bool]) -> int:
    """Flip each bit of a file; return how often that was noticed. What is not noticed has to make no difference."""
    content, noticed = path.read_bytes(), 0
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                value = read()
            except UserError as error:
                noticed += str(path) in str(error)
            else:
                assert equal(value), (place, bit)
    return noticed


def test_a_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_record(path, RECORD)
    record = parse_record(path.read_bytes(), path)
    assert record == {**RECORD, "splits": {"1": 2}}

    def equal(value: dict[str, Any]) -> bool:
        # In the name of the checksum itself, a flipped bit makes a record of an older version.
        return {key: value.get(key) for key in record} == record

    noticed = each_flip(path, lambda: parse_record(path.read_bytes(), path), equal)
    assert noticed > 0.8 * 8 * path.stat().st_size


def test_a_flipped_bit_of_a_table_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_table(path, TABLE)
    table = read_table(path)
    np.testing.assert_array_equal(table["post_ids"], TABLE["post_ids"].reshape(2, 16))

    def equal(value: dict[str, np.ndarray]) -> bool:
        return value.keys() == table.keys() and all(np.array_equal(value[name], table[name]) for name in table)

    assert each_flip(path, lambda: read_table(path), equal) > 0.8 * 8 * path.stat().st_size


def test_those_of_older_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save(TABLE))
    assert read_table(tmp_path / "a.safetensors").keys() == TABLE.keys()
    artifact.write_json(tmp_path / "a.json", {"posts": 3})
    assert parse_record((tmp_path / "a.json").read_bytes(), tmp_path / "a.json") == {"posts": 3}


def test_a_record_that_is_no_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        parse_record(b"[]", tmp_path / "a.json")
