"""Each script used wrongly: one sentence that says what is wrong, where, and what to do; never a traceback."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
from wrong_uses import COMMANDS, ROOT, End, Runner, Use, problems, uses


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    pytest.importorskip("torch")
    return Runner(tmp_path_factory.mktemp("uses"))


# The long form is benchmarks/wrong_uses.py.
@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_uses_end_with_a_sentence(runner: Runner, command: str) -> None:
    for use in uses(command, 8, seed=1):
        end = runner.run(command, use)
        assert not problems(use, end), (use.words, end)


def test_all_scripts_are_walked() -> None:
    assert {command.split()[0] for command in COMMANDS} == {path.name for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "label.py hash"])
def test_there_are_forty_wrong_uses_of_each(command: str) -> None:
    assert len({use.words for use in uses(command, 40)}) >= 38


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (End(1, "Traceback (most recent call last):\nKeyError: 3"), ["a traceback"]),
        (End(70, ""), ["a traceback"]),
        (End(1, ""), ["no sentence"]),
        (End(1, "it failed"), ["no sentence"]),
        (End(1, "train.py: a/photos failed."), ["no advice"]),
        (End(1, "train.py: photos is no such file: give another one."), []),
        (End(1, "train.py: --posts is no such file: give another one."), []),
        (End(1, "train.py: labels.posts can't be read: give another one."), []),
        (End(1, "train.py: a file can't be read: give another one."), ["not where"]),
        (End(0, ""), []),
    ],
)
def test_problems(end: End, found: list[str]) -> None:
    assert problems(Use(("--config=c", "--posts=a/photos"), ("posts",)), end) == found
