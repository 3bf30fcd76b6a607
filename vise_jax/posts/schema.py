"""The schema of a post.

A post is a line of JSONL or a row of Parquet:

    {"post_id": str, "image": path relative to the posts file or null, "comments": [str] or null,
     "reactions": {"haha": int, "sorry": int, "angry": int, "wow": int, "love": int} or null}

Other buttons than the paper's five are a setting (`Buttons`). A Parquet file may hold the image itself, in a column
`image_bytes` or as Hugging Face's datasets do, in `image`, a struct of `bytes` and `path`.
"""

import decimal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# The paper's buttons, in the order of phi_R's dimensions.
REACTIONS = ("haha", "sorry", "angry", "wow", "love")
# Other names of buttons.
_SYNONYMS = {"sad": "sorry", "anger": "angry"}
# Buttons of the paper's network. A vocabulary that has none of their names leaves them out.
_KNOWN_BUTTONS = frozenset({*REACTIONS, "like", "care", "thankful", "pride", "none"})

MAX_POST_ID_CHARACTERS = 1_000
MAX_REACTION_COUNT = 10**12


class Cursor(NamedTuple):
    """A position between two posts of a file.

    Attributes:
        offset: unpacked bytes before it; in a Parquet file, rows.
        line: lines or rows before it.
    """

    offset: int = 0
    line: int = 0


BEGINNING = Cursor()


class Buttons(NamedTuple):
    """The reaction buttons that posts are read for.

    `sad` and `anger` count as `sorry` and `angry`, unless they are names themselves.

    Attributes:
        names: of the buttons, `normalized`, in the order of a post's counts.
        others: what happens to a post with a button that is neither among `names` nor one of the paper's network:
            "reject" it, or "ignore" that button.
    """

    names: tuple[str, ...] = REACTIONS
    others: str = "reject"

    @staticmethod
    def normalized(name: str) -> str:
        """Return a name in lower case, without the variation selectors that distinguish equal emoji."""
        return name.strip().lower().replace("\ufe0f", "")


THE_PAPERS = Buttons()


class Limits(NamedTuple):
    """Bounds of what is read; see the config keys of `labels`.

    Attributes:
        line_bytes: longer lines, and members of tar files, are skipped unread, so that one can't fill the memory.
        comment_characters: longer comments are cut.
        comments: of a post; those beyond are left out.
    """

    line_bytes: int = 64 * 2**20
    comment_characters: int = 10_000
    comments: int = 100_000


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Post:
    """A post that satisfies the schema.

    Attributes:
        post_id: not empty.
        image: path of the image relative to the directory of `source`, as written.
        image_bytes: the encoded image, instead of `image`.
        comments: valid Unicode, each of at most `Limits.comment_characters`.
        reactions: counts in the order of the buttons that the post was read for.
        source: the posts file.
        line: line or row in `source`, from 1.
        after: the cursor after this post, where reading resumes.
    """

    post_id: str
    image: str | None = None
    image_bytes: bytes | None = None
    comments: tuple[str, ...] = ()
    reactions: tuple[int, ...] | None = None
    source: Path = Path()
    line: int = 0
    after: Cursor = BEGINNING


class BadPost(Exception):
    """A record that breaks the schema; `reason` is a short word for the reject log."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def parse(
    record: object, mended: Counter[str] | None = None, buttons: Buttons = THE_PAPERS, limits: Limits = LIMITS
) -> Post:
    """Check a record against the schema, and mend values with one obvious reading.

    `image`, `comments`, `reactions` and single reactions may be missing or null. Integer post ids become text, an empty
    image path means no image, null comments are dropped, `{"data": [{"message": str}]}` is read as comments, buttons
    outside the vocabulary are ignored or reject the post (see `Buttons`), whole counts may be text, float or Decimal,
    lone surrogates become U+FFFD, and long comments and long lists of them are cut.

    Args:
        record: a decoded JSON value or Parquet row.
        mended: counts mended values, by kind.
        buttons: to count.
        limits: of the comments.

    Raises:
        BadPost: the reason names the field and the type of its value, e.g. `comments_str`.
    """
    mended = Counter() if mended is None else mended
    if not isinstance(record, Mapping):
        raise BadPost(f"post_{_kind(record)}")
    image, image_bytes = record.get("image"), record.get("image_bytes")
    if isinstance(image, Mapping):
        # An image column of Hugging Face's datasets.
        image, image_bytes = (None, image["bytes"]) if image.get("bytes") else (image.get("path"), image_bytes)
    if not isinstance(image_bytes, bytes | None):
        raise BadPost(f"image_bytes_{_kind(image_bytes)}")
    notes: Counter[str] = Counter()
    post = Post(
        post_id=_post_id(record.get("post_id"), notes),
        image=_image(image, notes),
        image_bytes=image_bytes,
        comments=_comments(record.get("comments"), limits, notes),
        reactions=_reactions(record.get("reactions"), buttons, notes),
    )
    mended.update(notes)
    return post


def _kind(value: object) -> str:
    """Return the JSON name of a value's type."""
    names = {dict: "object", list: "array", tuple: "array", str: "text", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float | decimal.Decimal) else "bytes")


def _post_id(value: object, mended: Counter[str]) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        mended["mended_post_id_number"] += 1
        value = str(value)
    if not isinstance(value, str):
        raise BadPost(f"post_id_{_kind(value)}")
    if not value:
        raise BadPost("post_id_empty")
    if len(value) > MAX_POST_ID_CHARACTERS:
        raise BadPost("post_id_too_long")
    if not _encodable(value):
        raise BadPost("post_id_not_unicode")
    return value


def _image(image: object, mended: Counter[str]) -> str | None:
    if image == "":
        mended["mended_image_empty"] += 1
        return None
    if image is None:
        return None
    if not isinstance(image, str):
        raise BadPost(f"image_{_kind(image)}")
    if "\0" in image or not _encodable(image):
        raise BadPost("image_path_not_unicode")
    path = PurePosixPath(image)
    if path.is_absolute() or ".." in path.parts:
        raise BadPost("image_path_leaves_folder")
    return image


def _comments(comments: object, limits: Limits, mended: Counter[str]) -> tuple[str, ...]:
    if comments is None:
        return ()
    if isinstance(comments, Mapping) and isinstance(comments.get("data"), list):
        # The Graph API's page of comments.
        comments = [entry.get("message") if isinstance(entry, Mapping) else entry for entry in comments["data"]]
        mended["mended_comments_data"] += 1
    if not isinstance(comments, list | tuple):
        raise BadPost(f"comments_{_kind(comments)}")
    if len(comments) > limits.comments:
        mended["comments_left_out"] += len(comments) - limits.comments
    texts = []
    for comment in comments[: limits.comments]:
        if comment is None:
            mended["mended_comment_null"] += 1
        elif isinstance(comment, str):
            texts.append(comment)
        else:
            raise BadPost(f"comment_{_kind(comment)}")
    if cut := sum(len(text) > limits.comment_characters for text in texts):
        mended["comment_cut"] += cut
    return tuple(
        text if _encodable(text) else without_surrogates(text)
        for text in (text[: limits.comment_characters] for text in texts)
    )


def _reactions(reactions: object, buttons: Buttons, mended: Counter[str]) -> tuple[int, ...] | None:
    if reactions is None:
        return None
    if not isinstance(reactions, Mapping):
        raise BadPost(f"reactions_{_kind(reactions)}")
    counts = dict.fromkeys(buttons.names, 0)
    for name, value in reactions.items():
        button = Buttons.normalized(str(name))
        button = button if button in counts else _SYNONYMS.get(button, button)
        if button in counts:
            if button != name:
                mended["mended_reaction_name"] += 1
            counts[button] += _count(value, mended)
        elif button in _KNOWN_BUTTONS or buttons.others == "ignore":
            mended["mended_reaction_ignored"] += 1
        else:
            raise BadPost("reaction_unknown")
    return tuple(counts.values())


def _count(value: object, mended: Counter[str]) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float | str | decimal.Decimal):
        raise BadPost(f"reaction_{_kind(value)}")
    try:
        count = int(value) if isinstance(value, int | str) else whole_number(value)
    except (ValueError, OverflowError):
        raise BadPost(f"reaction_{_kind(value)}") from None
    if not 0 <= count <= MAX_REACTION_COUNT:
        raise BadPost("reaction_out_of_range")
    if isinstance(value, str):
        mended["mended_reaction_text"] += 1
    return count


def whole_number(value: float | decimal.Decimal) -> int:
    """Convert 3.0 to 3.

    Raises:
        ValueError: the value is not a whole number.
    """
    if value != (count := int(value)):
        raise ValueError(value)
    return count


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 can't express, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
