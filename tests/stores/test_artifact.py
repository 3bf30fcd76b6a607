"""Files, directories and locks in object stores."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import botocore.exceptions
import google.auth.exceptions
import pytest

from vise_jax import artifact, posts
from vise_jax.errors import UserError


def test_a_file_is_written_and_read_as_on_disk(store) -> None:
    root = artifact.location(f"{store.root}/some/where")
    assert artifact.is_remote(root)
    assert artifact.sizes(root) == {}
    artifact.write_json(root / "a.json", {"b": 1})
    artifact.write_text(root / "deeper" / "c.txt", "text")
    assert json.loads((root / "a.json").read_bytes()) == {"b": 1}
    assert artifact.sizes(root) == {"a.json": 13}
    assert artifact.read_files(root, ".json") == {"a.json": b'{\n  "b": 1\n}\n'}
    assert [str(path) for path in artifact.find(f"{store.root}/some/*/*.json")] == [f"{store.root}/some/where/a.json"]
    assert artifact.begin_range(root / "a.json", 2, 5)() == b'  "b"'
    assert artifact.begin_range(root / "a.json", 10, 500)() == b"\n}\n"
    with pytest.raises(FileNotFoundError):
        artifact.begin_range(root / "none", 0, 1)()
    first = artifact.version(root / "a.json")
    artifact.write_json(root / "a.json", {"b": 2})
    assert artifact.version(root / "a.json") != first
    artifact.remove_tree(root)
    assert artifact.sizes(root) == {}
    artifact.remove_tree(root)


@pytest.mark.parametrize("end", [b"", b"\r", b"\n", b"\r\n", b"\0"])
def test_the_last_bytes_of_an_object_are_kept(store, end: bytes, tmp_path: Path) -> None:
    path = artifact.location(f"{store.root}/object")
    (tmp_path / "object").write_bytes(b"content" + end)
    artifact.upload(tmp_path, ["object"], path.parent)
    assert path.read_bytes() == b"content" + end
    path.write_bytes(end + b"content" + end)
    assert path.read_bytes() == end + b"content" + end


def test_a_file_of_known_size_takes_one_request(store) -> None:
    path, line = artifact.location(f"{store.root}/posts.jsonl"), b'{"post_id": "1"}\n'
    path.write_bytes(line)
    before = store.faults.requests
    with artifact.open_file(path, len(line)) as file:
        assert file.read() == line
    assert list(artifact.blocks(path, len(line))) == [line]
    assert posts.split_file(path, 2**20, len(line)) == (hashlib.sha256(line).hexdigest(), [((0, 0), len(line))])
    assert [post.post_id for post in posts.read(path, posts.RejectLog(path), size=len(line))] == ["1"]
    assert store.faults.requests - before == 4


def test_nothing_is_written_where_the_block_fails(store) -> None:
    path = artifact.location(f"{store.root}/a.json")
    with contextlib.suppress(RuntimeError), artifact.atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert artifact.sizes(path.parent) == {}
    with contextlib.suppress(RuntimeError), artifact.atomic_directory(path.parent / "made") as directory:
        (directory / "half").write_text("half")
        raise RuntimeError
    assert artifact.sizes(path.parent / "made") == {}


def test_the_description_of_a_directory_is_written_last(store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = artifact.location(f"{store.root}/made")
    written, real = [], path.fs.put

    def put(sources: list[str], targets: list[str]) -> None:
        written.extend(Path(target).name for target in targets)
        real(sources, targets)

    monkeypatch.setattr(path.fs, "put", put)
    with artifact.atomic_directory(path, "about.json") as directory:
        for name in ("about.json", "z.bin", "vocabulary.json"):
            (directory / name).write_text("{}")
        (directory / "inner").mkdir()
        (directory / "inner" / "deep").write_text("")
    assert written[-1] == "about.json"
    assert sorted(artifact.sizes(path)) == ["about.json", "vocabulary.json", "z.bin"]
    with artifact.local_copy(path) as copy:
        assert (copy / "inner" / "deep").is_file()
        assert (copy / "z.bin").read_text() == "{}"
    assert not copy.exists()
    with pytest.raises(UserError, match="already exists"), artifact.atomic_directory(path, "about.json"):
        pass


def test_a_directory_that_a_killed_process_left_is_written_again_and_another_is_not(store) -> None:
    path = artifact.location(f"{store.root}/made")

    def write() -> None:
        with artifact.atomic_directory(path, "about.json") as directory:
            (directory / "about.json").write_text("{}")
            (directory / "a.bin").write_text("whole")

    artifact.write_text(path / "a.bin", "of a killed process")
    write()
    assert artifact.read_files(path, "") == {"a.bin": b"whole", "about.json": b"{}"}
    artifact.remove_tree(path)
    artifact.write_text(path / "thesis.tex", "someone else's")
    with pytest.raises(UserError, match="already exists"):
        write()
    assert artifact.entries(path) == {"thesis.tex"}


def test_a_copy_on_disk_stays_in_its_directory_and_tells_versions_apart(store, monkeypatch) -> None:
    path = artifact.location(f"{store.root}/photos")
    artifact.write_text(path / "cats" / "1.jpg", "one")
    with artifact.local_copy(path) as copy:
        first = (copy / "cats" / "1.jpg").stat()
    with artifact.local_copy(path / "cats" / "1.jpg") as copy:
        assert (copy.read_text(), copy.name) == ("one", "1.jpg")
    with artifact.local_copy(path) as copy:
        again = (copy / "cats" / "1.jpg").stat()
    artifact.write_text(path / "cats" / "1.jpg", "two")
    with artifact.local_copy(path) as copy:
        assert (copy / "cats" / "1.jpg").stat().st_mtime_ns != first.st_mtime_ns == again.st_mtime_ns
        assert copy.name == "photos"
    with pytest.raises(UserError, match="no such bucket or object"), artifact.local_copy(path / "none"):
        pass
    # Stores allow any name, the servers of these tests don't.
    monkeypatch.setattr(path.fs, "find", lambda root, detail: {f"{root}/../escaped": {"size": 1, "generation": "1"}})
    with pytest.raises(UserError, match="no path in it"), artifact.local_copy(path):
        pass


def test_a_lock_keeps_others_out_until_it_ends(store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "_RENEWED", 0.05)
    path = artifact.location(f"{store.root}/lock")
    with artifact.lock(path, "busy"):
        with pytest.raises(UserError, match="busy"), artifact.lock(path, "busy"):
            pass
        assert path.exists()
    assert not path.exists()
    with artifact.lock(path, "busy"):
        pass


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_the_lock_of_a_killed_process_is_taken_over(store, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holder = {
        "host": socket.gethostname() if host == "here" else "other",
        "process": ended.pid,
        "id": "",
        "renewals": 0,
    }
    path = artifact.location(f"{store.root}/lock")
    path.write_bytes(json.dumps(holder).encode())
    if host == "here":
        monkeypatch.setattr(artifact, "time", None)  # no waiting
    else:
        monkeypatch.setattr(artifact, "_RENEWED", 0.05)
        monkeypatch.setattr(artifact, "_ABANDONED", 0.1)
    with artifact.lock(path, "busy"):
        assert json.loads(path.read_bytes())["process"] == os.getpid()


def test_a_process_whose_lock_was_taken_ends(store) -> None:
    path = artifact.location(f"{store.root}/lock")
    script = (
        "import sys, time; from vise_jax import artifact; artifact._RENEWED = 0.05\n"
        "with artifact.lock(artifact.location(sys.argv[1]), 'busy'):\n    print('holds', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "holds\n"
        while process.poll() is None:
            path.write_bytes(b'{"id": "of another"}')
        assert process.returncode == 1
        assert "was taken by another process" in process.stderr.read()


def test_the_lock_is_a_conditional_create(store, monkeypatch: pytest.MonkeyPatch) -> None:
    path, conditions = artifact.location(f"{store.root}/lock"), []
    pipe = path.fs.pipe_file

    def pipe_file(key: str, content: bytes, mode: str = "overwrite") -> None:
        conditions.append(mode)
        pipe(key, content, mode=mode)

    monkeypatch.setattr(path.fs, "pipe_file", pipe_file)
    with artifact.lock(path, "busy"):
        pass
    assert conditions == ["create"]


@pytest.mark.slow
def test_failed_and_cut_requests_are_repeated(store, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = artifact.location(f"{store.root}/a.bin"), os.urandom(100_000)
    path.write_bytes(content)
    store.faults.refused = store.faults.cut = 0.1
    for offset in range(0, 30_000, 2_000):
        assert artifact.begin_range(path, offset, 2_000)() == content[offset : offset + 2_000]


def test_a_store_that_fails_is_one_sentence(store, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = artifact.location(f"{store.scheme}://no-such-bucket/a.json")
    with pytest.raises(UserError, match=r"no-such-bucket/a\.json can't be written"):
        artifact.write_json(missing, {})
    with pytest.raises(UserError, match=r"no-such-bucket/a\.json can't be read"):
        artifact.version(missing)


def test_an_unknown_scheme_and_missing_libraries_are_named(store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="ftp://host/x is a URL of the unknown scheme ftp"):
        artifact.location("ftp://host/x")
    monkeypatch.setitem(sys.modules, "upath", None)
    extra = {"gs": "gcs", "s3": "s3"}[store.scheme]
    with pytest.raises(UserError, match=rf"pip install -e '.\[{extra}\]'"):
        artifact.location(f"{store.root}/x")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError("denied"), "with these credentials"),
        (botocore.exceptions.NoCredentialsError(), "there are no credentials"),
        (google.auth.exceptions.DefaultCredentialsError("none"), "there are no credentials"),
        (aiohttp.ClientConnectionError("no answer"), "refused or failed .no answer"),
        (
            OSError(
                22, "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'"
            ),
            "in another region .*expecting 'eu-west-1'.*: name it in AWS_DEFAULT_REGION",
        ),
        (OSError(78, "The bucket must be addressed using the specified endpoint."), "in another region"),
        (PermissionError("The eu-west-1 location constraint is incompatible for this region."), "in another region"),
    ],
)
def test_what_a_store_refuses_is_one_sentence(store, error: Exception, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence), artifact.explained(artifact.location(f"{store.root}/a"), "read"):
        raise error


def test_a_mistake_of_ours_is_no_error_of_the_store(store) -> None:
    with pytest.raises(TypeError), artifact.explained(artifact.location(f"{store.root}/a"), "read"):
        raise TypeError
