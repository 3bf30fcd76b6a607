"""The reject log: what became of the posts of one input."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from vise_jax.errors import UserError

# Reasons that don't count toward `labels.max_rejected_fraction`.
HARMLESS = frozenset({"no_image", "no_label"})
# Rejected posts located per reason; beyond that they are only counted.
MAX_NAMED = 1_000
_POSTS_BEFORE_FIRST_CHECK = 1_000
# What to do about a reason, if it is not the file that is wrong.
_ADVICE = {
    "reaction_unknown": "name the buttons in labels.reactions, set labels.other_reactions=ignore",
}


class RejectLog:
    """Count the posts of one input, and locate the rejected ones by line, never by their text.

    Args:
        source: the posts file, for messages.
        max_rejected_fraction: fraction of malformed posts above which reading stops.
        min_posts: number of posts from which `max_rejected_fraction` applies.

    Attributes:
        posts: number of posts read.
        rejected: rejected posts by reason.
        named: file, line and reason of each rejected post, up to `MAX_NAMED` per reason.
        notes: number of mended values in accepted posts, by kind, e.g. `comment_cut`.
    """

    def __init__(self, source: Path | str = "", max_rejected_fraction: float = 1.0, min_posts: int = 0):
        self.source = source
        self.max_rejected_fraction = max_rejected_fraction
        self.min_posts = min_posts
        self.posts = 0
        self.rejected: Counter[str] = Counter()
        self.named: list[dict[str, str | int]] = []
        self.notes: Counter[str] = Counter()

    def copy(self) -> "RejectLog":
        """Return a log of the same counts and limits. The rejected posts that this one names are not in it."""
        log = RejectLog(self.source, self.max_rejected_fraction, self.min_posts)
        log.posts, log.rejected, log.notes = self.posts, self.rejected.copy(), self.notes.copy()
        return log

    def since(self, before: "RejectLog") -> "RejectLog":
        """Return what was counted since `before` was a copy of this."""
        log = RejectLog(self.source)
        log.posts, log.named = self.posts - before.posts, self.named
        log.rejected, log.notes = self.rejected - before.rejected, self.notes - before.notes
        return log

    def add(self, other: "RejectLog") -> None:
        """Add what another log has counted."""
        self.posts += other.posts
        self.rejected.update(other.rejected)
        self.notes.update(other.notes)
        self.named += other.named

    def reject(self, line: int, reason: str) -> None:
        """Count a rejected post."""
        self.rejected[reason] += 1
        if self.rejected[reason] <= MAX_NAMED:
            self.named.append({"file": str(self.source).rpartition("/")[2], "line": line, "reason": reason})

    def check(self) -> None:
        """Check the fraction of malformed posts.

        Raises:
            UserError: at least `min_posts` were read and the fraction is above `max_rejected_fraction`.
        """
        if self.posts < self.min_posts:
            return
        bad = {reason: count for reason, count in self.rejected.items() if reason not in HARMLESS}
        if sum(bad.values()) > self.max_rejected_fraction * self.posts:
            raise UserError(
                f"{self.source}: {sum(bad.values()):,} of {self.posts:,} posts were rejected ({summary(bad)}), more "
                f"than labels.max_rejected_fraction={self.max_rejected_fraction} allows: "
                f"{_ADVICE.get(max(bad, key=bad.__getitem__), 'correct the file')}, or raise that key."
            )

    def check_early(self) -> None:
        """Check the fraction of malformed posts before the end, when enough posts were read.

        Raises:
            UserError: see `check`.
        """
        if self.posts >= _POSTS_BEFORE_FIRST_CHECK:
            self.check()


def summary(counts: Mapping[str, int]) -> str:
    """Format counts by reason, largest first, e.g. `image_missing 3, malformed_json 1`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered) or "none"
