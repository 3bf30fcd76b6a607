"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake that whoever ran the command can mend.

    The message is one sentence: what is wrong, where, and what to do about it. The commands print it
    without a traceback and exit with status 1; everything else is a bug and keeps its traceback.
    """


class Interrupted(UserError):
    """Nothing is wrong with the input: the same command, run again, goes on."""
