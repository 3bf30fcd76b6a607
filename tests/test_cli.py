"""Flags and exit status of the commands, in this process."""

import logging
import signal
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from vise_jax import cli
from vise_jax.errors import UserError

DESCRIPTION = "Do a thing.\n\nExample:\n    python thing.py --count 3\n"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """From words of a command line and a main function to its exit status and output."""
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'rate': 0.5}).lock()\n"
    )
    logger = logging.getLogger("vise_jax")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    # Workers of pytest ignore it.
    on_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(*words: str, main=lambda words: None):
        values = flags.FlagValues()
        flags.DEFINE_integer("count", None, "Number of things.", flag_values=values)
        flags.DEFINE_string("name", None, "Name of a thing.", flag_values=values)
        config_flags.DEFINE_config_file("config", None, flag_values=values, lock_config=True)
        monkeypatch.setattr(cli.flags, "FLAGS", values)
        monkeypatch.setattr("sys.argv", ["/somewhere/thing.py", f"--config={config}", *words])
        status = 0
        try:
            cli.run(lambda words: main(words), DESCRIPTION)
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr(), values

    yield run
    logger.setLevel(level)
    logger.propagate, logger.handlers = propagate, handlers
    signal.signal(signal.SIGINT, on_interrupt)


def test_help_is_the_description_and_the_flags(command):
    status, out, _, _ = command("--count", "3", "--help")
    assert status == 0
    assert out.startswith(DESCRIPTION.strip())
    # After "--", words are no flags.
    assert command("--", "--help", main=cli.no_words)[0] == 1


def test_main_gets_the_values_and_the_words(command):
    seen = []
    status, _, _, values = command("--count=3", "--config.rate=0.25", "word", main=seen.extend)
    assert (status, values.count, values.config.rate, seen) == (0, 3, 0.25, ["word"])


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--count=three"], 2, "flag --count=three: invalid literal for int()"),
        (["--cuont=3"], 2, "Unknown command line flag 'cuont'"),
        (["--config.raet=1"], 2, "the config has no key raet, did you mean rate"),
        (["--config=/nowhere.py"], 2, "the config '/nowhere.py' can't be loaded ("),
        (["--config", "/nowhere.py"], 2, "the config '/nowhere.py' can't be loaded ("),
    ],
)
def test_wrong_flags(command, words, status, message):
    result = command(*words)
    assert result[0] == status
    assert result[2].startswith("thing.py: ")
    assert message in result[2]
    assert result[2].count("\n") == 1


def failing(error: BaseException):
    def main(words: list[str]) -> None:
        raise error

    return main


def test_mistakes_and_interruptions(command):
    assert command(main=failing(UserError("There is no sea.")))[:3] == (1, "", "thing.py: There is no sea.\n")
    status, _, err, _ = command(main=failing(KeyboardInterrupt()))
    assert (status, err) == (130, "thing.py: interrupted: run the same command again to resume.\n")
    # Our own mistakes keep their traceback.
    with pytest.raises(ZeroDivisionError):
        command(main=failing(ZeroDivisionError()))


def test_an_interruption_that_other_code_makes_another_error_of_is_one(command):
    def main(words: list[str]) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            # As TensorFlow does.
            raise AttributeError("'SymbolicTensor' object has no attribute '_type_spec'") from None

    status, _, err, _ = command(main=main)
    assert (status, err) == (130, "thing.py: interrupted: run the same command again to resume.\n")


def test_missing_flags_and_words_too_many(command):
    values = command()[3]
    with pytest.raises(UserError, match="--count is missing: see --help"):
        cli.required(values["count"])
    assert cli.required(command("--count=0")[3]["count"]) == 0
    with pytest.raises(UserError, match="'sea' is not a flag"):
        cli.no_words(["sea"])


def test_messages_of_the_library_go_to_standard_error_once(command):
    def main(words: list[str]) -> None:
        logging.getLogger("vise_jax.data").info("12 images are left out")

    for _ in range(2):
        assert command(main=main)[:3] == (0, "", "12 images are left out\n")


def test_a_path_on_disk_is_no_url(command):
    values = command("--name=my/run")[3]
    assert cli.path(values["name"]) == Path("my/run") == cli.location(values["name"])
    values = command("--name=gs://bucket/run")[3]
    with pytest.raises(UserError, match="--name=gs://bucket/run has to be on disk"):
        cli.path(values["name"])
    with pytest.raises(UserError, match="unknown scheme ftp"):
        cli.location(command("--name=ftp://host/run")[3]["name"])
