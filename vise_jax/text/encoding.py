"""Repair text whose UTF-8 bytes were decoded as Latin-1 or Windows-1252, such as `ð\x9f\x98\x82` for 😂.

The export of the social network's own data has all its text in this state, and every emoji is lost.
"""

from collections.abc import Sequence

import ftfy
import regex

# A multi-byte sequence of UTF-8, read as Latin-1, begins with one of these characters.
_SUSPECT = regex.compile(r"[\u00c2-\u00f4]")


def repair(texts: Sequence[str]) -> tuple[list[str], int]:
    """Repair the encoding of texts where ftfy's heuristic finds that it is wrong.

    Args:
        texts: comments.

    Returns:
        The texts, and the number of texts that were changed.
    """
    repaired = [ftfy.fix_encoding(text) if _SUSPECT.search(text) else text for text in texts]
    return repaired, sum(text != original for text, original in zip(repaired, texts, strict=True))
