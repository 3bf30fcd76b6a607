"""Each script used wrongly: one sentence that says what is wrong, where, and what to do; never a traceback."""

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
from wrong_uses import COMMANDS, ROOT, End, Runner, Use, gives_advice, problems, uses


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    pytest.importorskip("torch")
    return Runner(tmp_path_factory.mktemp("uses"))


# The long form is benchmarks/wrong_uses.py.
@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_uses_end_with_a_sentence(runner: Runner, command: str) -> None:
    # Else another value than the wrong one would be refused.
    assert runner.right(command).status == 0
    for use in uses(command, 8, seed=1):
        end = runner.run(command, use)
        assert not problems(use, end), (use.words, end)


def test_every_error_in_the_sources_says_what_to_do() -> None:
    sources = [*(ROOT / "vise_jax").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    raised = [
        (path.name, _text(call.args[0]))
        for path in sources
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "UserError" and call.args
    ]
    assert len(raised) > 300
    # Where the end is another value, so may be the advice.
    assert [
        message for message in raised if not message[1].endswith(("{}", "{}.")) and not gives_advice(message[1])
    ] == []


def _text(node: ast.expr) -> str:
    """Return the text of a string that is put together, with {} for what only a run knows."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(parts):
            return "".join(map(_text, parts))
        case ast.BinOp(left, _, right):
            return _text(left) + _text(right)
    return "{}"


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


@pytest.mark.parametrize(
    ("words", "sentence", "found"),
    [
        (("hash",), "hash has no PHOTO: name one.", []),
        (("hash", ""), " can't be read: check it.", ["not where"]),
        (("hash", "s3://"), "s3:// names no bucket: give s3://BUCKET.", []),
        (("hash",), "something is missing: name one.", ["not where"]),
        (("hash", "a/photos"), "photos has no hash: give an image file.", []),
        (("hash", "a/photos"), "it has no hash: give an image file.", ["not where"]),
    ],
)
def test_a_word_without_a_flag_is_named(words: tuple[str, ...], sentence: str, found: list[str]) -> None:
    assert problems(Use(words, ("",)), End(1, f"label.py: {sentence}")) == found
