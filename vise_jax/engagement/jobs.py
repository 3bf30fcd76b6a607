"""The labelling jobs: posts files to a labeler, and posts files with a labeler to engagement shards.

Labelling is a pure function of one posts file, its images and the labeler. What it wrote is recorded file by file,
so that the same command goes on where it was stopped; the manifest comes last, and makes the folder an artefact.
"""

import contextlib
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import vise_jax
from vise_jax import artefact
from vise_jax.data import shards
from vise_jax.engagement import privacy
from vise_jax.engagement.images import read_image
from vise_jax.engagement.labeler import Labeler
from vise_jax.errors import UserError
from vise_jax.posts import MAX_NAMED, BadPost, Ledger, Post, read, summary
from vise_jax.progress import Progress

# Posts whose comments are encoded at a time.
_BATCH = 256
# What decides the bytes of the shards, beside the labeler and the posts; fitting knows nothing of it.
_SHARD_KEYS = ("max_image_pixels", "shard_megabytes")
# What a labeler decides, whatever the config of a later run says.
_LABELER_KEYS = ("cluster_share", "max_comments", "label_weights", "seed")


def fit(paths: Sequence[Path], labels: ConfigDict, output: Path) -> Labeler:
    """Fit a labeler on posts files and save it; one that was made from the same files and keys is kept.

    Args:
        paths: posts files.
        labels: the `labels` section of a config.
        output: the labeler's folder.

    Raises:
        UserError: bad input, nothing to fit on, or an output folder that holds something else.
    """
    inputs = _inputs(paths)
    keys = {key: value for key, value in labels.items() if key not in (*_SHARD_KEYS, "max_rejected_share")}
    salt_check = privacy.salt_check(privacy.salt(labels.salt_file, labels.seed))
    origin = artefact.fingerprint([sorted(file["sha256"] for file in inputs), keys, salt_check])
    if _holds_something(output):
        labeler = Labeler.load(output)
        if labeler.fitted.get("origin") != origin:
            raise UserError(f"{output} holds a labeler of other posts or other labels keys: name a new folder.")
        return labeler
    ledgers = [Ledger(path, labels.max_rejected_share) for path in paths]
    posts = itertools.chain.from_iterable(map(read, paths, ledgers))
    labeler = Labeler.fit(posts, labels)
    about = {
        "origin": origin,
        "inputs": inputs,
        "rejected": dict(sum((ledger.rejected for ledger in ledgers), Counter())),
        "notes": dict(sum((ledger.notes for ledger in ledgers), Counter())),
    }
    labeler = replace(labeler, fitted={**labeler.fitted, **about})
    labeler.save(output)
    return labeler


def label_file(
    path: Path,
    labeler: Labeler,
    labels: ConfigDict,
    output: Path,
    *,
    name: str,
    after_post: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Label one posts file: every post of the training split that has a good image and a label becomes an example.

    Args:
        path: the posts file; paths of images are relative to its folder.
        labeler: what decides the labels and the splits.
        labels: the `labels` section of a config, for the limits and the salt.
        output: the folder of the shards.
        name: prefix of their names.
        after_post: called for each post read.

    Returns:
        The record of the file: `posts`, `splits`, `labelled`, `max_comment_labels`, `shards`, `rejected`, `notes` and
        `rejected_posts` (file, line and reason, never what they say).

    Raises:
        UserError: the file can't be read, or too many of its posts are bad. Its shards are gone then.
    """
    ledger = Ledger(path, labels.max_rejected_share)
    counts: Counter[str] = Counter()

    def posts() -> Iterator[Post]:
        for post in read(path, ledger):
            after_post()
            yield post

    try:
        written = shards.write_shards(
            _examples(posts(), labeler, labels, ledger, counts), output, name, labels.shard_megabytes * 2**20
        )
        # Images are looked at behind the reader, which has checked without the last of them.
        ledger.check()
    except BaseException:
        for shard in output.glob(f"{name}-*.tfrecord"):
            shard.unlink()
        raise
    return {
        "posts": ledger.posts,
        "splits": {split: counts[split] for split in ("cluster", "train")},
        "labelled": {head: counts[head] for head in ("comments", "reactions")},
        "max_comment_labels": counts["max_comment_labels"],
        "shards": written,
        "rejected": dict(ledger.rejected),
        "rejected_posts": ledger.named,
        "notes": dict(ledger.notes),
    }


def _examples(
    posts: Iterable[Post], labeler: Labeler, labels: ConfigDict, ledger: Ledger, counts: Counter[str]
) -> Iterator[shards.Example]:
    """The examples that posts give; the other posts are counted, or rejected with a reason."""
    salt = _salt(labeler, labels)

    def usable() -> Iterator[Post]:
        for post in posts:
            split = privacy.split(post.post_id, salt, labeler.labels["cluster_share"])
            counts[split] += 1
            if split == "cluster":
                continue
            if post.image is None and post.image_bytes is None:
                ledger.reject(post.line, "no_image")
            else:
                yield post

    remaining = usable()
    while batch := list(itertools.islice(remaining, _BATCH)):
        for post, label in zip(batch, labeler.label(batch), strict=True):
            if not label.comment_labels and label.reaction_label < 0:
                ledger.reject(post.line, "no_label")
                continue
            try:
                encoded = read_image(post, labels.max_image_pixels)
            except BadPost as bad:
                ledger.reject(post.line, bad.reason)
                continue
            counts["comments"] += bool(label.comment_labels)
            counts["reactions"] += label.reaction_label >= 0
            counts["max_comment_labels"] = max(counts["max_comment_labels"], len(label.comment_labels))
            yield {
                "image/encoded": encoded,
                "post_id": privacy.hash_id(post.post_id, salt),
                "comments/labels": label.comment_labels,
                "comments/weights": label.comment_weights,
                "reactions/label": label.reaction_label,
            }


def run(paths: Sequence[Path], labeler: Labeler, labels: ConfigDict, output: Path) -> dict[str, Any]:
    """Label posts files into a folder of engagement shards; go on where an earlier run of the same job was stopped.

    Args:
        paths: posts files.
        labeler: what decides the labels and the splits.
        labels: the `labels` section of a config.
        output: the folder of the shards.

    Returns:
        The manifest; that of the finished folder, if the job was done before.

    Raises:
        UserError: bad input, no example at all, or an output folder that holds something else.
    """
    for key in _LABELER_KEYS:
        if labels[key] != labeler.labels[key]:
            print(
                f"labels.{key} is {labeler.labels[key]}, as the labeler was fitted, and not {labels[key]} as in the "
                "config: fit again to change it.",
                file=sys.stderr,
            )
    inputs = {file["sha256"][:16]: file for file in _inputs(paths)}
    job = {
        "format_version": shards.FORMAT_VERSION,
        "kind": "labelling job",
        "labeler": labeler.fingerprint,
        "salt_check": privacy.salt_check(_salt(labeler, labels)),
        "labels": {**labeler.labels, **{key: labels[key] for key in _SHARD_KEYS}},
    }
    records = _open(output, job, inputs)
    if (output / "manifest.json").exists():
        return shards.read_manifest(output)
    try:
        with Progress("labelling", None, "posts") as progress:
            for (name, file), path in zip(inputs.items(), paths, strict=True):
                if name not in records:
                    record = label_file(path, labeler, labels, output, name=name, after_post=progress.advance)
                    records[name] = {**file, **record}
                    artefact.write_json(output / "records" / f"{name}.json", records[name])
        manifest = _manifest(job, labeler.classes, [records[name] for name in sorted(records)])
    except BaseException:
        if not any(record["shards"] for record in records.values()):
            _remove(output)
        raise
    named = {shard["name"] for shard in manifest["shards"]}
    for leftover in output.glob("*.tfrecord"):
        # Of an input that was changed after a run was killed in the middle of it.
        if leftover.name not in named:
            leftover.unlink()
    artefact.write_json(output / "manifest.json", manifest)
    return manifest


def _salt(labeler: Labeler, labels: ConfigDict) -> bytes:
    salt = privacy.salt(labels.salt_file, labeler.labels["seed"])
    if privacy.salt_check(salt) != labeler.salt_check:
        raise UserError(
            "The labeler was fitted with another salt, so that posts that made its clusters would be trained on: "
            "give the labels.salt_file that it was fitted with."
        )
    return salt


def _inputs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Name and SHA-256 of each posts file."""
    inputs: dict[str, Path] = {}
    for path in paths:
        try:
            sha256 = artefact.file_sha256(path)
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror}): check the file.") from error
        if sha256 in inputs:
            raise UserError(f"{inputs[sha256]} and {path} hold the same posts: give only one of them.")
        inputs[sha256] = path
    return [{"name": path.name, "sha256": sha256} for sha256, path in inputs.items()]


def _holds_something(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _open(output: Path, job: dict[str, Any], inputs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Claim the folder for this job, and read the records of the inputs that are done."""
    if _holds_something(output):
        if not (output / "job.json").is_file():
            raise UserError(f"{output} holds something that is no labelling job: name a new folder.")
        if json.loads((output / "job.json").read_text("utf-8")) != job:
            raise UserError(f"{output} holds the shards of another labeler or other labels keys: name a new folder.")
    (output / "records").mkdir(parents=True, exist_ok=True)
    artefact.write_json(output / "job.json", job)
    for temporary in (*output.glob(".*.tmp-*"), *output.glob("records/.*.tmp-*")):
        temporary.unlink()
    records = {path.stem: json.loads(path.read_text("utf-8")) for path in (output / "records").glob("*.json")}
    strangers = sorted(records[name]["name"] for name in records.keys() - inputs.keys())
    missing = sorted(inputs[name]["name"] for name in inputs.keys() - records.keys())
    if strangers:
        raise UserError(
            f"{output} holds shards of posts that are not given now ({strangers[0]}, or it was changed since): give "
            "the same files again, or name a new folder."
        )
    if missing and (output / "manifest.json").exists():
        raise UserError(f"{output} is complete without the posts of {missing[0]}: name a new folder.")
    return records


def _remove(output: Path) -> None:
    """Take back what an attempt that made no shard has written."""
    shutil.rmtree(output / "records", ignore_errors=True)
    (output / "job.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        output.rmdir()


def _manifest(job: dict[str, Any], classes: dict[str, int], records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the folder says of itself: sums over its inputs, in an order that does not depend on their names."""

    def total(key: str) -> dict[str, int]:
        summed: Counter[str] = Counter()
        for record in records:
            summed.update(record[key])
        return dict(sorted(summed.items()))

    written = [shard for record in records for shard in record["shards"]]
    posts, rejected, splits = sum(record["posts"] for record in records), total("rejected"), total("splits")
    if not written:
        raise UserError(
            f"None of the {posts:,} posts can be trained on ({splits['cluster']:,} are of the cluster split, the rest "
            f"was rejected: {summary(rejected)}): mend them, or give more posts."
        )
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
        "examples": sum(shard["examples"] for shard in written),
        "splits": splits,
        "labelled": total("labelled"),
        "max_comment_labels": max(record["max_comment_labels"] for record in records),
        "classes": classes,
        "shards": written,
        "rejected": rejected,
        "rejected_posts": rejected_posts,
        "notes": total("notes"),
        "inputs": [{key: record[key] for key in ("name", "sha256", "posts")} for record in records],
        "labeler": job["labeler"],
        "salt_check": job["salt_check"],
        "labels": job["labels"],
        "fingerprint": artefact.fingerprint([job, classes, written]),
    }
