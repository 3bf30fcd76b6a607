"""Command lines: help with an example, one sentence for a user's mistake, the exit status."""

import errno
import functools
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import config_flags

from vise_jax import artifact
from vise_jax import logging as vise_logging
from vise_jax.errors import UserError


def define_config() -> flags.FlagHolder:
    """Define `--config FILE.py[:ARGUMENT]`, whose keys `--config.section.key=value` overrides."""
    return config_flags.DEFINE_config_file(
        "config", None, "Experiment, e.g. configs/demo.py; --config.SECTION.KEY=VALUE changes a key.", lock_config=True
    )


def required(flag: flags.FlagHolder) -> Any:
    """Return the value of a flag that must be given.

    Raises:
        UserError: the flag was not given, or is empty, as a variable that a shell doesn't know.
    """
    if flag.value is None or flag.value == "":
        what = "missing" if flag.value is None else "empty"
        raise UserError(f"--{flag.name} is {what}: see --help for an example.")
    return flag.value


def path(flag: flags.FlagHolder) -> Path:
    """Return the path on disk that a flag must give.

    Raises:
        UserError: the flag was not given, or is a URL.
    """
    if "://" in (value := required(flag)):
        raise UserError(f"--{flag.name}={value} has to be on disk; docs/object-stores.md lists what may be a URL.")
    return Path(value)


def location(flag: flags.FlagHolder) -> Path:
    """Return the path or the URL of an object store that a flag must give, see `artifact.location`.

    Raises:
        UserError: the flag was not given, or its store can't be used.
    """
    return artifact.location(required(flag))


def no_words(words: list[str]) -> None:
    """Check that nothing but flags was given.

    Raises:
        UserError: names the first word too many.
    """
    if words:
        raise UserError(f"{words[0]!r} is not a flag of this command: see --help for an example.")


def run(main: Callable[[list[str]], None], description: str) -> None:
    """Parse the flags and call `main` with the positional arguments.

    Exit status: 0 success, 1 a `UserError` (one sentence on standard error), 2 invalid flags, 130 interrupted.

    Args:
        main: the command.
        description: the script's docstring, with an example.
    """
    program = os.path.basename(sys.argv[0])
    given = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv
    if any(word in ("-h", "-help", "--help") for word in given):
        print(description.strip(), end="\n\n")
        print("FLAGS", flags.FLAGS.module_help(__name__), flags.FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    logging.set_verbosity(logging.WARNING)
    vise_logging.to_stderr()
    sys.unraisablehook = _unraisable
    threading.excepthook = _in_thread
    guarded(program, functools.partial(main, _parse(program)))


def guarded(program: str, call: Callable[[], None]) -> None:
    """Call a function, and end the process as `run` does where it refuses or is interrupted.

    Args:
        program: named before the sentence.
        call: the function. Its other errors are raised.
    """
    interrupted = _note_interrupts()
    try:
        call()
    except (Exception, KeyboardInterrupt) as error:
        # TensorFlow's native code turns a KeyboardInterrupt into other errors.
        if interrupted.is_set() or isinstance(error, KeyboardInterrupt):
            _fail(program, "interrupted: run the same command again to resume.", 130)
        if isinstance(error, UserError):
            _fail(program, str(error), 1)
        if isinstance(error, OSError) and error.filename is not None:
            # Names that are too long, files in the place of directories, no permission: whatever the system refuses.
            _fail(program, f"{error.filename} can't be used ({error.strerror}): check the path and its permissions.", 1)
        raise


def _note_interrupts() -> threading.Event:
    """Return an event that is set once Ctrl-C was pressed, which raises a KeyboardInterrupt as before."""
    pressed = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.default_int_handler(number, frame)

    # A shell has background jobs ignore it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, on_interrupt)
    return pressed


def _unraisable(raised: Any) -> None:
    # When an array of a checkpoint is damaged, TensorStore's threads report the others after Orbax has given up.
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def _in_thread(raised: threading.ExceptHookArgs) -> None:
    # TensorBoard's thread reports a full disk, which ends the command in its main thread.
    if not (isinstance(raised.exc_value, OSError) and raised.exc_value.errno == errno.ENOSPC):
        threading.__excepthook__(raised)


def _parse(program: str) -> list[str]:
    try:
        words = flags.FLAGS(sys.argv)[1:]
        # A file that can't be loaded raises when its config is first read.
        _ = "config" in flags.FLAGS and flags.FLAGS.config and flags.FLAGS.config.keys
    except UserError as error:
        _fail(program, str(error), 1)
    except (AttributeError, KeyError) as error:
        if "get_config" in str(error):
            _fail(program, f"{_config_file()} has no function get_config: give a config, e.g. configs/demo.py.", 2)
        if " object has no attribute" in str(error):
            _fail(program, f"get_config() of {_config_file()} returns no config: give one, e.g. configs/demo.py.", 2)
        # ml_collections' message has the key first, and a suggestion after "did you mean".
        words = re.findall(r"\w{2,}", str(error).replace("\\n", " "))
        hint = f", did you mean {words[words.index('mean') + 1]}" if "mean" in words else ""
        _fail(program, f"the config has no key {words[0]}{hint}: see vise_jax/config.py for the keys there are.", 2)
    except OSError as error:
        reason = _last_line(error.__cause__ or error)
        _fail(program, f"the config {_config_file()!r} can't be loaded ({reason}): check its path.", 2)
    except flags.Error as error:
        if "get_config()" in str(error):
            _fail(program, f"the config {_config_file()!r} can't be loaded ({_last_line(error)}): correct it.", 2)
        _fail(program, f"{_last_line(error)} (see --help)", 2)
    except Exception as error:  # a config is a program
        reason = f"{type(error).__name__}: {_last_line(error)}"
        _fail(program, f"the config {_config_file()!r} can't be loaded ({reason}): correct it.", 2)
    return words


def _config_file() -> str:
    """Return the value of --config on the command line."""
    value = ""
    for word, following in itertools.pairwise([*sys.argv, ""]):
        if word == "--config":
            value = following
        elif word.startswith("--config="):
            value = word.removeprefix("--config=")
    return value


def _last_line(error: BaseException) -> str:
    """Return a message on one line, without a traceback that it may hold."""
    message = str(error)
    return message.strip().splitlines()[-1] if "Traceback" in message else " ".join(message.split())


def _fail(program: str, sentence: str, status: int) -> NoReturn:
    print(f"{program}: {sentence}", file=sys.stderr)
    sys.exit(status)
