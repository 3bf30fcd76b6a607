"""Salted hashes, and splits by hash."""

from pathlib import Path

import pytest

from vise_jax.engagement import hashing
from vise_jax.errors import UserError

SALT = hashing.salt("", 0)


def test_hashes_depend_on_the_salt_and_nothing_else() -> None:
    assert (
        hashing.hash_id("post", SALT) == hashing.hash_id("post", SALT) == hashing.hash_id("post", hashing.salt("", 0))
    )
    assert len(hashing.hash_id("post", SALT)) == 32
    assert hashing.hash_id("post", SALT) != hashing.hash_id("post", hashing.salt("", 1))
    assert b"post" not in bytes.fromhex(hashing.hash_id("post", SALT).decode())


def test_the_salt_file_is_used_and_has_to_hold_something(tmp_path: Path) -> None:
    for name, content in {"a": b"secret", "b": b"secre7" * 100, "empty": b" \n"}.items():
        (tmp_path / name).write_bytes(content)
    salts = {hashing.salt(str(tmp_path / name), 0) for name in "ab"} | {SALT}
    assert len(salts) == 3
    with pytest.raises(UserError, match="empty"):
        hashing.salt(str(tmp_path / "empty"), 0)
    with pytest.raises(UserError, match="missing"):
        hashing.salt(str(tmp_path / "missing"), 0)


def test_splits_have_their_share_and_grow_with_it() -> None:
    ids = [f"post-{number}" for number in range(20_000)]
    small = {post for post in ids if hashing.split(post, SALT, 0.2) == "cluster"}
    large = {post for post in ids if hashing.split(post, SALT, 0.5) == "cluster"}
    assert len(small) == pytest.approx(4_000, rel=0.05)
    assert len(large) == pytest.approx(10_000, rel=0.05)
    assert small < large
    other_salt = {post for post in ids if hashing.split(post, hashing.salt("", 1), 0.2) == "cluster"}
    assert len(small & other_salt) == pytest.approx(800, rel=0.2)


def test_splits_have_their_shares_and_subsets_are_nested() -> None:
    secret = hashing.salt("", 0)
    posts = [f"post {number}" for number in range(20_000)]
    drawn = [hashing.split(post, secret, 0.1, 0.05, 0.4) for post in posts]
    shares = {name: drawn.count(name) / len(posts) for name in hashing.SPLITS}
    expected = {"cluster": 0.1, "validation": 0.05, "train": 0.85 * 0.4, "unused": 0.85 * 0.6}
    assert all(abs(shares[name] - expected[name]) < 0.01 for name in expected)
    smaller = [hashing.split(post, secret, 0.1, 0.05, 0.2) for post in posts]
    whole = [hashing.split(post, secret, 0.1, 0.05) for post in posts]
    for few, some, every in zip(smaller, drawn, whole, strict=True):
        assert few != "train" or some == "train"
        assert some in ("train", "unused") if every == "train" else some == every == few


def test_a_salt_that_others_can_read_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    salt = tmp_path / "salt"
    hashing.make_salt(str(salt))
    first = salt.read_bytes()
    hashing.make_salt(str(salt))
    assert salt.read_bytes() == first
    assert caplog.text == ""
    salt.chmod(0o644)
    hashing.make_salt(str(salt))
    assert "chmod 600" in caplog.text


def test_ids_to_leave_out(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes("a\r\n b\n\né\u2028f".encode())
    assert hashing.read_ids(tmp_path / "ids") == ["a", " b", "é\u2028f"]
    secret = hashing.salt("", 0)
    posts = frozenset(hashing.hash_id(i, secret) for i in ("a", " b", "é\u2028f"))
    assert hashing.read_excluded(tmp_path / "ids", secret) == (posts, ())
    assert hashing.read_excluded(None, secret) == (frozenset(), ())
    (tmp_path / "ids").write_bytes(b"\xff")
    with pytest.raises(UserError, match="one post id per line"):
        hashing.read_ids(tmp_path / "ids")


def test_images_to_leave_out(tmp_path: Path) -> None:
    line = hashing.image_line(0x00FF_0000_0000_0001)
    assert line == "image:00ff000000000001"
    (tmp_path / "list").write_text(f"a\n{line}\nimage:1\n")
    assert hashing.read_ids(tmp_path / "list") == ["a", "image:1"]
    secret = hashing.salt("", 0)
    excluded = hashing.read_excluded(tmp_path / "list", secret)
    assert excluded.posts == {hashing.hash_id(post_id, secret) for post_id in ("a", "image:1")}
    ((value, digest),) = excluded.images
    assert value == 0x00FF_0000_0000_0001
    assert "00ff" not in digest
    assert hashing.exclusion_check(excluded) != hashing.exclusion_check(excluded._replace(images=()))
