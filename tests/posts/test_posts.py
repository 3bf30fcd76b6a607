"""Posts: what is accepted, what is rejected and why, and files that can't be read at all."""

import gzip
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vise_jax import posts
from vise_jax.errors import UserError
from vise_jax.posts import BadPost, Buttons, Limits, Post, RejectLog, readers

GOOD = {"post_id": "a", "image": "i/a.jpg", "comments": ["hi"], "reactions": {"haha": 1, "love": 2}}


def read(path: Path, share: float = 1.0, **settings: Any) -> tuple[list[Post], RejectLog]:
    reject_log = RejectLog(path, share)
    return list(posts.read(path, reject_log, **settings)), reject_log


def write(path: Path, *lines: bytes | str | dict) -> Path:
    encoded = (json.dumps(line) if isinstance(line, dict) else line for line in lines)
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in encoded))
    return path


def test_reactions_come_in_the_order_of_the_paper_and_missing_ones_are_zero() -> None:
    post = posts.parse(GOOD)
    assert post == Post("a", "i/a.jpg", None, ("hi",), (1, 0, 0, 0, 2))
    assert posts.REACTIONS == ("haha", "sorry", "angry", "wow", "love")


@pytest.mark.parametrize(
    ("buttons", "counts"),
    [
        (Buttons(("love", "care")), (2, 1)),
        (Buttons(("sad", "sorry")), (3, 4)),
        (Buttons(("sorry", "wow")), (7, 0)),
        (Buttons(("❤", "haha")), (6, 0)),
    ],
)
def test_a_vocabulary_counts_its_buttons_in_its_order(buttons, counts) -> None:
    reactions = {"love": 2, "Care": 1, "sad": 3, "sorry": 4, "\u2764\ufe0f": 6}
    assert posts.parse({"post_id": "a", "reactions": reactions}, buttons=buttons._replace(others="ignore")) == Post(
        "a", reactions=counts
    )
    if "❤" not in buttons.names:
        with pytest.raises(BadPost, match="reaction_unknown"):
            posts.parse({"post_id": "a", "reactions": reactions}, buttons=buttons)


@pytest.mark.parametrize("empty", [{}, {"image": None, "comments": None, "reactions": None}, {"extra": 1}])
def test_image_comments_and_reactions_may_be_missing(empty: dict) -> None:
    assert posts.parse({"post_id": "a", **empty}) == Post("a")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (["a"], "post_array"),
        ({}, "post_id_null"),
        ({"post_id": ""}, "post_id_empty"),
        ({"post_id": True}, "post_id_boolean"),
        ({"post_id": 7.5}, "post_id_number"),
        ({"post_id": "\ud800"}, "post_id_not_unicode"),
        ({"post_id": "x" * 1001}, "post_id_too_long"),
        ({"comments": "hi"}, "comments_text"),
        ({"comments": {"count": 3}}, "comments_object"),
        ({"comments": ["hi", 3]}, "comment_number"),
        ({"comments": {"data": ["hi", {"message": 3}]}}, "comment_number"),
        ({"reactions": [1, 2]}, "reactions_array"),
        ({"reactions": {"applause": 1}}, "reaction_unknown"),
        ({"reactions": {"love": -1}}, "reaction_out_of_range"),
        ({"reactions": {"love": 10**12 + 1}}, "reaction_out_of_range"),
        ({"reactions": {"love": True}}, "reaction_boolean"),
        ({"reactions": {"love": "many"}}, "reaction_text"),
        ({"reactions": {"love": 2.5}}, "reaction_number"),
        ({"reactions": {"love": float("inf")}}, "reaction_number"),
        ({"reactions": {"love": float("nan")}}, "reaction_number"),
        ({"reactions": {"love": Decimal("2.5")}}, "reaction_number"),
        ({"image": 3}, "image_number"),
        ({"image": "a\0.jpg"}, "image_path_not_unicode"),
        ({"image": "../a.jpg"}, "image_path_leaves_folder"),
        ({"image": "i/../../a.jpg"}, "image_path_leaves_folder"),
        ({"image": "/etc/passwd"}, "image_path_leaves_folder"),
        ({"image_bytes": "text"}, "image_bytes_text"),
    ],
)
def test_malformed_records_have_a_reason(record: Any, reason: str) -> None:
    if isinstance(record, dict) and record and "post_id" not in record:
        record = GOOD | record
    with pytest.raises(BadPost) as caught:
        posts.parse(record)
    assert caught.value.reason == reason


def test_surrogates_floats_and_null_counts_are_read() -> None:
    post = posts.parse(GOOD | {"comments": ["a\ud800b", "😀"], "reactions": {"love": 3.0, "haha": None}})
    assert post.comments == ("a\ufffdb", "😀")
    assert post.reactions == (0, 0, 0, 0, 3)


@pytest.mark.parametrize(
    ("change", "expected", "note"),
    [
        ({"post_id": 17}, {"post_id": "17"}, "mended_post_id_number"),
        ({"image": ""}, {"image": None}, "mended_image_empty"),
        ({"comments": ["a", None, "b"]}, {"comments": ("a", "b")}, "mended_comment_null"),
        (
            {"comments": {"data": [{"message": "a"}, {"message": "b"}]}},
            {"comments": ("a", "b")},
            "mended_comments_data",
        ),
        ({"reactions": {"sad": 2, "sorry": 1}}, {"reactions": (0, 3, 0, 0, 0)}, "mended_reaction_name"),
        ({"reactions": {"LOVE": 2}}, {"reactions": (0, 0, 0, 0, 2)}, "mended_reaction_name"),
        ({"reactions": {"like": 9, "care": 1, "wow": 1}}, {"reactions": (0, 0, 0, 1, 0)}, "mended_reaction_ignored"),
        ({"reactions": {"wow": "12"}}, {"reactions": (0, 0, 0, 12, 0)}, "mended_reaction_text"),
    ],
)
def test_an_obvious_reading_is_taken_and_counted(change: dict, expected: dict, note: str) -> None:
    mended: Counter[str] = Counter()
    post = posts.parse(GOOD | change, mended)
    assert {name: getattr(post, name) for name in expected} == expected
    assert mended[note] >= 1
    assert posts.parse(GOOD | {"reactions": {"wow": Decimal("3")}}).reactions == (0, 0, 0, 3, 0)


def test_a_rejected_post_is_not_counted_as_mended() -> None:
    mended: Counter[str] = Counter()
    with pytest.raises(BadPost):
        posts.parse({"post_id": 7, "reactions": {"wow": "x"}}, mended)
    assert not mended


def test_nan_in_a_field_that_is_not_read_costs_nothing(tmp_path: Path) -> None:
    found, reject_log = read(write(tmp_path / "p.jsonl", '{"post_id": "a", "score": NaN, "comments": ["hi"]}'))
    assert [post.comments for post in found] == [("hi",)]
    assert not reject_log.rejected


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.jsonl.zst"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_the_content_of_a_file_says_how_it_is_packed(tmp_path: Path, name: str, pack: Callable) -> None:
    plain = write(tmp_path / "plain.jsonl", *(post_line(number) for number in range(20)))
    (tmp_path / name).write_bytes(pack(plain.read_bytes()))
    whole, _ = read(plain)
    found, _ = read(tmp_path / name)
    assert [post.comments for post in found] == [post.comments for post in whole]
    assert list(posts.read(tmp_path / name, RejectLog(), found[4].after)) == found[5:]
    [(start, end)] = posts.split_file(tmp_path / name, 10**9)[1]
    assert list(posts.read(tmp_path / name, RejectLog(), start, end)) == found


def test_a_cut_zstandard_file_is_named(tmp_path: Path) -> None:
    packed = pa.compress(b"".join(post_line(n).encode() + b"\n" for n in range(500)), "zstd", asbytes=True)
    (tmp_path / "p.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"p\.jsonl\.zst"):
        read(tmp_path / "p.jsonl.zst")


def test_part_files_without_posts_are_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b""))
    nothing = pa.table({"post_id": [], "comments": [], "reactions": []})
    pq.write_table(nothing, tmp_path / "c.parquet")
    assert all(posts.is_empty(path) for path in tmp_path.iterdir())
    assert not posts.is_empty(write(tmp_path / "d.jsonl", GOOD))


def test_a_path_that_exists_is_taken_literally(tmp_path: Path) -> None:
    names = ["posts [2020].jsonl", "a,b.jsonl", "c.jsonl"]
    for name in names:
        (tmp_path / name).touch()
    assert posts.expand(f"{tmp_path}/posts [2020].jsonl") == [tmp_path / "posts [2020].jsonl"]
    assert posts.expand(f"{tmp_path}/a,b.jsonl") == [tmp_path / "a,b.jsonl"]
    assert posts.expand(f"{tmp_path}/a,b.jsonl,{tmp_path}/c.jsonl") == [tmp_path / "a,b.jsonl", tmp_path / "c.jsonl"]
    assert posts.expand(",".join([f"{tmp_path}/c.jsonl"] * 500)) == [tmp_path / "c.jsonl"]


def test_few_posts_do_not_stop_the_reading() -> None:
    reject_log = RejectLog("p.jsonl", 0.5, min_posts=100)
    reject_log.posts = 1
    reject_log.reject(1, "image_missing")
    reject_log.check()
    reject_log.posts, reject_log.rejected["image_missing"] = 100, 51
    with pytest.raises(UserError, match="51 of 100"):
        reject_log.check()


def test_malformed_lines_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        "",
        "{not json",
        b'{"post_id": "\xff"}',
        "[" * 100_000,
        '{"post_id": "a", "reactions": {"love": NaN}}',
        '{"post_id": "a", "reactions": {"love": ' + "9" * 5000 + "}}",
        GOOD | {"comments": ["x" * 200_000, "short"]},
    )
    found, reject_log = read(path)
    assert [(post.line, post.source) for post in found] == [(1, path), (8, path)]
    assert [len(comment) for comment in found[1].comments] == [10_000, 5]
    assert reject_log.posts == 7
    assert reject_log.rejected == {"malformed_json": 3, "reaction_number": 1, "invalid_utf8": 1}
    assert reject_log.notes == {"comment_cut": 1}
    assert reject_log.named[1] == {"file": "p.jsonl", "line": 4, "reason": "invalid_utf8"}


def test_an_endless_line_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, "x" * 1999, "x" * 199, GOOD)
    found, reject_log = read(path, limits=Limits(line_bytes=200))
    assert [post.line for post in found] == [1, 4]
    assert reject_log.rejected == {"line_too_long": 1, "malformed_json": 1}


def test_gzip_and_parquet_give_the_same_posts(tmp_path: Path) -> None:
    records = [GOOD, {"post_id": "b", "image": None, "comments": None, "reactions": None}]
    plain = write(tmp_path / "p.jsonl", *records)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    counts = pa.map_(pa.string(), pa.int64())
    table = pa.table({"post_id": ["a", "b"], "image": ["i/a.jpg", None], "comments": [["hi"], None]})
    as_struct = table.append_column("reactions", pa.array([{"haha": 1, "love": 2}, None]))
    pq.write_table(as_struct, tmp_path / "struct.parquet")
    as_map = table.append_column("reactions", pa.array([[("haha", 1), ("love", 2)], None], counts))
    pq.write_table(as_map.append_column("other", pa.array([1, 2])), tmp_path / "map.parquet")

    def bare(name: str) -> list[tuple]:
        return [
            (post.post_id, post.image, post.comments, post.reactions, post.line) for post in read(tmp_path / name)[0]
        ]

    expected = [("a", "i/a.jpg", ("hi",), (1, 0, 0, 0, 2)), ("b", None, (), None)]
    assert [post[:4] for post in bare("p.jsonl")] == expected
    assert bare("p.jsonl.gz") == bare("struct.parquet") == bare("map.parquet") == bare("p.jsonl")


def test_parquet_holds_image_bytes_and_malformed_text_costs_one_row(tmp_path: Path) -> None:
    offsets = np.arange(4, dtype=np.int32)
    ids = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(b"a\xffc"))
    nothing = pa.nulls(3)
    table = pa.table({"post_id": ids, "image_bytes": [b"1", b"2", b"3"], "comments": nothing, "reactions": nothing})
    pq.write_table(table, tmp_path / "p.parquet")
    found, reject_log = read(tmp_path / "p.parquet")
    assert [(post.post_id, post.image_bytes, post.line) for post in found] == [("a", b"1", 1), ("c", b"3", 3)]
    assert reject_log.rejected == {"invalid_utf8": 1}


def test_images_of_hugging_face_datasets(tmp_path: Path) -> None:
    images = [{"bytes": b"1", "path": "a.jpg"}, {"bytes": None, "path": "i/b.jpg"}, None]
    nothing = pa.nulls(3)
    table = pa.table({"post_id": ["a", "b", "c"], "image": images, "comments": nothing, "reactions": nothing})
    pq.write_table(table, tmp_path / "p.parquet")
    found, _ = read(tmp_path / "p.parquet")
    assert [(post.image_bytes, post.image) for post in found] == [(b"1", None), (None, "i/b.jpg"), (None, None)]


def samples(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_webdataset_tars(tmp_path: Path) -> None:
    about = json.dumps({"comments": ["hi"], "reactions": {"love": 2}, "url": "https://x"}).encode()
    long = "x" * 150  # its name has a header of its own
    path = samples(
        tmp_path / "p.tar",
        ("000/1.jpg", b"one"),
        ("000/1.json", about),
        ("000/1.txt", b"caption"),
        ("000/2.json", about),
        ("000/3.png", b"three"),
        ("001/3.PNG", b"another three"),
        ("001/3.json", json.dumps({"post_id": "own", "image": "../../etc/passwd"}).encode()),
        ("../evil.json", b"{"),
        ("../evil.jpg", b"x"),
        (f"{long}.webp", b"long"),
        (f"{long}.json", b"{}"),
    )
    found, reject_log = read(path)
    assert [(post.post_id, post.image_bytes, post.image, post.comments, post.line) for post in found] == [
        ("000/1", b"one", None, ("hi",), 1),
        ("own", b"another three", None, (), 4),
        (long, b"long", None, (), 6),
    ]
    assert reject_log.rejected == {"image_missing": 1, "json_missing": 1, "malformed_json": 1}
    # From each cursor on, the rest.
    for number, post in enumerate(found):
        assert list(posts.read(path, RejectLog(), post.after)) == found[number + 1 :]
    assert posts.split_file(path, 1)[1] == [(posts.BEGINNING, None)]
    # Wherever it is cut, that is said; nothing was written.
    whole = path.read_bytes()
    for end in range(600, whole.rindex(b"{}"), 400):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"p\.tar is truncated"):
            read(path)
    assert [one.name for one in tmp_path.iterdir()] == ["p.tar"]


def test_names_of_tars_that_begin_with_a_dot_are_no_samples(tmp_path: Path) -> None:
    names = (
        "._1.jpg",
        "./1.jpg",
        "._1.json",
        "./1.json",
        "a/._1.jpg",
        "a/1.jpg",
        "a/._1.json",
        "a/1.json",
        "a/.DS_Store",
    )
    found, reject_log = read(samples(tmp_path / "p.tar", *((name, b"{}") for name in names)))
    assert [post.post_id for post in found] == ["1", "a/1"]
    assert not reject_log.rejected


def test_members_of_tars_are_bounded(tmp_path: Path) -> None:
    path = samples(tmp_path / "p.tar", ("1.jpg", b"x" * 1001), ("1.json", b"{}"), ("2.jpg", b"x"), ("2.json", b"{}"))
    found, reject_log = read(path, limits=Limits(line_bytes=1000))
    assert ([post.post_id for post in found], reject_log.rejected) == (["2"], {"member_too_large": 1})


def test_a_parquet_file_without_a_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"post_id": ["a"], "comments": [["hi"]]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet has no column reactions"):
        read(tmp_path / "p.parquet")


@pytest.mark.parametrize("name", ["p.csv", "missing.jsonl", "p.jsonl.gz", "p.parquet"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "p.csv").write_text("a,b")
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode() * 1000)[:60])
    (tmp_path / "p.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=name):
        read(tmp_path / name)


def test_too_many_rejected_posts_stop_the_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, "x", "y")
    assert read(path, share=0.67)[1].rejected == {"malformed_json": 2}
    with pytest.raises(
        UserError, match=r"p\.jsonl: 2 of 3 posts were rejected \(malformed_json 2\).*max_rejected_fraction=0\.5"
    ):
        read(path, share=0.5)


def test_a_long_malformed_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *["x"] * 5000)
    reject_log = RejectLog(path, 0.5)
    with pytest.raises(UserError):
        list(posts.read(path, reject_log))
    assert reject_log.posts == 1000


def test_posts_without_image_or_label_are_not_bad() -> None:
    reject_log = RejectLog("p.jsonl", 0.0)
    reject_log.posts = 2
    reject_log.reject(1, "no_image")
    reject_log.reject(2, "no_label")
    reject_log.check()
    reject_log.reject(2, "image_empty")
    with pytest.raises(UserError, match="1 of 2"):
        reject_log.check()


def test_the_reject_log_names_at_most_a_thousand_of_each_reason() -> None:
    reject_log = RejectLog("folder/p.jsonl")
    for line in range(3000):
        reject_log.reject(line, "image_empty" if line % 2 else "image_missing")
    assert reject_log.rejected == {"image_empty": 1500, "image_missing": 1500}
    assert len(reject_log.named) == 2000


def test_globs_are_sorted_joined_and_must_match(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.parquet"):
        (tmp_path / name).touch()
    found = posts.expand(f"{tmp_path}/*.jsonl, {tmp_path}/c.parquet,{tmp_path}/a.jsonl")
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl", "c.parquet"]
    with pytest.raises(UserError, match=r"nothing-\*"):
        posts.expand(f"{tmp_path}/*.jsonl,{tmp_path}/nothing-*")
    with pytest.raises(UserError, match="empty"):
        posts.expand(" ")


def post_line(number: int) -> str:
    return json.dumps({"post_id": f"{number}", "comments": ["é🐶" * (number % 5)]}, ensure_ascii=False)


@pytest.mark.parametrize("part_bytes", [1, 40, 41, 42, 333, 10**9])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_parts_of_a_file_hold_every_post_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int, end: str
) -> None:
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 64)
    lines = [post_line(number) for number in range(50)]
    lines[7], lines[8], lines[20] = "", "broken", "  "
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    sha256, parts = posts.split_file(path, part_bytes)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    whole, reject_log = read(path)
    found, rejected = [], []
    for start, stop in parts:
        split_log = RejectLog(path)
        found.extend(posts.read(path, split_log, start, stop))
        rejected.extend(split_log.named)
    assert found == whole
    assert rejected == reject_log.named
    assert [post.line for post in found] == [n + 1 for n in range(50) if n not in (7, 8, 20)]
    sizes = [stop - start.offset for start, stop in parts if stop is not None]
    assert len(parts) == 1 if part_bytes == 10**9 else len(parts) > 5
    assert all(part_bytes <= size < part_bytes + 200 for size in sizes[:-1])


def test_reading_continues_after_any_post(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *(post_line(number) for number in range(20)))
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    table = pa.Table.from_pylist([json.loads(post_line(n)) | {"reactions": {"love": n}} for n in range(20)])
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=6)
    for name in ("p.jsonl", "p.jsonl.gz", "p.parquet"):
        whole, _ = read(tmp_path / name)
        for post in whole:
            rest = list(posts.read(tmp_path / name, RejectLog(), post.after))
            assert rest == whole[post.line :]


def test_parts_of_a_parquet_file_are_row_groups(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([json.loads(post_line(n)) | {"reactions": {"love": n}} for n in range(20)])
    path = tmp_path / "p.parquet"
    pq.write_table(table, path, row_group_size=6)
    _, parts = posts.split_file(path, 1)
    assert parts == [((0, 0), 6), ((6, 6), 12), ((12, 12), 18), ((18, 18), 20)]
    found = [post for start, end in parts for post in posts.read(path, RejectLog(), start, end)]
    assert found == read(path)[0]
    assert [post.line for post in found] == list(range(1, 21))
    assert posts.split_file(path, 10**9)[1] == [((0, 0), 20)]
    sizes = [pq.ParquetFile(path).metadata.row_group(group).total_byte_size for group in range(4)]
    assert posts.split_file(path, max(sizes) + 1)[1] == [((0, 0), 12), ((12, 12), 20)]


def test_reading_continues_after_an_endless_line(tmp_path: Path) -> None:
    limits = Limits(line_bytes=100)
    path = write(tmp_path / "p.jsonl", post_line(1), "x" * 350, post_line(2), post_line(3))
    whole, reject_log = read(path, limits=limits)
    assert reject_log.rejected == {"line_too_long": 1}
    assert list(posts.read(path, RejectLog(), whole[1].after, limits=limits)) == whole[2:]
    assert list(posts.read(path, RejectLog(), end=whole[1].after.offset, limits=limits)) == whole[:2]


def test_comments_of_a_post_are_bounded() -> None:
    mended = Counter[str]()
    post = posts.parse(
        {"post_id": "p", "comments": ["abc", "d", "e", "f"]}, mended, limits=Limits(comment_characters=2, comments=3)
    )
    assert post.comments == ("ab", "d", "e")
    assert mended == {"comments_left_out": 1, "comment_cut": 1}


def test_a_packed_file_is_one_part_and_an_empty_one_too(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(post_line(1).encode()))
    assert posts.split_file(tmp_path / "p.jsonl.gz", 1)[1] == [((0, 0), None)]
    (tmp_path / "p.jsonl").touch()
    assert posts.split_file(tmp_path / "p.jsonl", 1)[1] == [((0, 0), 0)]
    with pytest.raises(UserError, match=r"none\.jsonl can't be read"):
        posts.split_file(tmp_path / "none.jsonl", 1)
