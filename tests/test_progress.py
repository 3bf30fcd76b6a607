"""Off a terminal: plain lines on standard error, the last one when it is done. On a terminal: a bar."""

import io

from vise_jax.progress import Progress, track


def test_the_end_is_reported_once(capsys, monkeypatch):
    monkeypatch.setattr("vise_jax.progress._SECONDS_BETWEEN_LINES", 0.0)
    with Progress("labeling", 2_000, "posts") as progress:
        progress.advance(1_500, "loss 1.0")
        progress.advance(500)
    captured = capsys.readouterr()
    assert captured.out == ""
    first, last = captured.err.splitlines()
    assert first.startswith("labeling: 1,500 of 2,000 posts, ")
    assert " s left, loss 1.0" in first
    assert last.startswith("labeling: 2,000 of 2,000 posts, ")
    assert "left" not in last


def test_a_short_job_prints_only_its_end_and_an_idle_one_nothing(capsys):
    assert list(track(range(3), "reading", "posts")) == [0, 1, 2]
    assert capsys.readouterr().err.startswith("reading: 3 posts, ")
    with Progress("labeling", 5, "posts", done=5):
        pass
    assert capsys.readouterr().err == ""


def test_a_resumed_job_counts_on(capsys):
    with Progress("training", 10, "images", done=6) as progress:
        progress.advance(4)
    assert capsys.readouterr().err.startswith("training: 10 of 10 images")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch):
    screen = _Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with Progress("labeling", 2_000, "posts") as progress:
        progress.advance(1_500, "loss 1.0")
        progress.print("left out: [one]")
        progress.advance(500)
    shown = screen.getvalue()
    assert "left out: [one]\n" in shown
    assert "2000/2000" in shown
    assert "posts/s" in shown
    assert "loss 1.0" in shown


def test_other_processes_are_quiet(capsys, monkeypatch):
    monkeypatch.setattr("vise_jax.progress._SECONDS_BETWEEN_LINES", 0.0)
    with Progress("labeling", 2, "posts", quiet=True) as progress:
        progress.advance(2)
        progress.print("left out: one")
    assert capsys.readouterr().err == ""
