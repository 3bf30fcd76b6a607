"""The kinds of exports: each turns a record into rows, by the source's public documentation.

CrowdTangle: the CSV of its historical data (https://help.crowdtangle.com/en/articles/3213537-crowdtangle-codebook).

Reddit: objects of the API, one per line, as in Pushshift's dumps (https://www.reddit.com/dev/api).

Fediverse: Mastodon's `Status` (https://docs.joinmastodon.org/entities/Status/), with Pleroma's and glitch-soc's emoji
reactions, and Misskey's `Note` (https://misskey-hub.net/en/docs/for-developers/api/).

Bluesky: `app.bsky.feed.defs#postView` and `#feedViewPost`, and Jetstream's commits of `app.bsky.feed.post` and
`app.bsky.feed.like` (https://docs.bsky.app/docs/api/app-bsky-feed-get-posts).
"""

import hashlib
import html
import html.parser
import re
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from vise_jax.errors import UserError
from vise_jax.importing.rows import Clicks, Comment, Photo, Row
from vise_jax.posts import BadPost
from vise_jax.posts.schema import MAX_REACTION_COUNT, whole_number

Record = Mapping[str, Any]
# Rows of a record; none where it is of no interest.
Reader = Callable[[Record], list[Row]]


@dataclass(frozen=True)
class Kind:
    """A kind of export.

    Attributes:
        title: shown by `--help`.
        read: rows of a record; raises `BadPost` with the reason to reject it.
        columns: that a table must have.
    """

    title: str
    read: Reader
    columns: tuple[str, ...] = ()


# Buttons by column of CrowdTangle. Exports of before 2020 have no "Care".
_CROWDTANGLE = {"Likes": "like"} | {name: name.lower() for name in ("Love", "Wow", "Haha", "Sad", "Angry", "Care")}
_CROWDTANGLE_IMAGES = ("Photo", "photo")
_REDDIT_DELETED = frozenset({"", "[deleted]", "[removed]", "[removed by reddit]"})
# Misskey's mentions, in plain text: @name and @name@host.
_MENTION = re.compile(r"(?<![\w@/.])@[\w-]+(?:@[\w.-]*\w)?")
# A count in text: with separators of thousands, or as tables write integers of a column with gaps.
_GROUPED, _WHOLE = re.compile(r"[1-9]\d{0,2}(?:[,. '\u00a0\u202f]\d{3})+"), re.compile(r"(\d+)(?:\.0+)?")
# Values of a text column that mean false.
_NO = frozenset({"", "0", "0.0", "false", "f", "no", "n"})
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def crowdtangle(record: Record) -> list[Row]:
    """Return the rows of a line of CrowdTangle's CSV. The message, which is the page's own, is the only comment."""
    kind = record.get("Type")
    if kind and kind not in _CROWDTANGLE_IMAGES:
        return []
    post_id = _of_address(str(record.get("URL") or ""))
    rows: list[Row] = [Photo(post_id, names=(post_id,))]
    if message := record.get("Message"):
        rows.append(Comment(post_id, "", _text(message)))
    rows += [
        Clicks(post_id, button, "", count)
        for column, button in _CROWDTANGLE.items()
        if (count := _count(record.get(column)))
    ]
    return rows


def reddit(record: Record) -> list[Row]:
    """Return the rows of a submission with an image, or of a comment.

    Comments that were deleted, are by a bot (AutoModerator, or a name that ends in "bot") or pinned by moderators are
    dropped. A score is no number of clicks and is not read.
    """
    if "link_id" in record:
        return _reddit_comment(record)
    name = _id(record, "id")
    address = str(record.get("url") or "")
    is_image = record.get("post_hint") == "image" or _parts(address).path.lower().endswith(_IMAGE_ENDINGS)
    if not is_image or record.get("is_self"):
        return []
    return [Photo(f"t3_{name}", names=(name, f"t3_{name}"), sensitive=bool(record.get("over_18")))]


def _reddit_comment(record: Record) -> list[Row]:
    author = str(record.get("author") or "").lower()
    body = _text(record.get("body") or "")
    if body.strip().lower().replace("[ ", "[").replace(" ]", "]") in _REDDIT_DELETED:
        raise BadPost("comment_deleted")
    if author == "automoderator" or author.endswith("bot"):
        raise BadPost("comment_of_bot")
    if record.get("stickied"):
        raise BadPost("comment_pinned")
    key = f"{_count(record.get('created_utc')):012d} {_id(record, 'id')}"
    return [Comment(_id(record, "link_id"), key, html.unescape(body))]


def fediverse(record: Record) -> list[Row]:
    """Return the rows of a Mastodon status or a Misskey note.

    A reply is a comment of the photo above it in the thread. Favourites are the button "favourite", emoji reactions are
    buttons by their emoji, or by their name for custom ones.
    """
    if isinstance(record.get("reblog"), Mapping):
        record = record["reblog"]
    post_id = _id(record, "id")
    rows: list[Row] = []
    parent = record.get("in_reply_to_id") or record.get("replyId")
    if parent:
        content = record.get("content")
        text = _MENTION.sub("", _text(record.get("text") or "")) if content is None else without_tags(_text(content))
        if text.strip():
            key = f"{record.get('created_at') or record.get('createdAt')} {post_id}"
            rows.append(Comment(str(parent), key, text, post_id))
    media = [*_list(record.get("media_attachments")), *_list(record.get("files"))]
    pictures = [one for one in media if str(one.get("type")).split("/")[0] == "image"]
    if pictures:
        warned = record.get("sensitive") or record.get("spoiler_text") or record.get("cw")
        hidden = warned or any(one.get("isSensitive") for one in pictures)
        names = tuple(str(one["id"]) for one in pictures[:1] if "id" in one)
        rows.append(Photo(post_id, names=(*names, post_id), sensitive=bool(hidden)))
        rows += [Clicks(post_id, button, "", count) for button, count in _fediverse_clicks(record).items()]
    return rows


def _fediverse_clicks(record: Record) -> Counter[str]:
    favourites = Counter({"favourite": _count(record.get("favourites_count"))})
    # Both fields may report the same clicks: take the larger count.
    return favourites | _emoji(record.get("reactions")) | _emoji(_mapping(record.get("pleroma")).get("emoji_reactions"))


def _emoji(reactions: Any) -> Counter[str]:
    """Return clicks by emoji, of a mapping or of a list of named counts.

    The same custom emoji of several servers, `:name@host:` or `:name:`, is one button.
    """
    named = [(str(one.get("name")), one.get("count")) for one in _list(reactions)]
    clicks: Counter[str] = Counter()
    for name, count in [*named, *_mapping(reactions).items()]:
        clicks[name.strip(":").split("@")[0] if name.startswith(":") else name] += _count(count)
    return clicks


def bluesky(record: Record) -> list[Row]:
    """Return the rows of a post, a reply or a like. An image is looked for by its CID."""
    commit = record.get("commit")
    if isinstance(commit, Mapping):
        return _jetstream(record, commit)
    view = _mapping(record.get("post")) or record
    post_id, content = _id(view, "uri"), view.get("record")
    if not isinstance(content, Mapping):
        raise BadPost("record_missing")
    rows = _bluesky_post(post_id, content)
    if any(isinstance(row, Photo) for row in rows) and (likes := _count(view.get("likeCount"))):
        rows.append(Clicks(post_id, "like", "", likes))
    return rows


def _jetstream(record: Record, commit: Record) -> list[Row]:
    content = commit.get("record")
    if commit.get("operation") not in (None, "create") or not isinstance(content, Mapping):
        return []
    collection = str(commit.get("collection"))
    own = f"at://{record.get('did')}/{collection}/{commit.get('rkey')}"
    if collection == "app.bsky.feed.like":
        # A digest distinguishes likes without naming the user.
        return [Clicks(_id(_mapping(content.get("subject")), "uri"), "like", _digest(own), 1)]
    return _bluesky_post(own, content) if collection == "app.bsky.feed.post" else []


def _bluesky_post(post_id: str, content: Record) -> list[Row]:
    rows: list[Row] = []
    if reply := content.get("reply"):
        root, text = _id(_mapping(_mapping(reply).get("root")), "uri"), _text(content.get("text") or "")
        if text.strip():
            rows.append(Comment(root, f"{content.get('createdAt')} {_digest(post_id)}", text))
    embed = _mapping(content.get("embed"))
    images = _list(_mapping(embed.get("media", embed)).get("images"))
    links = [_mapping(_mapping(one.get("image")).get("ref")).get("$link") for one in images]
    if images:
        labels = _list(_mapping(content.get("labels")).get("values"))
        rows.append(Photo(post_id, names=tuple(map(str, filter(None, links[:1]))), sensitive=bool(labels)))
    return rows


def of_table(fields: Mapping[str, str]) -> Kind:
    """Return the kind of a table.

    Args:
        fields: where a post's fields are in a record: `post_id` and, optionally, `image`, `sensitive`, `comments` and
            `reactions.NAME`. A place is a name, names joined by dots, and `[]` after a name for all elements of a list.

    Raises:
        UserError: an unknown field, or no `post_id`.
    """
    for field in fields:
        if field not in ("post_id", "image", "sensitive", "comments") and not re.fullmatch(r"reactions\..+", field):
            raise UserError(
                f"--map has no field {field!r}: choose from post_id, image, sensitive, comments, reactions.NAME."
            )
    if "post_id" not in fields:
        raise UserError("--map has no post_id: give it the name of the field that identifies a post.")

    return Kind("a table", lambda record: _of_table(fields, record), tuple(dict.fromkeys(fields.values())))


def _of_table(fields: Mapping[str, str], record: Record) -> list[Row]:
    found = {field: _at(record, place) for field, place in fields.items()}
    if len(found["post_id"]) != 1 or found["post_id"][0] == "":
        raise BadPost("post_id_missing")
    post_id = str(found["post_id"][0])
    image, hidden = (next(iter(found.get(field, ())), None) for field in ("image", "sensitive"))
    if isinstance(image, Mapping):  # a column of images of Hugging Face's datasets
        image = image.get("path")
    if not isinstance(image, str | int | None):
        raise BadPost("image_no_path")
    is_hidden = hidden.strip().lower() not in _NO if isinstance(hidden, str) else bool(hidden)
    rows: list[Row] = [Photo(post_id, str(image or ""), (post_id,), sensitive=is_hidden)]
    for number, value in enumerate(found.get("comments", ())):
        text = _text(value)
        # A table can have a row for each comment: only the same text at the same place is there twice.
        rows.append(Comment(post_id, f"{number:08d} {_digest(text)}", text))
    for field, values in found.items():
        if field.startswith("reactions.") and (count := sum(map(_count, values))):
            rows.append(Clicks(post_id, field.removeprefix("reactions."), "", count))
    return rows


KINDS: dict[str, Kind] = {
    "crowdtangle": Kind(
        "CrowdTangle's CSV export", crowdtangle, ("URL", "Message", *(name for name in _CROWDTANGLE if name != "Care"))
    ),
    "reddit": Kind("dumps of Reddit's submissions and comments (RS_*.zst, RC_*.zst)", reddit),
    "fediverse": Kind("statuses of Mastodon or notes of Misskey, as JSON lines", fediverse),
    "bluesky": Kind("posts of app.bsky.feed, or Jetstream's events, as JSON lines", bluesky),
}


class _Text(html.parser.HTMLParser):
    """Collect the text of a fragment, without mentions of people."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._in_mention = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = (dict(attrs).get("class") or "").split()
        if self._in_mention or (tag == "a" and "mention" in classes and "hashtag" not in classes):
            self._in_mention += tag == "a"
        if tag in ("br", "p"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._in_mention:
            self._in_mention -= 1

    def handle_data(self, data: str) -> None:
        if not self._in_mention:
            self.parts.append(data)


def without_tags(markup: str) -> str:
    """Return the text of a status's HTML; mentions of people are left out."""
    reader = _Text()
    try:
        reader.feed(markup)
        reader.close()
    except AssertionError as error:  # Python up to 3.13 raises it for some malformed declarations
        raise BadPost("content_no_html") from error
    return "".join(reader.parts).strip()


def _parts(address: str) -> urllib.parse.SplitResult:
    try:
        return urllib.parse.urlsplit(address)
    except ValueError as error:
        raise BadPost("address_invalid") from error


def _of_address(address: str) -> str:
    """Return the id of a post from its address: the parameter that names it, or the last id in the path."""
    parts = _parts(address)
    query = urllib.parse.parse_qs(parts.query)
    ids = [query[name][0] for name in ("story_fbid", "fbid", "v") if name in query]
    ids += re.findall(r"\bpfbid\w+|\d{5,}", parts.path)[::-1]
    if not ids:
        raise BadPost("post_id_missing")
    return ids[0]


def _id(record: Record, field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise BadPost(f"{field}_missing")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadPost("comment_no_text")
    return value


def _count(value: Any) -> int:
    """Return a count; text may have thousands separators."""
    if value is None or value == "":
        return 0
    if isinstance(value, str):
        text = value.strip()
        whole = _WHOLE.fullmatch(re.sub(r"\D", "", text) if _GROUPED.fullmatch(text) else text)
        # Python refuses to convert more digits than a few thousand.
        value = int(whole[1][:100]) if whole else None
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        raise BadPost("count_no_number")
    try:
        count = whole_number(value)
    except (ValueError, OverflowError):
        raise BadPost("count_no_number") from None
    if count < 0:
        raise BadPost("count_no_number")
    if count > MAX_REACTION_COUNT:
        raise BadPost("count_out_of_range")
    return count


def _list(value: Any) -> list[Record]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _mapping(value: Any) -> Record:
    return value if isinstance(value, Mapping) else {}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _at(record: Any, place: str) -> Sequence[Any]:
    """Return the values at a place, e.g. `replies[].text`. A field whose name is the place itself comes first."""
    is_name = isinstance(record, Mapping) and place in record
    values = [record[place]] if is_name else [record]
    for name in [] if is_name else place.split("."):
        every = name.endswith("[]")
        inner = [value.get(name.removesuffix("[]")) for value in values if isinstance(value, Mapping)]
        values = [one for value in inner for one in (value if isinstance(value, list) and every else [value])]
    # The last name may be a list's without brackets.
    every_one = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [one for one in every_one if one is not None]
