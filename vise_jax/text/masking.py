"""Mask personal data in comments: mentions, URLs, e-mail addresses and phone numbers."""

import unicodedata

import regex

PLACEHOLDERS = ("<user>", "<url>", "<email>", "<phone>")

# Endings that make a URL of a host without scheme and path; not those that are words, which would mask "end.It".
_HOSTS = "com|org|net|gov|edu|info|tv|io|ly|gl|uk|app|blog|ru"

# Each consumes possessively or up to a bound, so that no text takes more than linear time.
_EMAIL = regex.compile(r"(?<![\w.+-])[\w.+-]{1,64}+[@＠][\w-]++(?:\.[\w-]++)+")
_URL = regex.compile(
    rf"""(?<![\w@])(?:
        (?:[a-z][a-z0-9+.-]{{1,20}}://|www\.)[^\s\p{{Extended_Pictographic}}]++
      | [\w-]{{1,63}}+(?:\.[\w-]{{1,63}}+){{0,6}}?\.(?:
            [a-z]{{2,24}}+/[^\s\p{{Extended_Pictographic}}]*+
          | (?:{_HOSTS})(?!\.?[\w-])
        )
    )""",
    regex.VERBOSE | regex.IGNORECASE,
)
# Also Facebook's @[id:type:name] and the fediverse's @user@host; not the emoticon @_@.
_USER = regex.compile(r"[@＠](?!_+[@＠])(?:\[[^\]\n]{1,300}+\]|\w[\w.-]*+(?:@[\w.-]++)?)")
# Seven digits or more with the usual separators: rather a number too many than a phone number too few.
_PHONE = regex.compile(r"(?<!\d)[+(]{0,2}\d(?:[ \u00a0.()/-]{0,2}\d){6,}+")
_DATE = regex.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4}")
# Each of the above holds one of these; most words hold none.
_SUSPECT = regex.compile(r"[@＠.:\d]")


def mask(text: str) -> str:
    """Replace mentions, URLs, e-mail addresses and phone numbers by `PLACEHOLDERS`, in NFC-normalised text.

    Nothing else sees a comment before this has. Names written as plain words stay: they can't be told from words.
    """
    text = unicodedata.normalize("NFC", text)
    if not _SUSPECT.search(text):
        return text
    text = _EMAIL.sub("<email>", text)
    text = _URL.sub("<url>", text)
    text = _USER.sub("<user>", text)
    return _PHONE.sub(lambda match: match[0] if _DATE.fullmatch(match[0]) else "<phone>", text)
