"""Deleted examples: a manifest records their positions, so that runs of an earlier manifest resume."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vise_jax import arrays, artifact
from vise_jax.data.shards import base_name
from vise_jax.errors import UserError


def as_of(manifest: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """Return the manifest in which examples have the positions of an earlier one, before posts were deleted.

    Args:
        manifest: the current one, from `read_manifest`.
        fingerprint: of the earlier one.

    Returns:
        `manifest` with the earlier `examples`, `max_comment_labels` and `fingerprint`. Each of its `shards` has the
        earlier number of `examples`; `stored`, the number of records in the file; and `positions` int64 [examples], the
        record in the file of each example, -1 for a deleted one.

    Raises:
        UserError: `fingerprint` is not that of an earlier manifest.
    """
    if manifest["fingerprint"] == fingerprint:
        return manifest
    deletions = manifest.get("deletions", [])
    earlier = [deletion["fingerprint"] for deletion in deletions]
    if fingerprint not in earlier:
        raise UserError(
            "The shards are neither those of the run nor what deletions have left of them: give those, or use a new "
            "--workdir."
        )
    entries = {
        base_name(shard["name"]): {**shard, "stored": shard["examples"], "positions": np.arange(shard["examples"])}
        for shard in manifest["shards"]
    }
    undone = deletions[earlier.index(fingerprint) :]
    for deletion in reversed(undone):
        for base, before in deletion["shards"].items():
            entry = entries.get(base, {"name": f"{base}.tfrecord", "stored": 0, "positions": np.empty(0, np.int64)})
            positions = np.full(before["examples"], -1)
            positions[np.setdiff1d(np.arange(before["examples"]), before["deleted"])] = entry["positions"]
            entries[base] = {**entry, "examples": before["examples"], "positions": positions}
    described = [entries[base] for base in sorted(entries)]
    return {
        **manifest,
        "fingerprint": fingerprint,
        "examples": sum(shard["examples"] for shard in described),
        "max_comment_labels": undone[0]["max_comment_labels"],
        "shards": described,
    }


def fingerprints(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Return the fingerprints that `as_of` accepts: the manifest's own, and those before its deletions."""
    return manifest["fingerprint"], *(deletion["fingerprint"] for deletion in manifest.get("deletions", []))


def describe(directory: Path, before: dict[str, Any], after: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe which examples of a manifest are deleted, by their positions.

    Args:
        directory: the shards and their tables, old and new.
        before: the manifest before the deletion.
        after: descriptions of the training shards after it.

    Returns:
        `fingerprint` and `max_comment_labels` of `before`, and `shards`: for each shard that lost examples, their
        number before the deletion, `examples`, and the records that are `deleted`.
    """
    names = {base_name(shard["name"]): shard["name"] for shard in after}
    changed = {}
    for shard in before["shards"]:
        base = base_name(shard["name"])
        if names.get(base) != shard["name"]:
            left = set(_post_ids(directory, names[base])) if base in names else set()
            deleted = [number for number, post in enumerate(_post_ids(directory, shard["name"])) if post not in left]
            changed[base] = {"examples": shard["examples"], "deleted": deleted}
    return {
        "fingerprint": before["fingerprint"],
        "max_comment_labels": before["max_comment_labels"],
        "shards": changed,
    }


def _post_ids(directory: Path, name: str) -> list[bytes]:
    """Return the hashed post id of each record of a shard, from its table."""
    table = directory / "records" / f"{name.removesuffix('.tfrecord')}.safetensors"
    try:
        with artifact.explained(table):
            ids = arrays.from_safetensors(table.read_bytes())[0]["post_ids"].tobytes()
    except (KeyError, ValueError) as error:
        raise UserError(f"{table} is damaged ({error}): restore it.") from error
    return [ids[start : start + 16] for start in range(0, len(ids), 16)]
