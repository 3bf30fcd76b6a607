"""Mask personal data in comments: mentions, URLs, e-mail addresses and phone numbers."""

import unicodedata

import regex

PLACEHOLDERS = ("<user>", "<url>", "<email>", "<phone>")

# Endings that make a URL of a host without scheme and path; not those that are words, which would mask "end.It".
_HOSTS = "com|org|net|gov|edu|info|tv|io|ly|gl|uk|app|blog|ru|jp|fr|cz|pl|nl|kr|ch|br|nz|dk|hu|tr|ua|vn|cn|tw"
# What may be between the digits of a phone number.
GAP = r"[ \u00a0\u2000-\u200a\u202f\u3000.·•()（）/\u2010-\u2015\u2212\uff0d\u30fc-]"

# Each consumes possessively or up to a bound, so that no text takes more than linear time.
# Without a dot in its domain, an address has one before the sign.
_EMAIL = regex.compile(r"[\w.+-]{1,64}+[@＠][\w-]++(?:\.[\w-]++)+|[\w+-]{1,64}+(?:\.[\w+-]{1,64}+){1,4}+[@＠][\w-]++")
_URL = regex.compile(
    # Where words are not parted by spaces, a host begins at its first ASCII letter.
    rf"""(?:(?<![a-z0-9])[a-z][a-z0-9+.-]{{1,20}}://|(?<![a-z0-9_@])www\.)[^\s\p{{Extended_Pictographic}}]++
      | (?:(?<![\w@])[\w-]{{1,63}}+|(?<=[^\x00-\x7f@])[a-z0-9_-]{{1,63}}+)(?:\.[\w-]{{1,63}}+){{0,6}}?\.(?:
            [a-z]{{2,24}}+/[^\s\p{{Extended_Pictographic}}]*+
          | (?:{_HOSTS})(?!\.?[a-z0-9_-])
        )""",
    regex.VERBOSE | regex.IGNORECASE,
)
# Also Facebook's @[id:type:name], names between marks of direction, the fediverse's @user@host and Reddit's u/user; not
# the emoticon @_@.
_USER = regex.compile(
    r"[@＠](?!_+[@＠])(?:\[[^\]\n]{1,300}+\]|\u2068[^\u2069\n]{1,300}+\u2069|\p{Cf}*+\w[\w.-]*+(?:@[\w.-]++)?)"
    r"|(?<![\w/])/?u/[\w-]{3,20}+(?![\w/])"
)
# Seven digits or more with the usual separators: rather a number too many than a phone number too few.
_PHONE = regex.compile(rf"(?<!\d)[+＋(（]{{0,2}}\d(?:{GAP}{{0,3}}\d){{6,}}+")
_DATE = regex.compile(r"(?:\d{4}([-./–])\d{1,2}\1\d{1,2}|\d{1,2}([-./–])\d{1,2}\2\d{4})")
# Each of the above holds one of these; most words hold none.
_SUSPECT = regex.compile(r"[@＠.:/\d]")


def mask(text: str) -> str:
    """Replace mentions, URLs, e-mail addresses and phone numbers by `PLACEHOLDERS`, in NFC-normalised text.

    Nothing else sees a comment before this has. Names written as plain words stay: they can't be told from words.
    """
    text = unicodedata.normalize("NFC", text)
    if not _SUSPECT.search(text):
        return text
    if "@" in text or "＠" in text:
        text = _EMAIL.sub("<email>", text)
    if "." in text or ":" in text:
        text = _URL.sub("<url>", text)
    text = _USER.sub("<user>", text)
    return _PHONE.sub(lambda match: match[0] if _DATE.fullmatch(match[0]) else "<phone>", text)
