"""Posts: their schema, readers that stream them, and the ledger of those that were rejected.

A post is a line of JSONL (`.jsonl`, `.jsonl.gz`) or a row of Parquet:

    {"post_id": str, "image": path relative to the posts file or null, "comments": [str] or null,
     "reactions": {"haha": int, "sorry": int, "angry": int, "wow": int, "love": int} or null}

A Parquet file may hold the image itself in a column `image_bytes`.
"""

import glob
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from vise_jax.errors import UserError

# In the order of a post's reaction counts and of phi_R's five dimensions.
REACTIONS = ("haha", "sorry", "angry", "wow", "love")

# Reasons that say nothing bad about the input: they don't count towards `labels.max_rejected_share`.
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
_PARQUET_NEEDS = ("post_id", "comments", "reactions")


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
    """

    post_id: str
    image: str | None = None
    image_bytes: bytes | None = None
    comments: tuple[str, ...] = ()
    reactions: tuple[int, ...] | None = None
    source: Path = Path()
    line: int = 0


class BadPost(Exception):
    """A record that is no post; `reason` says why, as a word for the ledger."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Ledger:
    """Counts what became of the posts of one input and names the rejected ones: where they stand, never what they say.

    Args:
        source: the posts file, for messages.
        max_rejected_share: the share of bad posts above which reading on makes no sense.
    """

    def __init__(self, source: Path | str = "", max_rejected_share: float = 1.0):
        self.source = source
        self.max_rejected_share = max_rejected_share
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
            UserError: their share is above `max_rejected_share`; names the file and the counts.
        """
        bad = {reason: count for reason, count in self.rejected.items() if reason not in HARMLESS}
        if sum(bad.values()) > self.max_rejected_share * self.posts:
            raise UserError(
                f"{self.source}: {sum(bad.values()):,} of {self.posts:,} posts are bad ({summary(bad)}), more than "
                f"labels.max_rejected_share={self.max_rejected_share} allows: mend the file, or raise that key."
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


def read(path: Path, ledger: Ledger) -> Iterator[Post]:
    """Stream the posts of one file; bad ones go to the ledger, which stops the reading when they are too many.

    Raises:
        UserError: the file is missing, of another kind, truncated or corrupt, or holds too many bad posts.
    """
    for line, record in _records(Path(path)):
        ledger.posts += 1
        if isinstance(record, BadPost):
            ledger.reject(line, record.reason)
        else:
            try:
                post = parse(record)
            except BadPost as bad:
                ledger.reject(line, bad.reason)
            else:
                if cut := sum(len(comment) > MAX_COMMENT_CHARACTERS for comment in record.get("comments") or ()):
                    ledger.notes["comment_cut"] += cut
                yield replace(post, source=Path(path), line=line)
        if ledger.posts >= _POSTS_BEFORE_FIRST_CHECK:
            ledger.check()
    ledger.check()


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and what stands there: decoded JSON, or why there is none."""
    open_by_suffix: dict[str, Callable[[], Iterable[tuple[int, Any]]]] = {
        ".jsonl": lambda: _json_records(path, open),
        ".jsonl.gz": lambda: _json_records(path, gzip.open),
        ".parquet": lambda: _parquet_records(path),
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


def _json_records(path: Path, open_file: Callable[..., Any]) -> Iterator[tuple[int, Any]]:
    with open_file(path, "rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES):
            number += 1
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield number, BadPost("line_too_long")
                continue
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if raw.strip():
                yield number, _decode(raw)


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


def _parquet_records(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = set(file.schema_arrow.names)
            missing = [name for name in _PARQUET_NEEDS if name not in columns]
            if missing:
                raise UserError(f"{path} has no column {missing[0]}: a posts file has {', '.join(_PARQUET_NEEDS)}.")
            wanted = [name for name in (*_PARQUET_NEEDS, "image", "image_bytes") if name in columns]
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                for row in range(batch.num_rows):
                    number += 1
                    yield number, _parquet_row(batch.slice(row, 1))
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
