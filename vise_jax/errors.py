"""The one exception that a user is meant to read."""


class UserError(Exception):
    """An error that the user can correct.

    The message says in one sentence what is wrong, where, and what to do. Commands print it
    without a traceback and exit with status 1; everything else is a bug and keeps its traceback.
    """


class Interrupted(UserError):
    """The input is valid: the same command, run again, resumes."""
