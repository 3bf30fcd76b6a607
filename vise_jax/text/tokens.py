"""Split comments into tokens: words, hashtags, emoji and emoticons. Emoji carry most of the affect."""

import unicodedata
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import regex

from vise_jax.text.masking import GAP, PLACEHOLDERS, mask

# Emoji and text presentation of the same character are one token.
_VARIATION_SELECTORS = {0xFE0E: None, 0xFE0F: None}

# Alternatives in order of precedence. Group 1 is folded (words, hashtags), group 2 stays as it is written;
# placeholders are in neither, and so are dropped.
_TOKEN = regex.compile(
    rf"""
    {"|".join(PLACEHOLDERS)}
    | (
        [#＃][\p{{L}}\p{{N}}_][\p{{L}}\p{{M}}\p{{N}}_\u200c\u200d]*+(?!\u20e3)
      )
    | (
        [0-9\#*]\u20e3                                              # keycaps
      | \p{{Regional_Indicator}}{{1,2}}                             # flags
      | \p{{Extended_Pictographic}}\p{{Emoji_Modifier}}?[\U000e0020-\U000e007f]*+
        (?:\u200d\p{{Extended_Pictographic}}\p{{Emoji_Modifier}}?)*+ # families, professions, flags of regions
      | \p{{Emoji_Modifier}}
      | \p{{Co}}                                                    # emoji of old phones
      | </?3+(?!\d)                                                 # hearts
      | [<>]?[:;=]['’]?[-o^~]?[)\](\[|/\\*]++                       # :) ;-) :'( :/
      | (?<![\p{{L}}\p{{N}}])(?:
            >?[:;=]['’]?[-^~]?(?:[DPpOoSsXxbcv3]|D{{2,}})           # :D :P :-O :3
          | [xX]D++ | [oO0]_++[oO0] | T_++T | Q_++Q | t_++t | u_++u | U_++U | \(y\)
        )(?![\p{{L}}\p{{N}}])
      | [(=]?\^[_.-]?\^[)=;]? | -_+- | >[._]++< | ;_+; | @_+@       # ^_^ -_- >.< ;_; @_@
      | ¯\\?_*\(ツ\)_*/¯ | \(╯°□°[)）]╯︵\ ?┻━┻ | \\[oO]/
    )
    | (
        \p{{Han}}                                                   # written without spaces: one token a character
      | [\p{{L}}\p{{N}}--\p{{Han}}][[\p{{L}}\p{{M}}\p{{N}}]--\p{{Han}}]*+
        (?:['’\u200c\u200d][\p{{L}}\p{{M}}][\p{{L}}\p{{M}}\p{{N}}]*+)*+
    )
    """,
    regex.VERBOSE | regex.VERSION1,
)


def tokenize(text: str) -> list[str]:
    """Split a masked comment into tokens, in order.

    Words keep combining marks and inner apostrophes; words and hashtags are NFKC-normalized and casefolded.
    An emoji is one token with its skin tone, its joined sequence, or as a flag or keycap; each private-use code
    point is a token. Placeholders of `privacy.mask` and punctuation are dropped.
    """
    text = text.translate(_VARIATION_SELECTORS)
    return [symbol or _fold(tag or word) for tag, symbol, word in _TOKEN.findall(text) if symbol or tag or word]


def as_token(word: str) -> str | None:
    """Return the token that a single word is, e.g. of a vector file; None if it is none, or would be split."""
    match = _TOKEN.fullmatch(unicodedata.normalize("NFC", word).translate(_VARIATION_SELECTORS))
    if not match:
        return None
    tag, symbol, plain = match.groups()
    return symbol or (_fold(tag or plain) if tag or plain else None)


def _fold(word: str) -> str:
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold()).replace("’", "'")


# Patterns that may contain a space: phone numbers, mentions between brackets or marks, and the table-flip emoticon.
_SPANS_SPACES = regex.compile(rf"\d(?:{GAP}{{0,3}}\d){{6}}|[@＠][\[\u2068]|︵")
# A chunk with which such a thing may begin.
_MAY_GO_ON = regex.compile(rf"\d{GAP}{{0,2}}\Z|[@＠][\[\u2068]|︵")
# Spaces to str.split, but not to \s: a URL continues after them.
_SEPARATORS = frozenset("\x1c\x1d\x1e\x1f")
# A word or hashtag that is its own token, in lower case, and punctuation after it. XD is an emoticon.
_PLAIN_WORD = regex.compile(r"(?![xX]D+[.,!?]*\Z)(#?[A-Za-z]+)(?:[.,]|[!?]*)")
# Bounds of the cache: words repeat, but rare chunks must not fill the memory. Longer chunks are mostly URLs.
_MAX_CHUNKS = 2**17
_MAX_CHUNK_LENGTH = 64


class Splitter(dict[str, tuple]):
    """Mask and tokenize many comments: equal to `tokenize(mask(comment))`, several times as fast.

    Patterns of `mask` and `tokenize` contain no spaces, apart from the three above. A comment is split at spaces, and
    the tokens of each chunk are cached. A comment that may contain one of the three patterns is tokenized as a whole.

    Args:
        index: from tokens to their numbers. Tokens are returned as numbers, and those that it lacks are dropped; None
            = return the tokens.
    """

    def __init__(self, index: Mapping[str, int] | None = None):
        super().__init__()
        self._index = index
        # Marks a chunk that may continue after the space; it is no token, and no number of one.
        self._sign: str | int = "" if index is None else -1

    def split(self, comments: Sequence[str]) -> list[list[Any]]:
        """Return the tokens of each raw comment in order, or their numbers."""
        everything = "".join(comments)
        separators = any(separator in everything for separator in _SEPARATORS)
        rows = []
        for comment in comments:
            row = list(chain.from_iterable(map(self.__getitem__, comment.split())))
            if separators and not _SEPARATORS.isdisjoint(comment):
                row = self._known(tokenize(mask(comment)))
            elif self._sign in row:
                slow = _SPANS_SPACES.search(comment)
                row = self._known(tokenize(mask(comment))) if slow else [token for token in row if token != self._sign]
            rows.append(row)
        return rows

    def _known(self, tokens: list[str]) -> list[Any]:
        index = self._index
        return tokens if index is None else [index[token] for token in tokens if token in index]

    def _one(self, token: str) -> tuple:
        if self._index is None:
            return (token,)
        number = self._index.get(token)
        return () if number is None else (number,)

    def __missing__(self, chunk: str) -> tuple:
        # Most of the chunks that are new are words of letters.
        if chunk.isalpha() and chunk.isascii() and chunk[0] not in "xX":
            tokens = self._one(chunk.lower())
        elif word := _PLAIN_WORD.fullmatch(chunk):
            tokens = self._one(word[1].lower())
        else:
            tokens = tuple(self._known(tokenize(mask(chunk))))
            if _MAY_GO_ON.search(chunk):
                tokens = (self._sign, *tokens)
        if len(chunk) <= _MAX_CHUNK_LENGTH:
            if len(self) >= _MAX_CHUNKS:
                self.clear()
            self[chunk] = tokens
        return tokens
