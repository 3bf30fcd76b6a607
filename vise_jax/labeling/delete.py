"""The deletion job: take posts out of finished engagement shards."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.data import shards
from vise_jax.engagement import hashing
from vise_jax.engagement.labeler import Labeler
from vise_jax.errors import UserError
from vise_jax.labeling import output_dir
from vise_jax.labeling.input_split import checked_salt, excluded_near, parse_record, write_record
from vise_jax.labeling.manifest import finish, read_records, without
from vise_jax.labeling.tables import read_table


def delete(output: Path, labels: ConfigDict, labeler: Path, exclude: Path) -> dict[str, Any]:
    """Take posts and images out of finished shards. Only the shards that hold them are written again, under new names.

    An example that stands for several posts, since duplicates were dropped or merged, goes with any of them.

    The old shards are removed after the new manifest is written, so that readers of the old manifest are not disturbed.
    The manifest records the positions of deleted examples, so that runs of the old manifest resume.

    Args:
        output: the directory of the shards.
        labels: the `labels` section of a config, for the salt.
        labeler: the directory of the labeler that the shards were made with.
        exclude: file with post ids and images to delete, one per line.

    Returns:
        The manifest.

    Raises:
        UserError: the shards are not finished, of another labeler, or used by another job; or no example would be left.
    """
    before = shards.read_manifest(output)
    fitted = Labeler.load(labeler)
    if before["labeler"] != fitted.fingerprint:
        raise UserError(
            f"The shards {output} were not made with the labeler {labeler}: give the one they were made with."
        )
    excluded = hashing.read_excluded(exclude, checked_salt(fitted, labels))
    distance = labels.duplicate_distance
    with output_dir.locked(output, output_dir.LOCK):
        output_dir.clear_temporary(output)
        job = artifact.parse_json((output / "job.json").read_bytes(), output / "job.json", "restore it")
        found = _Found(set(), set())
        records = read_records(output)
        for record in records:
            for shard in record["shards"].values():
                _matches(excluded, distance, read_table(output / "records" / shard["table"]), found)
        # Exclusion lists grow: what was deleted before counts as matched.
        deleted = sum(_deleted_posts(record) for record in records)
        images = found.images.union(*(record.get("deleted_images", ()) for record in records))
        if not (any(record.get("deleted") for record in records) or before["excluded"] or before["excluded_images"]):
            hashing.count_unmatched(exclude, excluded, len(found.posts), images)
        for name, content in artifact.read_files(output / "records", ".json").items():
            record = parse_record(content, output / "records" / name)
            of_record = _Found(set(), set(record.get("deleted_images", ())))
            gone = partial(_matches, excluded, distance, found=of_record)
            remaining = {split: without(output, shard, gone) for split, shard in record["shards"].items()}
            if remaining != record["shards"]:
                deleted_posts = _deleted_posts(record)
                left = sum(shard["examples"] for shard in remaining.values() if shard)
                removed = sum(shard["examples"] for shard in record["shards"].values()) - left
                record["deleted"] = record.get("deleted", 0) + removed
                # Their number only: no id is kept.
                record["deleted_posts"] = deleted_posts + len(of_record.posts)
                record["deleted_images"] = sorted(of_record.images)
                record["shards"] = {split: shard for split, shard in remaining.items() if shard}
                write_record(output / "records" / name, record)
        unmatched = hashing.count_unmatched(exclude, excluded, len(found.posts) + deleted, images)
        return finish(output, job, fitted.classes, before["inputs"], unmatched, before)


def _deleted_posts(record: Mapping[str, Any]) -> int:
    # Records of version 0.1.0 count examples only.
    return record.get("deleted_posts", record.get("deleted", 0))


class _Found(NamedTuple):
    """Hashes of post ids, and digests of images, that examples have."""

    posts: set[bytes]
    images: set[str]


def _matches(excluded: hashing.Excluded, distance: int, table: Mapping[str, np.ndarray], found: _Found) -> np.ndarray:
    """Return which examples of a table hold an excluded post or image, bool [N]; add what it is to `found`."""
    rows = np.arange(len(table["post_ids"]))
    owners, ids = [rows], [table["post_ids"]]
    if "copies" in table:
        owners.append(np.repeat(rows, table["copies"].astype(np.int64) - 1))
        ids.append(table["duplicate_ids"])
    matched = np.zeros(len(rows), bool)
    for row, post_id in zip(np.concatenate(owners), np.concatenate(ids), strict=True):
        if (name := post_id.tobytes().hex().encode()) in excluded.posts:
            matched[row] = True
            found.posts.add(name)
    if excluded.images:
        near = excluded_near(table["image_hashes"], excluded, distance)
        found.images.update(filter(None, near))
        matched |= np.array([bool(name) for name in near])
    return matched
