"""Labeling: a part of the posts becomes shards, a shard at a time; what each shard holds is on record.

It is a pure function of the part, its images and the labeler. The record of a shard is written last, and says where
reading went on behind it: after a stop nothing that is on record is done again.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.data import shards
from vise_jax.engagement import hashing
from vise_jax.engagement.labeler import Labeler
from vise_jax.errors import UserError
from vise_jax.labeling.images import read_image
from vise_jax.posts import BadPost, Cursor, Post, RejectLog, read, split_file

# Posts whose comments are encoded at a time.
_BATCH_POSTS = 64
# Config keys that decide the bytes of the shards, beside the labeler and the posts.
SHARD_KEYS = (
    "validation_fraction",
    "train_fraction",
    "max_image_pixels",
    "transcode_quality",
    "shard_megabytes",
    "part_megabytes",
)


@dataclass(frozen=True)
class Part:
    """A part of a posts file.

    Attributes:
        path: the file.
        sha256: of the whole file, hex.
        number: which part of the file, from 0.
        start: where it starts.
        end: the offset behind it; None for the end of the file.
        stat: size and time of the last change (ns) of the file when its hash was taken.
    """

    path: Path
    sha256: str
    number: int
    start: Cursor
    end: int | None
    stat: tuple[int, int]

    @property
    def name(self) -> str:
        """The same for the same content, whatever the file is called."""
        return f"{self.sha256[:16]}-{self.number:04d}"

    def check_unchanged(self) -> None:
        """Check that the file is the one that was hashed.

        Raises:
            UserError: it has changed.
        """
        if _stat(self.path) != self.stat:
            raise UserError(
                f"{self.path} was changed while the job was running: let it rest, and run the same command again."
            )


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): check the file.") from error
    return found.st_size, found.st_mtime_ns


def parts_of(path: Path, labels: ConfigDict) -> list[Part]:
    """The parts of a posts file.

    Raises:
        UserError: it can't be read.
    """
    stat = _stat(path)
    sha256, ranges = split_file(path, labels.part_megabytes * 2**20)
    return [Part(path, sha256, number, start, end, stat) for number, (start, end) in enumerate(ranges)]


def label_part(
    part: Part,
    labeler: Labeler,
    labels: ConfigDict,
    excluded: frozenset[bytes],
    output: Path,
    after_post: Callable[[], None] = lambda: None,
) -> None:
    """Label a part: each post of its training and validation split that has a good image and a label is an example.

    Shards that are on record are passed over. For every other one, `output` gets NAME.tfrecord and
    NAME.validation.tfrecord (where there are such examples), `records/` a table of each (`read_table`) and, when these
    are complete, NAME.json.

    Args:
        part: the part; paths of images are relative to the file's folder.
        labeler: what decides the labels and the splits.
        labels: the `labels` section of a config, for the limits and the salt.
        excluded: hashes of post ids to leave out.
        output: the folder of the shards; it has a folder `records`.
        after_post: called for each post read.

    Raises:
        UserError: the file can't be read, was changed, or too many of its posts are bad; or the disk is full.
    """
    reject_log = RejectLog(part.path, labels.max_rejected_fraction, labels.min_posts_to_stop)
    place: Cursor | None = part.start
    done = list(_records(part, output))
    for record in done:
        reject_log.posts += record["posts"]
        reject_log.rejected.update(record["rejected"])
        place = Cursor(*record["behind"]) if record["behind"] else None
    if place is None:
        return
    part.check_unchanged()
    posts = _Stream(read(part.path, reject_log, place, part.end), place, after_post)
    secret = checked_salt(labeler, labels)
    for number in itertools.count(len(done)):
        if posts.place is None:
            return
        before = RejectLog()
        before.posts, before.rejected, before.notes = (
            reject_log.posts,
            reject_log.rejected.copy(),
            reject_log.notes.copy(),
        )
        reject_log.named = []
        counts: Counter[str] = Counter()
        examples: dict[str, list[shards.Example]] = {"train": [], "validation": []}
        size = 0.0
        while posts.place is not None and size < labels.shard_megabytes * 2**20:
            room = labels.shard_megabytes * 2**20 - size
            batch = _batch(posts, room, labeler, labels, secret, excluded, reject_log, counts)
            for split, example in _examples(batch, labeler, secret, reject_log):
                examples[split].append(example)
                size += len(example["image/encoded"])
        # Images are looked at behind the reader, which has checked without the last of them.
        reject_log.check()
        part.check_unchanged()
        name = f"{part.name}-{number:05d}"
        written = {split: _write(found, output, name, split) for split, found in examples.items() if found}
        artifact.write_json(
            output / "records" / f"{name}.json",
            {
                "file": part.path.name,
                "sha256": part.sha256,
                "part": part.number,
                "posts": reject_log.posts - before.posts,
                "splits": {split: counts[split] for split in hashing.SPLITS},
                "excluded": counts["excluded"],
                "shards": written,
                "rejected": dict(reject_log.rejected - before.rejected),
                "rejected_posts": reject_log.named,
                "notes": dict(reject_log.notes - before.notes),
                "behind": posts.place,
            },
        )


def checked_salt(labeler: Labeler, labels: ConfigDict) -> bytes:
    """The salt that the labeler was fitted with.

    Raises:
        UserError: the config names another one.
    """
    salt = hashing.salt(labels.salt_file, labeler.labels["seed"])
    if hashing.salt_check(salt) != labeler.salt_check:
        raise UserError(
            "The labeler was fitted with another salt, so that posts that made its clusters would be trained on: "
            "give the labels.salt_file that it was fitted with."
        )
    return salt


def is_labeled(part: Part, output: Path) -> bool:
    """Whether all of a part is on record."""
    return any(record["behind"] is None for record in _records(part, output))


def _records(part: Part, output: Path) -> Iterator[dict[str, Any]]:
    for number in itertools.count():
        path = output / "records" / f"{part.name}-{number:05d}.json"
        if not path.exists():
            return
        yield json.loads(path.read_text("utf-8"))


class _Stream:
    """Posts, and the place behind the last one that was taken; None at the end."""

    def __init__(self, posts: Iterator[Post], place: Cursor, after_post: Callable[[], None]):
        self._posts, self._after_post = posts, after_post
        self.place: Cursor | None = place

    def take(self) -> Post | None:
        post = next(self._posts, None)
        self.place = post.after if post else None
        if post:
            self._after_post()
        return post


# Post, split and encoded image.
_Usable = tuple[Post, str, bytes]


def _batch(
    posts: _Stream,
    room: float,
    labeler: Labeler,
    labels: ConfigDict,
    secret: bytes,
    excluded: frozenset[bytes],
    reject_log: RejectLog,
    counts: Counter[str],
) -> list[_Usable]:
    """Posts with good images, as many as fit into `room` bytes; so a shard ends between two batches."""
    batch: list[_Usable] = []
    while room > 0 and len(batch) < _BATCH_POSTS and (post := posts.take()) is not None:
        if excluded and hashing.hash_id(post.post_id, secret) in excluded:
            counts["excluded"] += 1
            continue
        shares = labeler.labels["cluster_fraction"], labels.validation_fraction, labels.train_fraction
        split = hashing.split(post.post_id, secret, *shares)
        counts[split] += 1
        if split not in ("train", "validation"):
            continue
        try:
            encoded = read_image(post, labels.max_image_pixels, labels.transcode_quality, labels.link_roots)
        except BadPost as bad:
            reject_log.reject(post.line, bad.reason)
            continue
        batch.append((post, split, encoded))
        room -= len(encoded)
    return batch


def _examples(
    batch: list[_Usable], labeler: Labeler, secret: bytes, reject_log: RejectLog
) -> Iterator[tuple[str, shards.Example]]:
    labeled = labeler.label([post for post, _, _ in batch])
    for (post, split, encoded), label in zip(batch, labeled, strict=True):
        if not label.comment_labels and label.reaction_label < 0:
            reject_log.reject(post.line, "no_label")
            continue
        yield (
            split,
            {
                "image/encoded": encoded,
                "post_id": hashing.hash_id(post.post_id, secret),
                "comments/labels": label.comment_labels,
                "comments/weights": label.comment_weights,
                "reactions/label": label.reaction_label,
            },
        )


def _write(examples: list[shards.Example], output: Path, name: str, split: str) -> dict[str, Any]:
    """Write a shard and its table; what the record says of them."""
    name = name if split == "train" else f"{name}.{split}"
    labels = [example["comments/labels"] for example in examples]
    table: dict[str, np.ndarray] = {
        "post_ids": np.frombuffer(b"".join(bytes.fromhex(e["post_id"].decode()) for e in examples), np.uint8),
        "comment_labels": np.array(list(itertools.chain.from_iterable(labels)), np.int32),
        "comment_counts": np.array(list(map(len, labels)), np.int32),
        "reaction_labels": np.array([example["reactions/label"] for example in examples], np.int32),
    }
    path = output / f"{name}.tfrecord"
    # A run that was killed between a shard and its record has left the same bytes.
    described = shards.describe_shard(path, len(examples)) if path.exists() else shards.write_shard(examples, path)
    write_table(output / "records" / f"{name}.safetensors", table)
    return {**described, "table": f"{name}.safetensors"}


def write_table(path: Path, table: dict[str, np.ndarray]) -> None:
    """Write what `read_table` reads."""
    with artifact.atomic_file(path) as file:
        file.write(safetensors.numpy.save(table))


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The labels of a shard without its images.

    Returns:
        `post_ids` uint8 [N, 16] (the salted hashes), `comment_labels` int32 [M] (of all examples, one behind the
        other), `comment_counts` int32 [N] (how many of them each example has), `reaction_labels` int32 [N].
    """
    table = safetensors.numpy.load(path.read_bytes())
    return {**table, "post_ids": table["post_ids"].reshape(-1, 16)}
