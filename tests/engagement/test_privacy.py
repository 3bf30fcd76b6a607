"""Masking, salted hashes, and splits by hash."""

import time
from pathlib import Path

import pytest

from vise_jax.engagement import privacy
from vise_jax.errors import UserError

SALT = privacy.salt("", 0)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("RT @some_user: see http://t.co/abc?x=1😍 #sandy", "RT <user>: see <url>😍 #sandy"),
        ("mail a.b+c@ex-ample.co.uk now", "mail <email> now"),
        ("bit.ly/1W8 and www.example.org, youtube.com.", "<url> and <url> <url>."),
        ("HTTPS://EXAMPLE.COM/ftp://x", "<url>"),
        ("+1 (555) 123-4567 or 555.123.4567, 020 7946 0958", "<phone> or <phone>, <phone>"),
        ("tel.-5551234567x12; ٠١٢٣٤٥٦٧٨٩", "tel.-<phone>x12; <phone>"),
        ("hi@joe @@joe 😀@joe @[12:34:John Doe] @a.b@c.social", "hi<user> @<user> 😀<user> <user> @<email>"),
        ("cafe\u0301 <url>", "café <url>"),
        # One sign that gives each away.
        ("＠joe", "<user>"),
        ("@joe", "<user>"),
        ("ftp://x", "<url>"),
        ("bit.ly", "<url>"),
        ("٥٥٥١٢٣٤٥", "<phone>"),
    ],
)
def test_people_and_links_are_masked_and_words_are_not(text: str, masked: str) -> None:
    assert privacy.mask(text) == masked


@pytest.mark.parametrize(
    "piece", ["a", "a.", "@", "1 ", "a@", "a-", "://", "1", "@[", "www", "a.b", "+1(", "a@a.", "(1"]
)
def test_no_comment_takes_long_to_mask(piece: str) -> None:
    text = (piece * 10_000)[:10_000]
    start = time.process_time()
    privacy.mask(text)
    assert time.process_time() - start < 0.5


def test_hashes_depend_on_the_salt_and_nothing_else() -> None:
    assert (
        privacy.hash_id("post", SALT) == privacy.hash_id("post", SALT) == privacy.hash_id("post", privacy.salt("", 0))
    )
    assert len(privacy.hash_id("post", SALT)) == 32
    assert privacy.hash_id("post", SALT) != privacy.hash_id("post", privacy.salt("", 1))
    assert b"post" not in bytes.fromhex(privacy.hash_id("post", SALT).decode())


def test_the_salt_file_is_used_and_has_to_hold_something(tmp_path: Path) -> None:
    for name, content in {"a": b"secret", "b": b"secre7" * 100, "empty": b" \n"}.items():
        (tmp_path / name).write_bytes(content)
    salts = {privacy.salt(str(tmp_path / name), 0) for name in "ab"} | {SALT}
    assert len(salts) == 3
    with pytest.raises(UserError, match="empty"):
        privacy.salt(str(tmp_path / "empty"), 0)
    with pytest.raises(UserError, match="missing"):
        privacy.salt(str(tmp_path / "missing"), 0)


def test_splits_have_their_share_and_grow_with_it() -> None:
    ids = [f"post-{number}" for number in range(20_000)]
    small = {post for post in ids if privacy.split(post, SALT, 0.2) == "cluster"}
    large = {post for post in ids if privacy.split(post, SALT, 0.5) == "cluster"}
    assert len(small) == pytest.approx(4_000, rel=0.05)
    assert len(large) == pytest.approx(10_000, rel=0.05)
    assert small < large
    other_salt = {post for post in ids if privacy.split(post, privacy.salt("", 1), 0.2) == "cluster"}
    assert len(small & other_salt) == pytest.approx(800, rel=0.2)


def test_splits_have_their_shares_and_subsets_are_nested() -> None:
    secret = privacy.salt("", 0)
    posts = [f"post {number}" for number in range(20_000)]
    drawn = [privacy.split(post, secret, 0.1, 0.05, 0.4) for post in posts]
    shares = {name: drawn.count(name) / len(posts) for name in privacy.SPLITS}
    expected = {"cluster": 0.1, "validation": 0.05, "train": 0.85 * 0.4, "unused": 0.85 * 0.6}
    assert all(abs(shares[name] - expected[name]) < 0.01 for name in expected)
    smaller = [privacy.split(post, secret, 0.1, 0.05, 0.2) for post in posts]
    whole = [privacy.split(post, secret, 0.1, 0.05) for post in posts]
    for few, some, every in zip(smaller, drawn, whole, strict=True):
        assert few != "train" or some == "train"
        assert some in ("train", "unused") if every == "train" else some == every == few


def test_a_salt_that_others_can_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    salt = tmp_path / "salt"
    privacy.make_salt(str(salt))
    first = salt.read_bytes()
    privacy.make_salt(str(salt))
    assert salt.read_bytes() == first
    assert capsys.readouterr().err == ""
    salt.chmod(0o644)
    privacy.make_salt(str(salt))
    assert "chmod 600" in capsys.readouterr().err


def test_ids_to_leave_out(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes("a\r\n b\n\né\u2028f".encode())
    assert privacy.read_ids(tmp_path / "ids") == ["a", " b", "é\u2028f"]
    secret = privacy.salt("", 0)
    assert privacy.read_excluded(tmp_path / "ids", secret) == {
        privacy.hash_id(i, secret) for i in ("a", " b", "é\u2028f")
    }
    assert privacy.read_excluded(None, secret) == frozenset()
    (tmp_path / "ids").write_bytes(b"\xff")
    with pytest.raises(UserError, match="one post id a line"):
        privacy.read_ids(tmp_path / "ids")
