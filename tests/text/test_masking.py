"""Masking of personal data in comments."""

import time

import pytest

from vise_jax.text import masking


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("RT @some_user: see http://t.co/abc?x=1😍 #sandy", "RT <user>: see <url>😍 #sandy"),
        ("mail a.b+c@ex-ample.co.uk now", "mail <email> now"),
        ("bit.ly/1W8 and www.example.org, youtube.com.", "<url> and <url> <url>."),
        ("HTTPS://EXAMPLE.COM/ftp://x", "<url>"),
        ("+1 (555) 123-4567 or 555.123.4567, 020 7946 0958", "<phone> or <phone>, <phone>"),
        ("tel.-5551234567x12; ٠١٢٣٤٥٦٧٨٩", "tel.-<phone>x12; <phone>"),
        ("hi@joe @@joe 😀@joe @[12:34:John Doe] @a.b@c.social", "hi<user> @<user> 😀<user> <user> @<email>"),
        ("cafe\u0301 <url>", "café <url>"),
        # One sign that gives each away.
        ("＠joe", "<user>"),
        ("@joe", "<user>"),
        ("ftp://x", "<url>"),
        ("bit.ly", "<url>"),
        ("٥٥٥١٢٣٤٥", "<phone>"),
        # As people of several countries write them.
        ("089 / 123456; +49 (0) 89 / 123456, 0171 - 123456", "<phone>; <phone>, <phone>"),
        ("06\u202f12\u202f34\u202f56\u202f78 06·12·34·56·78", "<phone>"),
        ("06‑12‑34‑56‑78, 90−1234−5678", "<phone>, <phone>"),
        ("０９０－１２３４－５６７８, 090ー1234ー5678", "<phone>, <phone>"),
        ("+55 (11) 9 8765 - 4321", "<phone>"),
        ("on 24.12.2024, 2024-12-24 and 24–12–2024", "on 24.12.2024, 2024-12-24 and 24–12–2024"),
        ("u/john_smith and /u/john_smith, and/or us", "<user> and <user>, and/or us"),
        ("@\u2068John Smith\u2069 @\u200ejohn @\u200bjohn", "<user> <user> <user>"),
        ("ก" * 70 + "somchai@gmail.com", "ก" * 13 + "<email>"),
        ("john.smith@gmail", "<email>"),
        ("詳しくはhttps://tanaka-taro.jp/x", "詳しくは<url>"),
        ("tanaka-taro.jp and hans.example.pl", "<url> and <url>"),
        ("字" * 70 + "facebook.com/somchai", "字" * 70 + "<url>"),
    ],
)
def test_people_and_links_are_masked_and_words_are_not(text: str, masked: str) -> None:
    assert masking.mask(text) == masked


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a.",
        "@",
        "1 ",
        "a@",
        "a-",
        "://",
        "1",
        "@[",
        "www",
        "a.b",
        "+1(",
        "a@a.",
        "(1",
        "ก",
        "ก.",
        "u/",
        "/u/",
        "a.b@",
        "1 / ",
        "@\u2068",
        "@\u200e",
        "字com.",
    ],
)
def test_no_comment_takes_long_to_mask(piece: str) -> None:
    text = (piece * 10_000)[:10_000]
    start = time.process_time()
    masking.mask(text)
    assert time.process_time() - start < 0.5
