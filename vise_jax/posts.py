"""Posts: their schema, readers that stream them, and the reject_log of those that were rejected.

A post is a line of JSONL (`.jsonl`, `.jsonl.gz`) or a row of Parquet:

    {"post_id": str, "image": path relative to the posts file or null, "comments": [str] or null,
     "reactions": {"haha": int, "sorry": int, "angry": int, "wow": int, "love": int} or null}

A Parquet file may hold the image itself in a column `image_bytes`.
"""

import contextlib
import glob
import gzip
import hashlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn

from vise_jax import artifact
from vise_jax.errors import UserError

# In the order of a post's reaction counts and of phi_R's five dimensions.
REACTIONS = ("haha", "sorry", "angry", "wow", "love")

# Reasons that say nothing bad about the input: they don't count toward `labels.max_rejected_fraction`.
HARMLESS = frozenset({"no_image", "no_label"})

MAX_COMMENT_CHARACTERS = 10_000
MAX_POST_ID_CHARACTERS = 1_000
MAX_REACTION_COUNT = 10**12
# Longer lines are skipped unread, so that one can't fill the memory.
MAX_LINE_BYTES = 64 * 2**20

# Rejected posts named for each reason; beyond that they are only counted.
MAX_NAMED = 1_000
_POSTS_BEFORE_FIRST_CHECK = 1_000
_PARQUET_ROWS = 256
_BLOCK_BYTES = 2**20
_PARQUET_NEEDS = ("post_id", "comments", "reactions")


class Place(NamedTuple):
    """A place between two posts of a file.

    Attributes:
        offset: bytes before it, unpacked; of a Parquet file rows.
        line: lines or rows before it.
    """

    offset: int = 0
    line: int = 0


BEGINNING = Place()


@dataclass(frozen=True, slots=True)
class Post:
    """One post, checked.

    Attributes:
        post_id: not empty.
        image: path of the image relative to the folder of `source`, as written.
        image_bytes: the image file itself, instead of `image`.
        comments: valid Unicode, each at most `MAX_COMMENT_CHARACTERS` long.
        reactions: five counts in the order of `REACTIONS`.
        source: the file it was read from.
        line: its line or row there, from 1.
        behind: the place where reading goes on after it.
    """

    post_id: str
    image: str | None = None
    image_bytes: bytes | None = None
    comments: tuple[str, ...] = ()
    reactions: tuple[int, ...] | None = None
    source: Path = Path()
    line: int = 0
    behind: Place = BEGINNING


class BadPost(Exception):
    """A record that is no post; `reason` says why, as a word for the reject_log."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class RejectLog:
    """Counts what became of the posts of one input and names the rejected ones: where they stand, never what they say.

    Args:
        source: the posts file, for messages.
        max_rejected_fraction: the share of bad posts above which reading on makes no sense.
    """

    def __init__(self, source: Path | str = "", max_rejected_fraction: float = 1.0):
        self.source = source
        self.max_rejected_fraction = max_rejected_fraction
        self.posts = 0
        self.rejected: Counter[str] = Counter()
        self.named: list[dict[str, Any]] = []
        # What was mended in posts that were kept, e.g. `comment_cut`.
        self.notes: Counter[str] = Counter()

    def reject(self, line: int, reason: str) -> None:
        """Count a rejected post; the first thousand of each reason are named."""
        self.rejected[reason] += 1
        if self.rejected[reason] <= MAX_NAMED:
            self.named.append({"file": Path(self.source).name, "line": line, "reason": reason})

    def check(self) -> None:
        """Stop when too many posts are bad.

        Raises:
            UserError: their share is above `max_rejected_fraction`; names the file and the counts.
        """
        bad = {reason: count for reason, count in self.rejected.items() if reason not in HARMLESS}
        if sum(bad.values()) > self.max_rejected_fraction * self.posts:
            raise UserError(
                f"{self.source}: {sum(bad.values()):,} of {self.posts:,} posts are bad ({summary(bad)}), more than "
                f"labels.max_rejected_fraction={self.max_rejected_fraction} allows: mend the file, or raise that key."
            )


def summary(counts: Mapping[str, int]) -> str:
    """Counts by reason in one phrase, the largest first, e.g. `image_missing 3, malformed_json 1`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered) or "none"


def expand(patterns: str) -> list[Path]:
    """Find the files that comma-separated glob patterns match, sorted, each once.

    Raises:
        UserError: a pattern matches no file.
    """
    found: set[Path] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = {Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()}
        if not matches:
            raise UserError(f"No posts file matches {pattern!r}: give a .jsonl, .jsonl.gz or .parquet file, or a glob.")
        found |= matches
    if not found:
        raise UserError("The pattern of posts files is empty: give a .jsonl, .jsonl.gz or .parquet file, or a glob.")
    return sorted(found)


def parse(record: Any) -> Post:
    """Check one record against the schema.

    Missing or null `image`, `comments` and `reactions` are fine, and so is a reaction that is left out (0).
    Lone surrogates in comments become U+FFFD; comments longer than `MAX_COMMENT_CHARACTERS` are cut.

    Raises:
        BadPost: `not_an_object`, `bad_post_id`, `bad_image_path`, `image_path_leaves_folder`, `bad_image_bytes`,
            `comments_not_strings`, `reactions_not_an_object`, `unknown_reaction` or `bad_reaction_count`.
    """
    if not isinstance(record, Mapping):
        raise BadPost("not_an_object")
    post_id = record.get("post_id")
    if not isinstance(post_id, str) or not 0 < len(post_id) <= MAX_POST_ID_CHARACTERS or not _encodable(post_id):
        raise BadPost("bad_post_id")
    image_bytes = record.get("image_bytes")
    if not isinstance(image_bytes, bytes | None):
        raise BadPost("bad_image_bytes")
    return Post(
        post_id=post_id,
        image=_image(record.get("image")),
        image_bytes=image_bytes,
        comments=_comments(record.get("comments")),
        reactions=_reactions(record.get("reactions")),
    )


def _image(image: Any) -> str | None:
    if image is None:
        return None
    if not isinstance(image, str) or not image or "\0" in image or not _encodable(image):
        raise BadPost("bad_image_path")
    path = PurePosixPath(image)
    if path.is_absolute() or ".." in path.parts:
        raise BadPost("image_path_leaves_folder")
    return image


def _comments(comments: Any) -> tuple[str, ...]:
    if comments is None:
        return ()
    if not isinstance(comments, list | tuple) or not all(isinstance(comment, str) for comment in comments):
        raise BadPost("comments_not_strings")
    cut = (comment[:MAX_COMMENT_CHARACTERS] for comment in comments)
    return tuple(
        comment if _encodable(comment) else comment.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for comment in cut
    )


def _reactions(reactions: Any) -> tuple[int, ...] | None:
    if reactions is None:
        return None
    if not isinstance(reactions, Mapping):
        raise BadPost("reactions_not_an_object")
    if not reactions.keys() <= set(REACTIONS):
        raise BadPost("unknown_reaction")
    return tuple(_count(reactions.get(name)) for name in REACTIONS)


def _count(value: Any) -> int:
    if value is None:
        return 0
    # Tools that know no integers with gaps write 3.0; true is an int to Python and a mistake to everyone else.
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value <= MAX_REACTION_COUNT:
        raise BadPost("bad_reaction_count")
    return int(value)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read(path: Path, reject_log: RejectLog, start: Place = BEGINNING, end: int | None = None) -> Iterator[Post]:
    """Stream the posts of one file; bad ones go to the reject_log, which stops the reading when they are too many.

    Nothing is read ahead: what the reject_log has counted stands before the place behind the last post.

    Args:
        path: `.jsonl`, `.jsonl.gz` or `.parquet`.
        reject_log: of this file.
        start: the place where reading starts, at the beginning of a line or row.
        end: posts that start at this offset or behind it are not read.

    Raises:
        UserError: the file is missing, of another kind, truncated or corrupt, or holds too many bad posts.
    """
    for record, behind in _records(Path(path), start, end):
        reject_log.posts += 1
        if isinstance(record, BadPost):
            reject_log.reject(behind.line, record.reason)
        else:
            try:
                post = parse(record)
            except BadPost as bad:
                reject_log.reject(behind.line, bad.reason)
            else:
                if cut := sum(len(comment) > MAX_COMMENT_CHARACTERS for comment in record.get("comments") or ()):
                    reject_log.notes["comment_cut"] += cut
                yield replace(post, source=Path(path), line=behind.line, behind=behind)
        if reject_log.posts >= _POSTS_BEFORE_FIRST_CHECK:
            reject_log.check()
    reject_log.check()


def _records(path: Path, start: Place, end: int | None) -> Iterator[tuple[Any, Place]]:
    """Decoded JSON, or why there is none, and the place behind it."""
    open_by_suffix: dict[str, Callable[[], Iterable[tuple[Any, Place]]]] = {
        ".jsonl": lambda: _json_records(path, open, start, end),
        ".jsonl.gz": lambda: _json_records(path, gzip.open, start, end),
        ".parquet": lambda: _parquet_records(path, start, end),
    }
    for suffix, records in open_by_suffix.items():
        if path.name.endswith(suffix):
            try:
                yield from records()
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise UserError(f"{path} is a truncated or corrupt gzip file ({error}): copy it again.") from error
            except OSError as error:
                raise UserError(f"{path} can't be read ({error.strerror or error}): check the file.") from error
            return
    raise UserError(f"{path} is no posts file by its name: it has to end in {', '.join(open_by_suffix)}.")


def _json_records(
    path: Path, open_file: Callable[..., Any], start: Place, end: int | None
) -> Iterator[tuple[Any, Place]]:
    with open_file(path, "rb") as file:
        file.seek(start.offset)
        offset, number = start
        while (end is None or offset < end) and (raw := file.readline(MAX_LINE_BYTES)):
            number += 1
            offset += len(raw)
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                while rest := file.readline(MAX_LINE_BYTES):
                    offset += len(rest)
                    if rest.endswith(b"\n"):
                        break
                yield BadPost("line_too_long"), Place(offset, number)
                continue
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if raw.strip():
                yield _decode(raw), Place(offset, number)


def _decode(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        return BadPost("invalid_utf8")
    # Deep nesting exhausts the stack; an integer of thousands of digits is a ValueError, as bad syntax is.
    except (ValueError, RecursionError):
        return BadPost("malformed_json")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parquet_records(path: Path, start: Place, end: int | None) -> Iterator[tuple[Any, Place]]:
    with _parquet_file(path) as file:
        wanted = [name for name in (*_PARQUET_NEEDS, "image", "image_bytes") if name in file.schema_arrow.names]
        groups = _row_groups(file)
        kept = [group for group in range(file.num_row_groups) if groups[group + 1] > start.line]
        if end is not None:
            kept = [group for group in kept if groups[group] < end]
        number = groups[kept[0]] if kept else 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=kept, columns=wanted):
            for row in range(batch.num_rows):
                number += 1
                if number > start.line and (end is None or number <= end):
                    yield _parquet_row(batch.slice(row, 1)), Place(number, number)


def _row_groups(file: Any) -> list[int]:
    """The rows before each row group, and all rows."""
    sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
    return [0, *itertools.accumulate(sizes)]


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            missing = [name for name in _PARQUET_NEEDS if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path} has no column {missing[0]}: a posts file has {', '.join(_PARQUET_NEEDS)}.")
            yield file
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} can't be read as Parquet ({str(error).splitlines()[0]}): write it again.") from error


def _parquet_row(row: Any) -> Any:
    try:
        record = row.to_pylist()[0]
        # A map column comes as pairs.
        if isinstance(record["reactions"], list):
            record["reactions"] = dict(record["reactions"])
    except UnicodeDecodeError:
        return BadPost("invalid_utf8")
    except (TypeError, ValueError):
        return BadPost("reactions_not_an_object")
    return record


def parts(path: Path, part_bytes: float) -> tuple[str, list[tuple[Place, int | None]]]:
    """Cut a posts file into parts that can be read by themselves.

    A `.jsonl` is cut at line ends, a `.parquet` between row groups (by their unpacked size), a `.jsonl.gz` not at all.

    Args:
        path: the file.
        part_bytes: a part ends where it has grown to so many bytes.

    Returns:
        SHA-256 (hex) of the file, and `start` and `end` of each part, as `read` takes them.

    Raises:
        UserError: the file can't be read.
    """
    try:
        if path.name.endswith(".jsonl"):
            return _line_parts(path, part_bytes)
        sha256 = artifact.file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): check the file.") from error
    if not path.name.endswith(".parquet"):
        return sha256, [(BEGINNING, None)]
    with _parquet_file(path) as file:
        rows, starts, size = _row_groups(file), [0], 0
        for group in range(file.num_row_groups):
            if size >= part_bytes:
                starts.append(rows[group])
                size = 0
            size += file.metadata.row_group(group).total_byte_size
    return sha256, [(Place(first, first), end) for first, end in itertools.pairwise([*starts, rows[-1]])]


def _line_parts(path: Path, part_bytes: float) -> tuple[str, list[tuple[Place, int | None]]]:
    digest, starts = hashlib.sha256(), [BEGINNING]
    offset = lines = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            while True:
                newline = block.find(b"\n", max(0, int(starts[-1].offset + part_bytes) - 1 - offset))
                if newline < 0:
                    break
                starts.append(Place(offset + newline + 1, lines + block.count(b"\n", 0, newline + 1)))
            lines += block.count(b"\n")
            offset += len(block)
    kept = [start for start in starts if start.offset < offset] or [BEGINNING]
    ends = [start.offset for start in kept[1:]]
    return digest.hexdigest(), list(zip(kept, [*ends, offset], strict=True))
