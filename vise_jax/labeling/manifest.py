"""What becomes of the records of a labeling job: the statistics and the manifest of its shards; shards without posts.

A record describes one shard and its posts; the manifest sums up all records.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vise_jax
from vise_jax import arrays, artifact
from vise_jax.data import deletions, shards
from vise_jax.errors import UserError
from vise_jax.labeling import duplicates
from vise_jax.labeling.input_split import parse_record
from vise_jax.labeling.tables import read_table, select_rows, write_table
from vise_jax.posts import MAX_NAMED, summary


def read_records(output: Path) -> list[dict[str, Any]]:
    """Return the records of a directory of shards, in order."""
    directory = output / "records"
    files = artifact.read_files(directory, ".json")
    return [parse_record(content, directory / name) for name, content in files.items()]


def _check_sizes(output: Path, records: Sequence[dict[str, Any]]) -> None:
    """Check that each shard is there, as long as it was written."""
    there = artifact.sizes(output)
    for record in records:
        for shard in record["shards"].values():
            if (actual := there.get(shard["name"])) != shard["bytes"]:
                found = "is missing" if actual is None else f"has {actual:,} bytes instead of {shard['bytes']:,}"
                raise UserError(
                    f"The shard {output / shard['name']} {found}: delete {output}/records/"
                    f"{shards.base_name(shard['name'])}.json and run `label.py run` again, which writes it again."
                )


def finish(
    output: Path,
    job: dict[str, Any],
    classes: dict[str, int],
    inputs: Sequence[dict[str, Any]],
    unmatched: int = 0,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the statistics and the manifest of a labeled directory, and remove the files that neither names.

    Args:
        output: the directory; all of its records are there.
        job: what `job.json` says.
        classes: clusters of `comments` and `reactions`.
        inputs: name and SHA-256 of each posts file.
        unmatched: number of ids and images of the exclusion list that no post has.
        before: the manifest that this one replaces after a deletion.

    Returns:
        The manifest.

    Raises:
        UserError: no example at all.
    """
    records = read_records(output)
    _check_sizes(output, records)
    manifest = {"unmatched": unmatched} | _manifest(job, classes, records, inputs)
    history = before.get("deletions", []) if before else []
    if before and before["fingerprint"] != manifest["fingerprint"]:
        # The positions of deleted examples, so that runs of the earlier manifest resume.
        history = [*history, deletions.describe(output, before, manifest["shards"])]
    manifest["deletions"] = history
    written = [record["shards"]["train"] for record in records if "train" in record["shards"]]
    statistics = shards.count_labels((read_table(output / "records" / shard["table"]) for shard in written), classes)
    with artifact.atomic_file(output / shards.STATISTICS) as file:
        file.write(arrays.to_safetensors(statistics))
    labels_per_post = statistics["labels_per_post"]
    manifest["labeled"] = {
        "comments": int(labels_per_post[1:].sum()),
        "reactions": int(statistics["reactions"].sum()),
    }
    manifest["max_comment_labels"] = len(labels_per_post) - 1
    # Where near-duplicates were dropped or merged, no two examples are near, and nothing has to be searched.
    distance = job["labels"]["duplicate_distance"] if job["labels"]["duplicates"] == "keep" else 0
    manifest["duplicates"] = duplicates.describe(output, records, distance)
    artifact.write_json(output / "manifest.json", manifest)
    remove_unnamed(output, manifest, records)
    return manifest


def remove_unnamed(output: Path, manifest: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    """Remove shards that a manifest does not name, and tables that the records do not name.

    These are the first versions of shards that were written again, and what was needed to do so. Nothing is removed
    where the records are ahead of the manifest: an interrupted deletion is resumed from both.
    """
    named = {shard["name"] for shard in (*manifest["shards"], *manifest["validation"]["shards"])}
    described = [shard for record in records for shard in record["shards"].values()]
    if {shard["name"] for shard in described} != named:
        return
    tables = {shard["table"] for shard in described}
    for directory, suffix, kept in ((output, ".tfrecord", named), (output / "records", ".safetensors", tables)):
        for name in artifact.sizes(directory):
            if name.endswith(suffix) and name not in kept:
                with artifact.explained(directory / name, "removed"):
                    (directory / name).unlink(missing_ok=True)


def _manifest(
    job: dict[str, Any], classes: dict[str, int], records: list[dict[str, Any]], inputs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the manifest: sums over the records, in an order that does not depend on names of files."""

    def total(key: str) -> dict[str, int]:
        summed: Counter[str] = Counter()
        for record in records:
            summed.update(record[key])
        return dict(sorted(summed.items()))

    def of(split: str) -> list[dict[str, Any]]:
        of_split = [record["shards"][split] for record in records if split in record["shards"]]
        return [{key: shard[key] for key in ("name", "examples", "bytes", "sha256")} for shard in of_split]

    posts, rejected, splits = sum(record["posts"] for record in records), total("rejected"), total("splits")
    if not (train := of("train")):
        raise UserError(
            f"None of the {posts:,} posts can be trained on ({splits['cluster']:,} are of the cluster split, the rest "
            f"was rejected: {summary(rejected)}): correct them, or give more posts."
        )
    validation = of("validation")
    seen: Counter[str] = Counter()
    rejected_posts = []
    for entry in itertools.chain.from_iterable(record["rejected_posts"] for record in records):
        seen[entry["reason"]] += 1
        if seen[entry["reason"]] <= MAX_NAMED:
            rejected_posts.append(entry)
    return {
        "format_version": shards.FORMAT_VERSION,
        "kind": "engagement shards",
        "vise_jax": vise_jax.__version__,
        "posts": posts,
        "examples": sum(shard["examples"] for shard in train),
        "splits": splits,
        "excluded": sum(record["excluded"] for record in records),
        "excluded_images": sum(total("excluded_images").values()),
        "deleted": sum(record.get("deleted", 0) for record in records),
        "classes": classes,
        "shards": train,
        "validation": {"examples": sum(shard["examples"] for shard in validation), "shards": validation},
        "rejected": rejected,
        "rejected_posts": rejected_posts,
        "notes": total("notes"),
        "inputs": list(inputs),
        "labeler": job["labeler"],
        "salt_check": job["salt_check"],
        "labels": job["labels"],
        "fingerprint": artifact.fingerprint([job, classes, train, validation]),
    }


def without(
    output: Path, shard: dict[str, Any], gone: Callable[[dict[str, np.ndarray]], np.ndarray]
) -> dict[str, Any] | None:
    """Return a shard without some examples: itself if it holds none of them, None if it holds no others.

    Args:
        output: the directory of the shards.
        shard: what its record says of it.
        gone: tells of a table which of its examples are left out, bool [N].
    """
    table = read_table(output / "records" / shard["table"])
    keep = ~gone(table)
    if keep.all():
        return shard
    if not keep.any():
        return None
    name = shards.next_revision(shard["name"])
    written = shards.copy_records([(output / shard["name"], keep.tolist())], output / name)
    table_name = f"{name.removesuffix('.tfrecord')}.safetensors"
    write_table(output / "records" / table_name, select_rows(table, keep))
    return {**written, "table": table_name}
