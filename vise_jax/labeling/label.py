"""The label job: posts files and a labeler give engagement shards."""

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.data import shards
from vise_jax.engagement import hashing
from vise_jax.engagement.labeler import PATHS, Labeler
from vise_jax.labeling import beam_runner, duplicates, local_runner, output_dir
from vise_jax.labeling.input_split import (
    SHARD_KEYS,
    InputSplit,
    checked_salt,
    describe_inputs,
    is_labeled,
    label_input_split,
    split_posts_files,
)
from vise_jax.labeling.manifest import finish, read_records, remove_unnamed

log = logging.getLogger(__name__)

# Keys that the labeler decides, whatever the config of a later job says.
_LABELER_KEYS = (
    *("cluster_fraction", "max_comments", "repair_encoding", "languages", "label_weights"),
    *("reactions", "other_reactions", "min_reactions", "seed"),
)


def label(
    paths: Sequence[Path],
    labeler: Path,
    labels: ConfigDict,
    output: Path,
    *,
    exclude: Path | None = None,
    workers: int = 0,
    beam_options: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Label posts files into a directory of engagement shards, resuming an interrupted job.

    Args:
        paths: posts files.
        labeler: the directory of the labeler, which decides the labels and the splits.
        labels: the `labels` section of a config.
        output: the directory of the shards.
        exclude: file with post ids to leave out, one per line.
        workers: number of processes that label; 0 = this process. It does not change a byte.
        beam_options: label on Apache Beam instead, with these options of its pipeline.

    Returns:
        The manifest.

    Raises:
        UserError: invalid input, no example at all, or an output directory that holds something else or that another
            job is writing.
    """
    fitted = Labeler.load(labeler)
    for key in _LABELER_KEYS:
        if artifact.canonical_json(labels[key]) != artifact.canonical_json(fitted.labels[key]):
            log.warning(
                f"labels.{key} is {fitted.labels[key]}, as the labeler was fitted, and not {labels[key]} as in the "
                "config: fit again to change it."
            )
    secret = checked_salt(fitted, labels)
    excluded = hashing.read_excluded(exclude, secret)
    input_splits = split_posts_files(paths, labels)
    job = {
        "format_version": shards.FORMAT_VERSION,
        "kind": "labeling job",
        "labeler": fitted.fingerprint,
        "salt_check": fitted.salt_check,
        "labels": {
            **{key: value for key, value in fitted.labels.items() if key not in PATHS},
            **{key: labels[key] for key in SHARD_KEYS},
        },
        "excluded": hashing.exclusion_check(excluded),
    }
    if output_dir.holds_something(output):
        output_dir.check_job(output, job)
    artifact.make_directory(output / "records")
    with output_dir.locked(output, output_dir.LOCK):
        try:
            artifact.write_json(output / "job.json", job)
            output_dir.clear(output, input_splits)
            if (output / "manifest.json").exists():
                manifest = shards.read_manifest(output)
                # A killed job may have left them.
                remove_unnamed(output, manifest, read_records(output))
                return manifest

            def each(work: local_runner.Work, todo: Sequence[InputSplit], description: str) -> None:
                if beam_options is None:
                    local_runner.each(work, todo, workers, description)
                elif todo:
                    beam_runner.each(work, todo, beam_options)

            work = partial(_label, labeler.absolute(), labels.to_dict(), exclude, output.absolute())
            each(work, [part for part in input_splits if not is_labeled(part, output)], "labeling")
            records = read_records(output)
            posts = sum(record["excluded"] for record in records)
            images = {name for record in records for name in record["excluded_images"]}
            unmatched = hashing.count_unmatched(exclude, excluded, posts, images)
            if labels.duplicates != "keep":
                duplicates.plan(output, records, fitted, labels.duplicate_distance, labels.duplicates == "merge")
                each(partial(duplicates.apply, output.absolute()), input_splits, "writing without duplicates")
            return finish(output, job, fitted.classes, describe_inputs(input_splits), unmatched)
        except BaseException:
            if not any(name.endswith(".tfrecord") for name in artifact.sizes(output)):
                output_dir.remove(output)
            raise


@cache
def _labeler(directory: Path) -> Labeler:
    """Load a labeler once per worker, which labels many input splits with it."""
    return Labeler.load(directory)


def _label(
    labeler: Path,
    labels: dict[str, Any],
    exclude: Path | None,
    output: Path,
    input_split: InputSplit,
    after_post: Callable[[], None],
) -> None:
    config, fitted = ConfigDict(labels), _labeler(labeler)
    excluded = hashing.read_excluded(exclude, checked_salt(fitted, config))
    label_input_split(input_split, fitted, config, excluded, output, after_post)
