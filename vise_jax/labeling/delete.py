"""The deletion job: take posts out of finished engagement shards."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.data import shards
from vise_jax.engagement import hashing
from vise_jax.engagement.labeler import Labeler
from vise_jax.errors import UserError
from vise_jax.labeling import output_dir
from vise_jax.labeling.input_split import checked_salt
from vise_jax.labeling.manifest import excluded_in, finish, read_records, without


def delete(output: Path, labels: ConfigDict, labeler: Path, exclude: Path) -> dict[str, Any]:
    """Take posts out of finished shards. Only the shards that hold them are written again, under new names.

    The old shards are removed after the new manifest is written, so that readers of the old manifest are not disturbed.
    The manifest records the positions of deleted examples, so that runs of the old manifest resume.

    Args:
        output: the directory of the shards.
        labels: the `labels` section of a config, for the salt.
        labeler: the directory of the labeler that the shards were made with.
        exclude: file with post ids to delete, one per line.

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
    gone = {bytes.fromhex(post_id.decode()) for post_id in excluded}
    with output_dir.locked(output, output_dir.LOCK):
        output_dir.clear_temporary(output)
        job = json.loads((output / "job.json").read_text("utf-8"))
        matched = set(excluded_in(output, gone))
        deleted = sum(record.get("deleted", 0) for record in read_records(output))
        if excluded and not (matched or deleted or before["excluded"]):
            hashing.count_unmatched(exclude, excluded, 0)
        for path in sorted((output / "records").glob("*.json")):
            record = json.loads(path.read_text("utf-8"))
            remaining = {split: without(output, shard, gone) for split, shard in record["shards"].items()}
            if remaining != record["shards"]:
                left = sum(shard["examples"] for shard in remaining.values() if shard)
                removed = sum(shard["examples"] for shard in record["shards"].values()) - left
                record["deleted"] = record.get("deleted", 0) + removed
                record["shards"] = {split: shard for split, shard in remaining.items() if shard}
                artifact.write_json(path, record)
        # Exclusion lists grow: ids that were deleted before count as matched.
        unmatched = max(len(gone) - len(matched) - deleted, 0)
        return finish(output, job, fitted.classes, before["inputs"], unmatched, before)
