"""Salted hashes of post ids, and the splits that follow from them (Sec. 3.1)."""

import csv
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from vise_jax import artifact
from vise_jax.errors import UserError

log = logging.getLogger(__name__)

# A line of an exclusion list that names an image by its perceptual hash.
_IMAGE_LINE = re.compile(r"image:([0-9a-f]{16})")


def salt(salt_file: str, seed: int) -> bytes:
    """Return the secret of all hashes, 64 bytes: from a file, or derived from the seed if `salt_file` is empty.

    Raises:
        UserError: the file can't be read or is empty.
    """
    if not salt_file:
        return hashlib.blake2b(f"vise_jax, seed {seed}".encode()).digest()
    try:
        secret = Path(salt_file).read_bytes()
    except OSError as error:
        raise UserError(
            f"labels.salt_file={salt_file} can't be read ({error.strerror}): give the file that the labeler was fitted "
            "with; `label.py fit` makes one."
        ) from error
    if not secret.strip():
        raise UserError(f"labels.salt_file={salt_file} is empty: write random bytes into it once.")
    return hashlib.blake2b(secret).digest()


def make_salt(salt_file: str) -> None:
    """Write a new secret of 64 random bytes, readable by its owner alone (mode 600), where there is no such file."""
    if not salt_file:
        return
    if Path(salt_file).exists():
        if Path(salt_file).stat().st_mode & 0o077:
            log.warning(f"labels.salt_file={salt_file} can be read by others: chmod 600 {salt_file}")
        return
    try:
        Path(salt_file).parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(salt_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(64))
    except OSError as error:
        raise UserError(
            f"labels.salt_file={salt_file} can't be created ({error.strerror}): name another path."
        ) from error


def digest(text: str, salt: bytes, purpose: bytes) -> bytes:
    """Return 16 bytes of BLAKE2b, keyed with the salt; different purposes give unrelated digests."""
    return hashlib.blake2b(text.encode(), key=salt, person=purpose, digest_size=16).digest()


def hash_id(post_id: str, salt: bytes) -> bytes:
    """Return a post's id as stored in shards: 32 hex digits."""
    return digest(post_id, salt, b"id").hex().encode()


def salt_check(salt: bytes) -> str:
    """Return a word by which two parties find out that they have the same salt; it reveals nothing about it."""
    return digest("", salt, b"check").hex()


SPLITS = ("cluster", "validation", "train", "unused")


def split(
    post_id: str, salt: bytes, cluster_fraction: float, validation_fraction: float = 0.0, train_fraction: float = 1.0
) -> str:
    """Return the split of a post, one of `SPLITS`: to fit clusters, to validate, to train on, or unused.

    Hashes decide, so the splits are disjoint on any number of machines without a shuffle
    (Sec. 3.1 keeps 20M of 270M posts for the clusters alone). A smaller `train_fraction` takes a subset of what
    a larger one takes, and leaves the other splits as they are (Fig. 4: 123k, 308k, 615k and 1.23M posts).
    """
    drawn = _uniform(post_id, salt, b"split")
    if drawn < cluster_fraction:
        return "cluster"
    if drawn < cluster_fraction + validation_fraction:
        return "validation"
    return "train" if train_fraction == 1 or _uniform(post_id, salt, b"subset") < train_fraction else "unused"


def _uniform(post_id: str, salt: bytes, purpose: bytes) -> float:
    return int.from_bytes(digest(post_id, salt, purpose)[:6], "big") / 2**48


class Excluded(NamedTuple):
    """An exclusion list.

    Attributes:
        posts: hashes of post ids.
        images: perceptual hashes, 64 bits, each with its salted digest.
    """

    posts: frozenset[bytes] = frozenset()
    images: tuple[tuple[int, str], ...] = ()


def image_line(image_hash: int) -> str:
    """Return the line of an exclusion list that stands for an image and its near-duplicates."""
    return f"image:{image_hash:016x}"


def read_ids(path: Path) -> list[str]:
    """Return the post ids of an exclusion list.

    Raises:
        UserError: as `read_excluded`.
    """
    return [line for line in _read_lines(path) if not _IMAGE_LINE.fullmatch(line)]


def _read_lines(path: Path) -> list[str]:
    try:
        with artifact.explained(path):
            content = path.read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        lines = [line for line in text.split("\n") if line]
        # Only quotes and a .csv suffix say that a comma separates columns: ids may hold commas.
        table = path.suffix.lower() == ".csv"
        ids = [next(csv.reader([line]))[0] if table or line.startswith('"') else line for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"--exclude={path} can't be read ({error}): give a text file with one post id per line."
        ) from error
    if not any(ids):
        raise UserError(f"--exclude={path} holds no post id: give a text file with one post id per line.")
    return [post_id for post_id in ids if post_id]


def read_excluded(path: Path | None, salt: bytes) -> Excluded:
    """Read an exclusion list.

    It is a text file with a post id or an `image_line` per line, or a CSV file with these in its first column. A
    byte-order mark, quotes and empty lines are ignored.

    Args:
        path: the file; None for an empty list.
        salt: of the hashes.

    Raises:
        UserError: the file can't be read, isn't UTF-8, or is empty.
    """
    posts, images = set(), {}
    for line in _read_lines(path) if path else ():
        if match := _IMAGE_LINE.fullmatch(line):
            images[int(match[1], 16)] = digest(match[1], salt, b"image").hex()
        else:
            posts.add(hash_id(line, salt))
    return Excluded(frozenset(posts), tuple(sorted(images.items())))


def exclusion_check(excluded: Excluded) -> str:
    """Return a fingerprint of an exclusion list."""
    posts = sorted(post_id.decode() for post_id in excluded.posts)
    return artifact.fingerprint([posts, sorted(name for _, name in excluded.images)] if excluded.images else posts)


def count_unmatched(exclude: Path | None, excluded: Excluded, posts: int, images: Collection[str] = ()) -> int:
    """Return the number of ids and images of the exclusion list that no post has.

    Args:
        exclude: the list, for the message.
        excluded: what it holds.
        posts: number of posts whose ids it holds.
        images: digests of the images that posts have.

    Raises:
        UserError: none of them matches a post.
    """
    entries = len(excluded.posts) + len(excluded.images)
    if entries and not posts and not images:
        raise UserError(
            f"None of the {entries:,} ids in --exclude={exclude} is that of a post: give one post id per line, "
            "as in the posts files."
        )
    return max(len(excluded.posts) - posts, 0) + len({name for _, name in excluded.images} - {*images})
