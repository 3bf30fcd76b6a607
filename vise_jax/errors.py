"""The one exception that a user is meant to read."""

import re

_CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """An error that the user can correct.

    The message says in one sentence what is wrong, where, and what to do. Commands print it
    without a traceback and exit with status 1; everything else is a bug and keeps its traceback.

    Args:
        message: control characters and lone surrogates, as names of files may hold, are escaped.
    """

    def __init__(self, message: str = ""):
        super().__init__(_CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), message))


class Interrupted(UserError):
    """The input is valid: the same command, run again, resumes."""
