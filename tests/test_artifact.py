"""Folders are whole or absent."""

import json
import os
import signal
import subprocess
import sys

import pytest

from vise_jax import artifact
from vise_jax.errors import UserError


def test_a_directory_appears_when_it_is_complete(tmp_path):
    directory = tmp_path / "made" / "here"
    with artifact.atomic_directory(directory) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("1")
        assert not directory.exists()
    assert (directory / "inner" / "a").read_text() == "1"
    assert list(directory.parent.iterdir()) == [directory]


def test_an_error_leaves_nothing(tmp_path):
    def fail_halfway() -> None:
        with artifact.atomic_directory(tmp_path / "here") as temporary:
            (temporary / "a").write_text("1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_replaced(tmp_path):
    directory = tmp_path / "here"
    directory.mkdir()
    with artifact.atomic_directory(directory) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(UserError, match="already exists"), artifact.atomic_directory(directory):
        pass
    assert (directory / "a").read_text() == "1"


def test_fingerprints_ignore_the_order_of_keys_and_see_values():
    assert artifact.fingerprint({"a": 1, "b": [2]}) == artifact.fingerprint({"b": [2], "a": 1})
    assert artifact.fingerprint({"a": 1}) != artifact.fingerprint({"a": 2})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "has no thing.json"),
        ("{", "not valid JSON"),
        ("[]", "format version None"),
        ('{"format_version": 7}', "format version 7"),
    ],
)
def test_a_wrong_description_is_named(tmp_path, text, words):
    if text is not None:
        (tmp_path / "thing.json").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        artifact.read_description(tmp_path, "thing.json", version=1, made_by="make.py")
    assert "make.py" in str(caught.value)


def test_json_is_written_sorted_and_read_back(tmp_path):
    artifact.write_json(tmp_path / "a.json", {"b": "❤", "a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1, "b": "❤"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_lock_is_held_once_and_ends_with_its_block(tmp_path):
    with artifact.lock(tmp_path / "lock", "busy"):
        with pytest.raises(UserError, match="busy"), artifact.lock(tmp_path / "lock", "busy"):
            pass
        assert (tmp_path / "lock").is_file()
    with artifact.lock(tmp_path / "lock", "busy"):
        pass


def test_processes_with_one_pid_on_two_hosts_have_different_temporary_names(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 1)
    with artifact.atomic_file(tmp_path / "a") as one, artifact.atomic_file(tmp_path / "a") as two:
        assert one.name != two.name


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        artifact.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_of_a_directory_is_removed(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from vise_jax import artifact\n"
        "with artifact.atomic_directory(Path(sys.argv[1])) as directory:\n"
        "    (directory / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "made")], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    # One of a process that is alive, and one of another host.
    alive, elsewhere = (left.with_name(left.name.replace(*pair)) for pair in _others(left.name))
    alive.mkdir()
    elsewhere.mkdir()
    with artifact.atomic_directory(tmp_path / "made") as directory:
        (directory / "whole").write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "made", alive, elsewhere])


def _others(name: str) -> list[tuple[str, str]]:
    process = name.split("-")[-2]
    return [(f"-{process}-", f"-{os.getpid()}-"), (".tmp-", ".tmp-other-")]


def test_a_directory_with_a_link_is_not_written_into(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    artifact.refuse_links(tmp_path / "a")
    artifact.refuse_links(tmp_path / "nowhere")
    (tmp_path / "a" / "b" / "c").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="b/c is a link"):
        artifact.refuse_links(tmp_path / "a")


def test_a_file_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "other").write_text("other")
    (tmp_path / "a").symlink_to(tmp_path / "other")
    artifact.write_text(tmp_path / "a", "new")
    assert (tmp_path / "other").read_text() == "other"
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a").is_symlink()


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from vise_jax import artifact\n"
        "with artifact.atomic_file(Path(sys.argv[1])) as file:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "made")], check=False)
    (left,) = tmp_path.iterdir()
    alive, elsewhere = (left.with_name(left.name.replace(*pair)) for pair in _others(left.name))
    alive.touch()
    elsewhere.touch()
    artifact.make_directory(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, elsewhere])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"step": 1}\n{"step"; 2}\n', r"log\.jsonl is damaged .*delete its line 2"),
        ('{"step": 1}\n\n', "delete its line 2"),
        ('{"step": 1}\n{"stop": 2}\n', "no step in its line 2: delete the line"),
        ("[1]\n", "no step in its line 1"),
    ],
)
def test_a_damaged_line_of_a_log_is_named(tmp_path, text, words):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(UserError, match=words):
        artifact.json_lines(tmp_path / "log.jsonl", ("step",))


def test_the_last_line_of_a_log_may_be_cut_short(tmp_path):
    assert artifact.json_lines(tmp_path / "none.jsonl", ("step",)) == []
    # A carriage return ends no line.
    lines = ['{"step": 1, "text": "\\u2028"}\r\n', '{"step": 2}\n']
    (tmp_path / "log.jsonl").write_bytes(("".join(lines) + '{"step": 3}').encode())
    assert [line for line, _ in artifact.json_lines(tmp_path / "log.jsonl", ("step",))] == lines
