"""Comments to tokens: words, hashtags, emoji and emoticons, each whole. Emoji carry most of the affect."""

import unicodedata

import regex

from vise_jax.engagement.privacy import PLACEHOLDERS

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

    Words keep combining marks and inner apostrophes; words and hashtags are NFKC-normalised and casefolded.
    An emoji is one token with its skin tone, its joined sequence, or as a flag or keycap; each private-use code
    point is a token. Placeholders of `privacy.mask` and punctuation are dropped.
    """
    text = text.translate(_VARIATION_SELECTORS)
    return [symbol or _fold(tag or word) for tag, symbol, word in _TOKEN.findall(text) if symbol or tag or word]


def _fold(word: str) -> str:
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold()).replace("’", "'")
