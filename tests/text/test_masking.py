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
    ],
)
def test_people_and_links_are_masked_and_words_are_not(text: str, masked: str) -> None:
    assert masking.mask(text) == masked


@pytest.mark.parametrize(
    "piece", ["a", "a.", "@", "1 ", "a@", "a-", "://", "1", "@[", "www", "a.b", "+1(", "a@a.", "(1"]
)
def test_no_comment_takes_long_to_mask(piece: str) -> None:
    text = (piece * 10_000)[:10_000]
    start = time.process_time()
    masking.mask(text)
    assert time.process_time() - start < 0.5
