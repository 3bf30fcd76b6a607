"""The join of an import against one in memory; interruptions, refusals, and what must not be in the output."""

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from vise_jax.errors import UserError
from vise_jax.importing import importer, kinds
from vise_jax.posts import Buttons, RejectLog, read

TABLE = kinds.of_table({"post_id": "id", "image": "file", "comments": "texts", "reactions.love": "hearts"})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several batches and several files, of a few records."""
    monkeypatch.setattr(importer, "_BATCH", 7)
    monkeypatch.setattr(importer, "_POSTS_PER_FILE", 10)


def dumps(directory, submissions: int = 60, comments: int = 300):
    """Write dumps of Reddit's layout, with duplicates and rejects; return their paths and the posts they hold."""
    draw, posts, texts = random.Random(0), {}, defaultdict(dict)
    lines = []
    for number in range(submissions):
        name = f"{draw.randrange(36**4):x}"
        is_image = number % 3 > 0
        ending = "jpg" if is_image else "gifv"
        line = {"id": name, "author": f"author{number}", "url": f"https://i.example/{name}.{ending}", "over_18": False}
        lines += [line] * (1 + (number % 10 == 1))
        if is_image:
            posts[f"t3_{name}"] = None
        else:
            texts[f"t3_{name}"] = {}
    for number in range(comments):
        parent = draw.choice([*posts, *texts, "t3_unknown"])
        line = {"id": f"c{number}", "link_id": parent, "author": "person", "created_utc": draw.randrange(5)}
        line["body"] = "[deleted]" if number % 17 == 0 else f"text {number} 🦊"
        lines += [line] * (1 + (number % 13 == 0))
        if number % 17:
            texts[parent][f"{line['created_utc']:012d} c{number}"] = line["body"]
    draw.shuffle(lines)
    encoded = [json.dumps(line).encode() + b"\n" for line in lines]
    encoded.insert(5, b"{broken\n")
    half = len(encoded) // 2
    (directory / "a.zst").write_bytes(zstandard.compress(b"".join(encoded[:half])))
    (directory / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(encoded[half:])))
    expected = {post_id: [texts[post_id][key] for key in sorted(texts[post_id])] for post_id in sorted(posts)}
    return [directory / "a.zst", directory / "b.jsonl.gz"], expected


def posts_of(output):
    files = sorted(output.glob("*.jsonl"))
    return [post for path in files for post in read(path, RejectLog(path), buttons=Buttons(others="ignore"))]


def content(output):
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def test_the_join_is_that_in_memory(tmp_path):
    paths, expected = dumps(tmp_path)
    (tmp_path / "out" / "images").mkdir(parents=True)
    first = next(iter(expected))
    (tmp_path / "out" / "images" / f"{first.removeprefix('t3_')}.png").write_bytes(b"")
    about = importer.import_posts(paths, kinds.KINDS["reddit"], tmp_path / "out", images=tmp_path / "out" / "images")
    found = posts_of(tmp_path / "out")
    assert {post.post_id: list(post.comments) for post in found} == expected
    assert [post.post_id for post in found] == list(expected)
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == -(-len(expected) // 10)
    assert [post.image for post in found] == [f"images/{first.removeprefix('t3_')}.png"] + [None] * (len(found) - 1)
    assert about["counts"]["posts"] == len(expected)
    assert about["counts"]["comments"] == sum(map(len, expected.values()))
    assert about["counts"]["images_missing"] == len(expected) - 1
    assert about["counts"]["posts_twice"] > 0 < about["counts"]["comments_twice"]
    assert about["rejected"] == {"comment_deleted": 20, "malformed_json": 1}
    # The order of the files changes no byte of the posts.
    importer.import_posts(paths[::-1], kinds.KINDS["reddit"], tmp_path / "again")
    one, other = content(tmp_path / "out"), content(tmp_path / "again")
    assert {name: one[name].replace(b'"images/', b'"') for name in one if name > "00000.jsonl" and name[0] == "0"} == {
        name: other[name] for name in one if name > "00000.jsonl" and name[0] == "0"
    }
    # No user's name, and no words outside the posts.
    everything = b"".join(one.values())
    assert b"author" not in everything
    assert b"person" not in everything
    assert b"text" not in one[importer.DESCRIPTION]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == [".import.lock"]


def test_answers_to_answers_are_comments_of_the_photo_above_them(tmp_path):
    draw, above, lines = random.Random(3), {"photo0": None, "photo1": None}, []
    for number in range(200):
        # A chain of 100, then anywhere; some answer a post that is not there.
        parent = f"reply{number - 1}" if 0 < number < 100 else draw.choice([*above, "elsewhere"])
        above[f"photo{number}" if number > 1 and number % 40 == 0 else f"reply{number}"] = parent
    above |= {"loop0": "loop2", "loop1": "loop0", "loop2": "loop1"}
    for name, parent in above.items():
        line = {"id": name, "in_reply_to_id": parent, "created_at": "2024", "content": f"<p>I am {name}</p>"}
        line["media_attachments"] = [{"id": "1", "type": "image"}] if name.startswith("photo") else []
        lines.append(json.dumps(line))
    draw.shuffle(lines)
    (tmp_path / "a.jsonl").write_text("\n".join(lines[::2]))
    (tmp_path / "b.jsonl").write_text("\n".join(lines[1::2]))
    expected = {name: [] for name in sorted(above) if name.startswith("photo")}
    for name, parent in sorted(above.items()):
        while parent in above and not parent.startswith(("photo", "loop")):
            parent = above[parent]
        if parent in expected:
            expected[parent].append(f"I am {name}")
    importer.import_posts([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], kinds.KINDS["fediverse"], tmp_path / "out")
    assert {post.post_id: list(post.comments) for post in posts_of(tmp_path / "out")} == expected
    assert sum(map(len, expected.values())) > 60


class Killed(BaseException):
    pass


def killed():
    raise Killed


def test_an_interrupted_import_ends_the_same(tmp_path, monkeypatch):
    paths, _ = dumps(tmp_path)
    importer.import_posts(paths, kinds.KINDS["reddit"], tmp_path / "whole")
    draw, kills = random.Random(1), 0
    reads = []

    def after_record():
        reads.append(1)
        if draw.random() < 0.03:
            raise Killed

    real = importer.artifact.atomic_file

    def atomic_file(path):
        if draw.random() < 0.4:
            raise Killed
        return real(path)

    monkeypatch.setattr(importer.artifact, "atomic_file", atomic_file)
    while True:
        try:
            importer.import_posts(paths, kinds.KINDS["reddit"], tmp_path / "killed", after_record=after_record)
        except Killed:
            kills += 1
            assert kills < 500
        else:
            break
    assert kills > 5
    monkeypatch.undo()
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    # What is there is not read again.
    reads.clear()
    importer.import_posts(paths, kinds.KINDS["reddit"], tmp_path / "killed", after_record=after_record)
    assert not reads


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_tables(tmp_path, pack):
    text = 'id,file,texts,hearts\n1,a/1.jpg,"one, two",3\n2,../2.jpg,x,4\n3,,y\n4,,z,"1,000"\n,,w,1\n'
    ending = {bytes: "", gzip.compress: ".gz", zstandard.compress: ".zst"}[pack]
    (tmp_path / f"t.csv{ending}").write_bytes(pack(text.encode("utf-8-sig")))
    for name in ("a/1.jpg", "4.webp"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"")
    (tmp_path / "2.jpg").write_bytes(b"")
    about = importer.import_posts([tmp_path / f"t.csv{ending}"], TABLE, tmp_path / "out")
    found = {post.post_id: post for post in posts_of(tmp_path / "out")}
    assert {key: (post.image, post.comments, post.reactions[4]) for key, post in found.items()} == {
        "1": ("a/1.jpg", ("one, two",), 3),
        "2": (None, ("x",), 4),
        "4": ("4.webp", ("z",), 1000),
    }
    assert about["rejected"] == {"columns_missing_or_many": 1, "post_id_missing": 1}
    assert about["buttons"] == {"love": 1007}
    assert {row["line"] for row in about["rejected_records"]} == {4, 6}


def test_hostile_values(tmp_path):
    lines = [
        '{"id": "\\ud800", "texts": "a\\ud800\\u0000b", "file": "x\\u0000", "hearts": 1}',
        '{"id": "a\\u0000b", "texts": ["c"], "file": "/etc/passwd", "hearts": 1}',
        '{"id": "../../etc/passwd", "texts": ["c"], "file": null, "hearts": 1}',
        '{"id": "' + "x" * 2000 + '", "texts": null, "file": null, "hearts": 1}',
        '{"id": "n", "texts": {"a": 1}, "file": null, "hearts": 1e400}',
        "[" * 100_000,
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    about = importer.import_posts([tmp_path / "t.jsonl"], TABLE, tmp_path / "out")
    found = {post.post_id: post for post in posts_of(tmp_path / "out")}
    assert found.keys() == {"\ufffd", "a\0b", "../../etc/passwd"}
    assert found["\ufffd"].comments == ("a\ufffd\0b",)
    assert not any(post.image for post in found.values())
    assert about["rejected"] == {"comment_no_text": 1, "malformed_json": 1, "post_id_too_long": 1}


def test_what_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,file,hearts\n1,,2\n")
    (tmp_path / "t.jsonl").write_text('{"id": 1, "file": null, "texts": []}\n')
    (tmp_path / "cut.jsonl.zst").write_bytes(zstandard.compress(b'{"id": 1}\n' * 9000 + random.randbytes(999))[:-300])
    out = tmp_path / "out"

    def refused(message, paths, kind=TABLE, output=out, **options):
        with pytest.raises(UserError, match=message):
            importer.import_posts([tmp_path / path for path in paths], kind, output, **options)

    refused(r"t\.csv has no column 'texts': name one that it has \(file, hearts, id", ["t.csv"])
    refused(
        r"t\.jsonl has no column 'hearts': name one that it has \(file, id, texts", ["t.jsonl"], output=tmp_path / "2"
    )
    refused(r"cut\.jsonl\.zst is truncated", ["cut.jsonl.zst"], kinds.KINDS["reddit"], tmp_path / "3")
    refused(r"none\.csv can't be read", ["none.csv"], output=tmp_path / "4")
    refused("give an output directory that holds them", ["t.csv"], output=tmp_path / "5", images=tmp_path / "images")
    # Nothing was read: the corrected command may follow.
    assert not (out / ".import").exists()
    with pytest.raises(Killed):
        importer.import_posts([tmp_path / "t.jsonl"], kinds.KINDS["reddit"], out, after_record=killed)
    refused("begun import of other files", ["t.csv"])
    (tmp_path / "good.csv").write_text("id,file,texts,hearts\n1,,a,2\n")
    importer.import_posts([tmp_path / "good.csv"], TABLE, tmp_path / "6")
    refused("holds the posts of another import", ["t.csv"], output=tmp_path / "6")
    with (
        importer.artifact.lock(tmp_path / "6" / ".import.lock", "busy"),
        pytest.raises(UserError, match="being written by another import"),
    ):
        importer.import_posts([tmp_path / "good.csv"], TABLE, tmp_path / "6")


def test_windows_that_are_too_large(tmp_path, monkeypatch):
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    packed = zstandard.ZstdCompressor(compression_params=parameters)
    chunks = packed.compressobj()
    path = tmp_path / "RS.zst"
    path.write_bytes(chunks.compress(b'{"id": "a", "url": "x.jpg"}\n' * 100) + chunks.flush())
    assert importer.import_posts([path], kinds.KINDS["reddit"], tmp_path / "large")["counts"]["posts"] == 1
    monkeypatch.setattr("vise_jax.posts.readers.MAX_WINDOW", 2**20)
    with pytest.raises(UserError, match=r"RS\.zst needs a larger window than 1 MiB"):
        importer.import_posts([path], kinds.KINDS["reddit"], tmp_path / "out")


def test_a_row_for_each_comment(tmp_path):
    (tmp_path / "t.csv").write_text("post,text\np1,first\np2,x\np1,second\np1,first\n")
    kind = kinds.of_table({"post_id": "post", "comments": "text"})
    about = importer.import_posts([tmp_path / "t.csv"], kind, tmp_path / "out")
    assert {post.post_id: sorted(post.comments) for post in posts_of(tmp_path / "out")} == {
        "p1": ["first", "second"],
        "p2": ["x"],
    }
    assert about["counts"]["comments_twice"] == 1


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_columns_with_dots_in_their_names(tmp_path, name):
    rows = [{"id": "1", "reactions.love": 3, "of": {"text": "a"}}]
    if name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text(json.dumps(rows[0]))
    kind = kinds.of_table({"post_id": "id", "comments": "of.text", "reactions.love": "reactions.love"})
    importer.import_posts([tmp_path / name], kind, tmp_path / "out")
    [post] = posts_of(tmp_path / "out")
    assert (post.comments, post.reactions) == (("a",), (0, 0, 0, 0, 3))


def test_an_import_that_follows_one_that_was_given_up(tmp_path, monkeypatch):
    paths, _ = dumps(tmp_path)
    real = importer.artifact.write_json
    monkeypatch.setattr(importer.artifact, "write_json", lambda path, value: killed())
    with pytest.raises(Killed):
        importer.import_posts(paths, kinds.KINDS["reddit"], tmp_path / "out")
    monkeypatch.setattr(importer.artifact, "write_json", real)
    assert len(list((tmp_path / "out").glob("*.jsonl"))) > 1
    # As the message of the refusal says.
    shutil.rmtree(tmp_path / "out" / ".import")
    (tmp_path / "t.csv").write_text("id,file,texts,hearts\n1,,a,2\n")
    importer.import_posts([tmp_path / "t.csv"], TABLE, tmp_path / "out")
    assert [post.post_id for post in posts_of(tmp_path / "out")] == ["1"]


def test_a_path_spelled_in_another_way_is_not_read_again(tmp_path, monkeypatch):
    paths, _ = dumps(tmp_path)
    whole = importer.import_posts(paths, kinds.KINDS["reddit"], tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(importer, "_join_threads", lambda database: killed())
        with pytest.raises(Killed):
            importer.import_posts(paths, kinds.KINDS["reddit"], tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    resumed = importer.import_posts([Path(path.name) for path in paths], kinds.KINDS["reddit"], tmp_path / "out")
    assert resumed == whole


@pytest.mark.parametrize(
    ("line", "kind", "rejected"),
    [
        ('{"other": 1}', "fediverse", r"3 records were rejected \(id_missing 3\)"),
        ('{"id": "1", "content": "a", "in_reply_to_id": "2", "created_at": "2024"}', "fediverse", "0 records"),
        ('{"id": "1", "content": "a"}', "reddit", "0 records"),
        ("", "reddit", "0 records"),
    ],
)
def test_an_export_of_another_kind_or_without_posts(tmp_path, line, kind, rejected):
    (tmp_path / "t.jsonl").write_text(f"{line}\n" * 3)
    with pytest.raises(UserError, match=f"No post was found, and {rejected}"):
        importer.import_posts([tmp_path / "t.jsonl"], kinds.KINDS[kind], tmp_path / "out")
    # The corrected command may follow.
    (tmp_path / "t.csv").write_text("id,file,texts,hearts\n1,,a,2\n")
    assert importer.import_posts([tmp_path / "t.csv"], TABLE, tmp_path / "out")["counts"]["posts"] == 1


def test_input_with_the_name_of_a_posts_file_is_refused_before_it_is_replaced(tmp_path):
    path = tmp_path / "00007.jsonl"
    path.write_text('{"id": 1, "file": null, "texts": ["a"], "hearts": 2}\n')
    with pytest.raises(UserError, match=r"00007\.jsonl has the name of a posts file"):
        importer.import_posts([path], TABLE, tmp_path)
    assert path.read_text().startswith('{"id": 1')


def test_files_of_one_name_size_and_time_are_both_read(tmp_path):
    paths = [tmp_path / name / "t.csv" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f"id,file,texts,hearts\n{path.parent.name},,x,2\n")
        os.utime(path, (0, 0))
    importer.import_posts(paths, TABLE, tmp_path / "out")
    assert [post.post_id for post in posts_of(tmp_path / "out")] == ["a", "b"]


def test_an_image_and_a_warning_of_any_row_count(tmp_path):
    (tmp_path / "t.csv").write_text("id,file,texts,cw\n1,x.jpg,first,true\n1,,second,\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.jpg").touch()
    kind = kinds.of_table({"post_id": "id", "image": "file", "comments": "texts", "sensitive": "cw"})
    importer.import_posts([tmp_path / "t.csv"], kind, tmp_path / "out")
    [post] = [json.loads(line) for line in (tmp_path / "out" / "00000.jsonl").read_text().splitlines()]
    assert (post["image"], post["sensitive"], sorted(post["comments"])) == ("x.jpg", True, ["first", "second"])


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_packings_that_are_not_read(tmp_path, pack):
    (tmp_path / "RS_2010-01").write_bytes(pack(b'{"id": "a"}\n'))
    with pytest.raises(UserError, match="RS_2010-01 is compressed by bzip2, xz or zip, which are not read"):
        importer.import_posts([tmp_path / "RS_2010-01"], kinds.KINDS["reddit"], tmp_path / "out")


@pytest.mark.parametrize(
    "first", ["Jane Doe,call me at 555-0100", "17,yes", "a person,what a day!", "Jane Doe,so cute"]
)
def test_words_of_a_table_without_a_header_are_not_shown(tmp_path, first):
    (tmp_path / "t.csv").write_text(f"{first}\nJohn Doe,b\n")
    with pytest.raises(UserError, match="has none of the columns id, file, texts, hearts in its first line") as error:
        importer.import_posts([tmp_path / "t.csv"], TABLE, tmp_path / "out")
    assert not any(cell in str(error.value).replace(str(tmp_path), "") for cell in first.split(","))


@pytest.mark.parametrize("limit", [2_000, 600_000])
def test_a_disk_that_is_full(tmp_path, limit):
    draw = random.Random(0)
    posts = ({"id": number, "file": None, "texts": [draw.randbytes(10_000).hex()], "hearts": 1} for number in range(99))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, posts)))
    program = (
        "import pathlib, resource, signal, sys\n"
        "from vise_jax.errors import Interrupted\n"
        "from vise_jax.importing import importer, kinds\n"
        "table = kinds.of_table({'post_id': 'id', 'image': 'file', 'comments': 'texts', 'reactions.love': 'hearts'})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        "    importer.import_posts([pathlib.Path('t.jsonl')], table, pathlib.Path('out'))\n"
        "except Interrupted as error:\n"
        "    sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "free some space on its disk, and run the same command again" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    about = importer.import_posts([tmp_path / "t.jsonl"], TABLE, tmp_path / "out")
    assert about["counts"]["posts"] == 99
