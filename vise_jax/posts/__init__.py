"""Posts: their schema, readers that stream them, and the reject log."""

from vise_jax.posts.readers import SUFFIXES, expand, is_empty, read, split_file
from vise_jax.posts.reject_log import MAX_NAMED, RejectLog, summary
from vise_jax.posts.schema import BEGINNING, REACTIONS, THE_PAPERS, BadPost, Buttons, Cursor, Limits, Post, parse

__all__ = [
    "BEGINNING",
    "MAX_NAMED",
    "REACTIONS",
    "SUFFIXES",
    "THE_PAPERS",
    "BadPost",
    "Buttons",
    "Cursor",
    "Limits",
    "Post",
    "RejectLog",
    "expand",
    "is_empty",
    "parse",
    "read",
    "split_file",
    "summary",
]
