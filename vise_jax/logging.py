"""Logging: messages of the library go to standard error and, during training, to `train.log` of the run."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

_LOGGER = logging.getLogger("vise_jax")


class _StderrHandler(logging.Handler):
    """Write to the current `sys.stderr`, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _FileHandler(logging.FileHandler):
    """Leave a message out where the disk is full: what else is written says so."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def to_stderr() -> None:
    """Show messages of level INFO and above, without prefix, on standard error."""
    _LOGGER.setLevel(logging.INFO)
    # Libraries may add a handler to the root logger, which would show messages twice.
    _LOGGER.propagate = False
    if not any(isinstance(handler, _StderrHandler) for handler in _LOGGER.handlers):
        _LOGGER.addHandler(_StderrHandler())


@contextlib.contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Append messages with date and time to a file until the block ends."""
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = _LOGGER.level
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.addHandler(handler)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
        handler.close()
