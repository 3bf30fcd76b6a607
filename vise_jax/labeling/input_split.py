"""Label an input split: its posts become shards, with a record of each shard.

Labeling is a pure function of the input split, its images and the labeler. The record of a shard is written last and
holds the cursor after it, from which an interrupted job resumes.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.data import near_duplicates, shards
from vise_jax.data.records import read_index
from vise_jax.engagement import hashing, reactions
from vise_jax.engagement.labeler import Labeler
from vise_jax.errors import UserError
from vise_jax.labeling.images import begin_image, read_image, with_image
from vise_jax.labeling.tables import write_table
from vise_jax.machine import available_cpus
from vise_jax.posts import BadPost, Cursor, Limits, Post, RejectLog, is_empty, read, split_file
from vise_jax.progress import Progress

# Posts whose comments are encoded at a time.
_BATCH_POSTS = 64
# Posts files that are hashed at a time, at most: each takes up to 72 MB of memory in an object store.
_MAX_HASHED = 8
# Entry of a record: the SHA-256 of its other entries.
_SHA256 = "record_sha256"
# Splits whose posts become examples.
_WITH_IMAGES = ("train", "validation")
# Config keys that decide what is read of the posts, by a fit, too.
READ_KEYS = ("max_line_bytes", "max_comment_characters", "max_post_comments")
# Config keys that decide the bytes of the shards, beside the labeler and the posts.
SHARD_KEYS = (
    *READ_KEYS,
    "max_image_bytes",
    "validation_fraction",
    "train_fraction",
    "max_image_pixels",
    "transcode_quality",
    "image_side",
    "shard_megabytes",
    "split_megabytes",
    "duplicates",
    "duplicate_distance",
)


def limits(labels: ConfigDict) -> Limits:
    """Return the bounds of what is read that the `labels` section of a config states."""
    return Limits(*(labels[key] for key in READ_KEYS))


@dataclass(frozen=True)
class InputSplit:
    """A range of posts of a file.

    Attributes:
        path: the file.
        sha256: of the whole file, hex.
        number: its index in the file, from 0.
        start: the cursor of its first post.
        end: the offset after its last post; None for the end of the file.
        version: of the file when it was hashed, see `artifact.version`.
    """

    path: Path
    sha256: str
    number: int
    start: Cursor
    end: int | None
    version: tuple[int, int | str]

    @property
    def name(self) -> str:
        """Name of the split, from the content of the file and not from the file's name."""
        return f"{self.sha256[:16]}-{self.number:04d}"

    def check_unchanged(self) -> None:
        """Check that the file is the one that was hashed.

        Raises:
            UserError: it has changed.
        """
        if _version(self.path) != self.version:
            raise UserError(
                f"{self.path} was changed while the job was running: let it rest, and run the same command again."
            )


def _version(path: Path) -> tuple[int, int | str]:
    try:
        return artifact.version(path)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): check the file.") from error


def split_posts_file(path: Path, labels: ConfigDict) -> list[InputSplit]:
    """Return the input splits of a posts file.

    Raises:
        UserError: the file can't be read.
    """
    version = _version(path)
    sha256, ranges = split_file(path, labels.split_megabytes * 2**20, version[0])
    return [InputSplit(path, sha256, number, start, end, version) for number, (start, end) in enumerate(ranges)]


def split_posts_files(paths: Sequence[Path], labels: ConfigDict) -> list[InputSplit]:
    """Return the input splits of all posts files, in an order that does not depend on that of `paths`.

    Raises:
        UserError: a file can't be read, or two files hold the same posts.
    """
    files: dict[str, Path] = {}
    input_splits: list[InputSplit] = []
    # Files are read and hashed in parallel. An interrupted process does not wait for these threads.
    with (
        Progress("hashing posts", len(paths), "files", quiet=len(paths) == 1) as progress,
        ThreadPool(min(available_cpus(), _MAX_HASHED)) as pool,
    ):
        for path, of_file in zip(paths, pool.imap(partial(split_posts_file, labels=labels), paths), strict=True):
            progress.advance()
            sha256 = of_file[0].sha256
            if sha256 in files and is_empty(path):
                continue
            if sha256 in files:
                raise UserError(f"{files[sha256]} and {path} hold the same posts: give only one of them.")
            files[sha256] = path
            input_splits.extend(of_file)
    return sorted(input_splits, key=lambda input_split: input_split.name)


def describe_inputs(input_splits: Sequence[InputSplit]) -> list[dict[str, Any]]:
    """Return name and SHA-256 of each posts file."""
    return [
        {"name": input_split.path.name, "sha256": input_split.sha256}
        for input_split in input_splits
        if input_split.number == 0
    ]


def label_input_split(
    input_split: InputSplit,
    labeler: Labeler,
    labels: ConfigDict,
    excluded: hashing.Excluded,
    output: Path,
    after_post: Callable[[], None] = lambda: None,
) -> None:
    """Write the shards of an input split.

    Each post of the training and the validation split becomes an example if it has a valid image and a label. Shards
    with a record are skipped. For each other shard, writes NAME.tfrecord and NAME.validation.tfrecord (unless empty) to
    `output`, a table of each to `records/` (see `tables.read_table`), and last the record, `records/NAME.json`.

    Args:
        input_split: paths of its images are relative to the directory of its file.
        labeler: decides the labels and the splits.
        labels: the `labels` section of a config, for the limits and the salt.
        excluded: posts and images to leave out.
        output: the directory of the shards, with a directory `records`.
        after_post: called for each post read.

    Raises:
        UserError: the file can't be read or was changed, too many of its posts are rejected, or the disk is full.
    """
    reject_log = RejectLog(input_split.path, labels.max_rejected_fraction, labels.min_posts_to_stop)
    cursor: Cursor | None = input_split.start
    done = list(records_of(input_split, output))
    for record in done:
        reject_log.posts += record["posts"]
        reject_log.rejected.update(record["rejected"])
        cursor = Cursor(*record["behind"]) if record["behind"] else None
    if cursor is None:
        return
    input_split.check_unchanged()
    rules = _Rules(labeler, labels, checked_salt(labeler, labels), excluded)
    posts = _Stream(input_split, cursor, rules, reject_log, after_post)
    for number in itertools.count(len(done)):
        if posts.cursor is None:
            return
        before, reject_log.named = reject_log.copy(), []
        counts: Counter[str] = Counter()
        excluded_images: Counter[str] = Counter()
        examples: dict[str, list[shards.Example]] = {"train": [], "validation": []}
        size = 0.0
        while posts.cursor is not None and size < labels.shard_megabytes * 2**20:
            room = labels.shard_megabytes * 2**20 - size
            batch = _batch(posts, room, rules, reject_log, counts, excluded_images)
            for split, example in _examples(batch, rules, reject_log):
                examples[split].append(example)
                size += len(example["image/encoded"])
        # The reader checked the limit before the images of the last posts were read.
        reject_log.check()
        input_split.check_unchanged()
        counted = reject_log.since(before)
        name = f"{input_split.name}-{number:05d}"
        written = {
            split: _write(rows, output, name, split, labels.duplicates == "merge")
            for split, rows in examples.items()
            if rows
        }
        write_record(
            output / "records" / f"{name}.json",
            {
                "file": input_split.path.name,
                "sha256": input_split.sha256,
                "part": input_split.number,
                "posts": counted.posts,
                "splits": {split: counts[split] for split in hashing.SPLITS},
                "excluded": counts["excluded"],
                "excluded_images": dict(excluded_images),
                "shards": written,
                "rejected": dict(counted.rejected),
                "rejected_posts": counted.named,
                "notes": dict(counted.notes),
                "behind": posts.cursor,
            },
        )


@dataclass(frozen=True)
class _Rules:
    """What decides which posts become examples."""

    labeler: Labeler
    labels: ConfigDict
    secret: bytes
    excluded: hashing.Excluded

    def split_of(self, post: Post) -> str:
        """Return the split of a post, or "excluded"."""
        if self.excluded.posts and hashing.hash_id(post.post_id, self.secret) in self.excluded.posts:
            return "excluded"
        fractions = self.labeler.labels["cluster_fraction"], self.labels.validation_fraction, self.labels.train_fraction
        return hashing.split(post.post_id, self.secret, *fractions)


def checked_salt(labeler: Labeler, labels: ConfigDict) -> bytes:
    """Return the salt that the labeler was fitted with.

    Raises:
        UserError: the config names another salt.
    """
    salt = hashing.salt(labels.salt_file, labeler.labels["seed"])
    if hashing.salt_check(salt) != labeler.salt_check:
        raise UserError(
            "The labeler was fitted with another salt, so that posts that made its clusters would be trained on: "
            "give the labels.salt_file that it was fitted with."
        )
    return salt


def is_labeled(input_split: InputSplit, output: Path) -> bool:
    """Return whether every shard of an input split has a record."""
    return any(record["behind"] is None for record in records_of(input_split, output))


def records_of(input_split: InputSplit, output: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of the shards of an input split, in order."""
    for number in itertools.count():
        path = output / "records" / f"{input_split.name}-{number:05d}.json"
        with artifact.explained(path):
            if not path.exists():
                return
            record = parse_record(path.read_bytes(), path)
        yield record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record of a shard, with its own SHA-256."""
    # As it is read again: keys that are numbers are text.
    record = artifact.from_json(artifact.canonical_json(record))
    artifact.write_json(path, {**record, _SHA256: artifact.fingerprint(record)})


def parse_record(content: bytes, path: Path) -> dict[str, Any]:
    """Parse the record of a shard.

    Raises:
        UserError: it is damaged.
    """
    advice = "delete it and run `label.py run` again, which writes its shards again"
    record = artifact.parse_json(content, path, advice)
    # Records of version 0.1.0 have none.
    stated = record.pop(_SHA256, None) if isinstance(record, dict) else ""
    if stated is not None and stated != artifact.fingerprint(record):
        raise UserError(f"{path} is damaged (its values have another SHA-256): {advice}.")
    return dict(record)


class _Coming(NamedTuple):
    """What is read next.

    Attributes:
        post: None behind the last one.
        split: of the post.
        image: its image, if that is being read.
        counted: what reading has counted since the post before; None where it counts at once.
    """

    post: Post | None
    split: str
    image: artifact.Reading | None
    counted: RejectLog | None


class _Stream:
    """Posts, and the cursor after the last one that was taken; None at the end.

    Posts that name images in an object store are read ahead, at most `artifact.IN_FLIGHT`. They count when they are
    taken.
    """

    def __init__(
        self,
        input_split: InputSplit,
        cursor: Cursor,
        rules: _Rules,
        reject_log: RejectLog,
        after_post: Callable[[], None],
    ):
        self.cursor: Cursor | None = cursor
        self._rules, self._reject_log, self._after_post = rules, reject_log, after_post
        self._begin = begin_image(input_split.path) if artifact.is_remote(input_split.path) else None
        self._coming: deque[_Coming] = deque()
        self._log = reject_log.copy() if self._begin else reject_log
        self._posts = read(
            input_split.path,
            self._log,
            cursor,
            input_split.end,
            reactions.buttons(rules.labeler.labels),
            limits(rules.labels),
            input_split.version[0],
        )

    def take(self) -> _Coming | None:
        """Return the next post."""
        while not self._coming or self._may_read_ahead():
            self._coming.append(self._next())
        coming = self._coming.popleft()
        if coming.counted:
            self._reject_log.add(coming.counted)
            self._reject_log.check_early()
        if coming.post is None:
            self.cursor = None
            return None
        self.cursor = coming.post.after
        self._after_post()
        return coming

    def _may_read_ahead(self) -> bool:
        last = self._coming[-1].post
        is_full = self._begin is None or len(self._coming) == artifact.IN_FLIGHT
        # Posts that hold their images take memory.
        return not is_full and last is not None and last.image_bytes is None

    def _read(self) -> tuple[Post | None, RejectLog | None]:
        """Return the next post, and what reading it has counted if it is read ahead."""
        if self._begin is None:
            return next(self._posts, None), None
        before, self._log.named = self._log.copy(), []
        post = next(self._posts, None)
        return post, self._log.since(before)

    def _next(self) -> _Coming:
        post, counted = self._read()
        if post is None:
            return _Coming(None, "", None, counted)
        split, image = self._rules.split_of(post), None
        if self._begin and split in _WITH_IMAGES and post.image and post.image_bytes is None:
            image = self._begin(post)
        return _Coming(post, split, image, counted)


# Post, split, encoded image and its perceptual hash.
_Usable = tuple[Post, str, bytes, int]


def _batch(
    posts: _Stream,
    room: float,
    rules: _Rules,
    reject_log: RejectLog,
    counts: Counter[str],
    excluded_images: Counter[str],
) -> list[_Usable]:
    """Take posts with valid images until they have `room` bytes. A shard ends between two batches."""
    batch: list[_Usable] = []
    labels, excluded = rules.labels, rules.excluded
    while room > 0 and len(batch) < _BATCH_POSTS and (coming := posts.take()) is not None:
        post, split = cast(Post, coming.post), coming.split
        counts[split] += 1
        if split not in _WITH_IMAGES:
            continue
        try:
            encoded, image_hash = read_image(
                with_image(post, coming.image),
                labels.max_image_pixels,
                labels.transcode_quality,
                labels.link_roots,
                labels.image_side,
                labels.max_image_bytes,
            )
        except BadPost as bad:
            reject_log.reject(post.line, bad.reason)
            continue
        if excluded.images and (
            near := excluded_near(np.array([image_hash], np.uint64), excluded, labels.duplicate_distance)[0]
        ):
            excluded_images[near] += 1
            continue
        batch.append((post, split, encoded, image_hash))
        room -= len(encoded)
    return batch


def excluded_near(hashes: np.ndarray, excluded: hashing.Excluded, distance: int) -> list[str]:
    """Return the digest of an excluded image that each hash is near, or "".

    Args:
        hashes: perceptual hashes, uint64 [N].
        excluded: the exclusion list.
        distance: largest number of differing bits.
    """
    digests = [name for _, name in excluded.images]
    near = near_duplicates.is_near(hashes, np.array([value for value, _ in excluded.images], np.uint64), distance)
    return [digests[int(row.argmax())] if row.any() else "" for row in near]


def _examples(batch: list[_Usable], rules: _Rules, reject_log: RejectLog) -> Iterator[tuple[str, shards.Example]]:
    labeler, secret = rules.labeler, rules.secret
    labeled = labeler.label([post for post, *_ in batch])
    for (post, split, encoded, image_hash), label in zip(batch, labeled, strict=True):
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
                "image_hash": image_hash,
                "reaction_counts": post.reactions or (0,) * len(labeler.labels["reactions"]),
            },
        )


def engagement_of(name: str) -> str:
    """Return the name of the table with what is merged of a shard: weights of labels, and counts of reactions."""
    return f"{name}.engagement.safetensors"


def _write(examples: list[shards.Example], output: Path, name: str, split: str, merged: bool) -> dict[str, Any]:
    """Write a shard and its table, and return their description for the record."""
    name = name if split == "train" else f"{name}.{split}"
    labels = [example["comments/labels"] for example in examples]
    table: dict[str, np.ndarray] = {
        "post_ids": np.frombuffer(b"".join(bytes.fromhex(e["post_id"].decode()) for e in examples), np.uint8),
        "comment_labels": np.array(list(itertools.chain.from_iterable(labels)), np.int32),
        "comment_counts": np.array(list(map(len, labels)), np.int32),
        "reaction_labels": np.array([example["reactions/label"] for example in examples], np.int32),
        "image_hashes": np.array([example["image_hash"] for example in examples], np.uint64),
    }
    if merged:
        # No finished job has it: counts of buttons tell one post from another.
        weights = itertools.chain.from_iterable(example["comments/weights"] for example in examples)
        counts = [example["reaction_counts"] for example in examples]
        engagement = {"comment_weights": np.array(list(weights), np.float32), "reaction_counts": np.array(counts)}
        write_table(output / "records" / engagement_of(name), engagement)
    path = output / f"{name}.tfrecord"
    described = shards.write_shard(examples, path)
    # The loader finds records by these.
    table["lengths"] = read_index(path, len(examples))[:, 1].astype(np.uint32)
    write_table(output / "records" / f"{name}.safetensors", table)
    return {**described, "table": f"{name}.safetensors"}
