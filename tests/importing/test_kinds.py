"""Each kind of export, on records in the layout that its source documents; the texts are made up."""

import hashlib
from decimal import Decimal

import pytest

from vise_jax.errors import UserError
from vise_jax.importing import kinds
from vise_jax.importing.rows import Clicks, Comment, Photo
from vise_jax.posts import BadPost, parse

CROWDTANGLE = {
    "Page Name": "A PERSON",
    "User Name": "A PERSON",
    "Facebook Id": "100064",
    "Type": "Photo",
    "Total Interactions": "1,234",
    "Likes": "1,000",
    "Comments": "7",
    "Love": "12",
    "Wow": "0",
    "Haha": "",
    "Sad": "3",
    "Angry": "0",
    "Care": "2",
    "URL": "https://www.facebook.com/100064/posts/1015222",
    "Message": "a lighthouse",
}


def test_crowdtangle():
    assert kinds.crowdtangle(CROWDTANGLE) == [
        Photo("1015222", names=("1015222",)),
        Comment("1015222", "", "a lighthouse"),
        Clicks("1015222", "like", "", 1000),
        Clicks("1015222", "love", "", 12),
        Clicks("1015222", "sad", "", 3),
        Clicks("1015222", "care", "", 2),
    ]
    assert kinds.crowdtangle(CROWDTANGLE | {"Type": "Native Video"}) == []
    with pytest.raises(BadPost, match="count_no_number"):
        kinds.crowdtangle(CROWDTANGLE | {"Likes": "many"})


@pytest.mark.parametrize(
    ("address", "post_id"),
    [
        ("https://www.facebook.com/photo.php?fbid=10158&set=a.456789&type=3", "10158"),
        ("https://www.facebook.com/permalink.php?story_fbid=99887&id=100064", "99887"),
        ("https://www.facebook.com/page/posts/pfbid02Ab9", "pfbid02Ab9"),
        ("https://www.facebook.com/100064/photos/a.12345/67890", "67890"),
    ],
)
def test_ids_in_addresses(address, post_id):
    assert kinds.crowdtangle(CROWDTANGLE | {"URL": address})[0] == Photo(post_id, names=(post_id,))


@pytest.mark.parametrize(
    "text",
    ["1,234,567", "1.234.567", "1 234 567", "1'234'567", "1\u202f234\u202f567", "1234567", "1234567.0", 1234567.0],
)
def test_thousands_separators(text):
    [found] = [row for row in kinds.crowdtangle(CROWDTANGLE | {"Likes": text}) if row.__dict__.get("button") == "like"]
    assert found.count == 1234567


@pytest.mark.parametrize(
    "text", ["1,23", "1.5", "-3", "12,34,567,", "0.500", "1_000", 2.5, True, float("nan"), float("inf"), Decimal("1.5")]
)
def test_numbers_that_are_none(text):
    with pytest.raises(BadPost, match="count_no_number"):
        kinds.crowdtangle(CROWDTANGLE | {"Likes": text})


@pytest.mark.parametrize("count", [10**13, Decimal(10) ** 40, 1e300, "9" * 9000])
def test_numbers_that_are_too_large(count):
    with pytest.raises(BadPost, match="count_out_of_range"):
        kinds.crowdtangle(CROWDTANGLE | {"Likes": count})


REDDIT = {"id": "abc", "author": "somebody", "url": "https://i.redd.it/x1.jpg", "over_18": True, "is_self": False}
REPLY = {"id": "d1", "link_id": "t3_abc", "author": "somebody", "body": "tall &amp; white", "created_utc": 1577836800}


def test_reddit():
    assert kinds.reddit(REDDIT) == [Photo("t3_abc", names=("abc", "t3_abc"), sensitive=True)]
    assert kinds.reddit(REDDIT | {"url": "https://v.redd.it/x1"}) == []
    assert kinds.reddit(REDDIT | {"url": "https://imgur.com/x1", "post_hint": "image"})
    assert kinds.reddit(REPLY) == [Comment("t3_abc", "001577836800 d1", "tall & white")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"body": "[deleted]"}, "comment_deleted"),
        ({"body": "[removed]"}, "comment_deleted"),
        ({"author": "AutoModerator"}, "comment_of_bot"),
        ({"author": "helpful_Bot"}, "comment_of_bot"),
        ({"stickied": True}, "comment_pinned"),
        ({"body": 7}, "comment_no_text"),
        ({"id": None}, "id_missing"),
    ],
)
def test_comments_of_reddit_that_are_dropped(change, reason):
    with pytest.raises(BadPost, match=reason):
        kinds.reddit(REPLY | change)


def test_mastodon():
    status = {
        "id": "109",
        "created_at": "2024-01-01T00:00:00.000Z",
        "in_reply_to_id": None,
        "sensitive": False,
        "spoiler_text": "eyes",
        "content": "<p>look</p>",
        "favourites_count": 4,
        "account": {"id": "7", "acct": "a_person"},
        "media_attachments": [{"id": "55", "type": "image", "url": "https://files.example/55.jpg"}],
        "pleroma": {"emoji_reactions": [{"name": "🔥", "count": 2}]},
        "reactions": [{"name": "blobcat", "count": 3}],
    }
    assert kinds.fediverse(status) == [
        Photo("109", names=("55", "109"), sensitive=True),
        Clicks("109", "favourite", "", 4),
        Clicks("109", "blobcat", "", 3),
        Clicks("109", "🔥", "", 2),
    ]
    mention = '<span class="h-card"><a href="https://x/@b" class="u-url mention">@<span>b_person</span></a></span>'
    tag = '<a href="https://x/tags/sea" class="mention hashtag">#<span>sea</span></a>'
    reply = {**status, "id": "110", "in_reply_to_id": "109", "media_attachments": []}
    reply["content"] = f"<p>{mention} so calm &amp; blue {tag}<br/>yes</p>"
    [comment] = kinds.fediverse(reply)
    assert comment == Comment("109", "2024-01-01T00:00:00.000Z 110", "so calm & blue #sea\nyes", "110")
    assert kinds.fediverse({"id": "9", "reblog": status})[0].post_id == "109"


def test_misskey():
    note = {
        "id": "9abc",
        "createdAt": "2024-01-01T00:00:00.000Z",
        "userId": "u1",
        "user": {"username": "a_person"},
        "text": "look",
        "cw": None,
        "reactions": {"👍": 5, ":blobcat@.:": 1, ":blobfox@remote.example:": 2, ":blobcat@remote.example:": 3},
        "files": [{"id": "f1", "type": "image/webp", "isSensitive": True}],
    }
    assert kinds.fediverse(note) == [
        Photo("9abc", names=("f1", "9abc"), sensitive=True),
        Clicks("9abc", "👍", "", 5),
        Clicks("9abc", "blobcat", "", 4),
        Clicks("9abc", "blobfox", "", 2),
    ]
    reply = {
        **note,
        "id": "9abd",
        "replyId": "9abc",
        "files": [],
        "text": "@a_person look @b@host.example, a@b.example",
    }
    [comment] = kinds.fediverse(reply)
    assert comment == Comment("9abc", "2024-01-01T00:00:00.000Z 9abd", " look , a@b.example", "9abd")


ROOT = "at://did:plc:aaa/app.bsky.feed.post/3k1"


def test_bluesky_views():
    view = {
        "uri": ROOT,
        "cid": "bafyrei",
        "author": {"did": "did:plc:aaa", "handle": "a.person"},
        "likeCount": 9,
        "record": {
            "$type": "app.bsky.feed.post",
            "text": "look",
            "createdAt": "2024-01-01T00:00:00Z",
            "embed": {
                "$type": "app.bsky.embed.images",
                "images": [{"alt": "", "image": {"ref": {"$link": "bafkrei1"}}}],
            },
        },
    }
    assert kinds.bluesky(view) == [Photo(ROOT, names=("bafkrei1",)), Clicks(ROOT, "like", "", 9)]
    assert kinds.bluesky({"post": view}) == kinds.bluesky(view)
    with pytest.raises(BadPost, match="record_missing"):
        kinds.bluesky({"uri": ROOT})


def test_jetstream():
    def event(collection: str, record: dict, rkey: str = "3k2") -> dict:
        commit = {"operation": "create", "collection": collection, "rkey": rkey, "record": record}
        return {"did": "did:plc:bbb", "kind": "commit", "commit": commit}

    likes = [kinds.bluesky(event("app.bsky.feed.like", {"subject": {"uri": ROOT}}, rkey))[0] for rkey in "xy"]
    assert [(like.post_id, like.button, like.count) for like in likes] == [(ROOT, "like", 1)] * 2
    assert likes[0].key != likes[1].key
    reply = {"text": "calm", "createdAt": "2024-01-01T00:00:01Z", "reply": {"root": {"uri": ROOT}}}
    [comment] = kinds.bluesky(event("app.bsky.feed.post", reply))
    assert (comment.post_id, comment.text) == (ROOT, "calm")
    # Nothing says who liked or answered.
    assert "bbb" not in f"{likes}{comment}"
    assert kinds.bluesky(event("app.bsky.graph.follow", {})) == []


def test_a_table_by_its_map():
    kind = kinds.of_table(
        {"post_id": "id", "image": "media.file", "comments": "replies[].text", "reactions.love": "hearts"}
    )
    assert kind.columns == ("id", "media.file", "replies[].text", "hearts")
    record = {"id": 7, "media": {"file": "a/7.jpg"}, "replies": [{"text": "one"}, {"text": None}], "hearts": "1,000"}
    assert kind.read(record) == [
        Photo("7", "a/7.jpg", ("7",)),
        Comment("7", f"00000000 {hashlib.blake2b(b'one', digest_size=12).hexdigest()}", "one"),
        Clicks("7", "love", "", 1000),
    ]
    # A column may have dots in its name.
    for place in ("c.d", "c[]"):
        assert kinds.of_table({"post_id": "a.b", "comments": place}).read({"a.b": 1, place: ["x"]})[1].text == "x"
    assert kinds.of_table({"post_id": "id", "comments": "text"}).read({"id": "a", "text": "one"})[1].text == "one"
    with pytest.raises(BadPost, match="post_id_missing"):
        kind.read({"id": None})
    for fields, message in (({"image": "a"}, "no post_id"), ({"post_id": "a", "author": "b"}, "no field 'author'")):
        with pytest.raises(UserError, match=message):
            kinds.of_table(fields)


@pytest.mark.parametrize(
    ("value", "hidden"),
    [
        ("False", False),
        ("0", False),
        ("no", False),
        ("", False),
        (0, False),
        ("true", True),
        ("1", True),
        ("war", True),
    ],
)
def test_a_table_says_what_is_sensitive(value, hidden):
    [photo] = kinds.of_table({"post_id": "id", "sensitive": "cw"}).read({"id": 1, "cw": value})
    assert photo.sensitive == hidden


def test_images_of_hugging_face_in_a_table():
    kind = kinds.of_table({"post_id": "id", "image": "image"})
    assert kind.read({"id": 1, "image": {"bytes": b"x", "path": "1.jpg"}}) == [Photo("1", "1.jpg", ("1",))]
    assert kind.read({"id": 1, "image": {"bytes": b"x", "path": None}}) == [Photo("1", "", ("1",))]
    with pytest.raises(BadPost, match="image_no_path"):
        kind.read({"id": 1, "image": b"x"})


@pytest.mark.parametrize("body", ["[deleted]", "[removed]", "[ Removed by Reddit ]", " [removed] "])
def test_comments_that_reddit_removed(body):
    with pytest.raises(BadPost, match="comment_deleted"):
        kinds.reddit(REPLY | {"body": body})
    assert kinds.reddit(REPLY | {"body": "removed"})[0].text == "removed"


def test_html_that_the_library_refuses(monkeypatch):
    reply = {"id": "2", "in_reply_to_id": "1", "created_at": "2024", "content": "<![x]> a"}

    def refuse(reader, markup):
        # As it does in Python 3.11.
        raise AssertionError("unknown marked section")

    monkeypatch.setattr("html.parser.HTMLParser.feed", refuse)
    with pytest.raises(BadPost, match="content_no_html"):
        kinds.fediverse(reply)


def test_buttons_of_exports_that_the_papers_network_has_are_no_reason_to_reject():
    rows = [
        *kinds.crowdtangle(CROWDTANGLE),
        *kinds.bluesky({"uri": ROOT, "likeCount": 1, "record": {"embed": {"images": [{}]}}}),
    ]
    buttons = {row.button: row.count for row in rows if isinstance(row, Clicks)}
    assert buttons.keys() == {"like", "love", "sad", "care"}
    post = parse({"post_id": "1", "comments": [], "reactions": buttons})
    assert sum(post.reactions) == 15
