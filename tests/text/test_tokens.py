"""Tokens, and the fast way to them against the plain one."""

import gzip
import json
import os
import pickle
import random
from pathlib import Path

import pytest

from vise_jax.text import tokens as tokens_module
from vise_jax.text.masking import mask
from vise_jax.text.tokens import Splitter, tokenize

SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()]
# What the expressions of mask and tokenize look at, and what may look like it.
PIECES = [
    *"aZé1٠9@＠[]().,-/:;=<>^_'’#＃*|\\~xXDoO0TQtu+!?",
    *SPACES,
    # marks that compose, joiners, variation selectors, jamo, signs whose canonical form is another
    *("\u0301", "\u0327", "\u0344", "\u20e3", "\ufe0f", "\ufe0e", "\u200d", "\u200c", "\u200b"),
    *("ᄀ", "ᅡ", "ᆨ", "\u09c7", "\u09be", "\u037e", "\u0338", "K", "ſ", "ﬁ", "Å", "東", "क", "्", "ا"),
    *("❤", "👩", "👍", "🏽", "🇧", "🇷", "🏴", "\U000e0067", "\U000e007f", "\ue32d", "¯\\_(ツ)_/¯", "︵"),
    *("(╯°□°)╯︵", "┻━┻", " ┻━┻", ":)", ":-(", "<3", "</3", "(y)", "^_^", "-_-", "T_T", "XD", "xDD!", "www", "www.!"),
    *("http://", "http://a", "www.", "t.co/", "bit.ly", ".com", "a@b.c", "@[1:2:", "@[1: 2]", "<user>", "<url>"),
    *("555", "1234", "+1 ", "(555) ", "2016-04-05", "05/04/2016", "1 ", " 1", "1. ", ". 2", " (3", "hello", "Don't"),
    *(
        " / ",
        " - ",
        "·",
        "–",
        "−",
        "－",
        "ー",
        "\u202f",
        "u/bob",
        "/u/",
        "@\u2068",
        "\u2069",
        "@\u200e",
        "a.b@c",
        "ก" * 70,
        "字com.",
    ),
]
NUMBERS = [piece for piece in PIECES if set(piece) & set("0123456789(.-/ \u00a0@[\x1c·–－ー\u202f")]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello, World's don’t STRASSE straße", ["hello", "world's", "don't", "strasse", "strasse"]),
        ("#HajaCoração #1 <url> <user> <email><phone>", ["#hajacoração", "#1"]),
        ("❤️❤ 👍🏽👍 👩‍👩‍👧‍👦 👨🏿‍🦰", ["❤", "❤", "👍🏽", "👍", "👩‍👩‍👧‍👦", "👨🏿‍🦰"]),
        ("🇧🇷🇺🇸1️⃣#️⃣🏴󠁧󠁢󠁥󠁮󠁧󠁿🏴‍☠️", ["🇧🇷", "🇺🇸", "1⃣", "#⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏴‍☠"]),
        ("nice\ue32d\ue415", ["nice", "\ue32d", "\ue415"]),
        (":) :-( ;) :D :P :'( <3 </3", [":)", ":-(", ";)", ":D", ":P", ":'(", "<3", "</3"]),
        ("XD ^_^ -_- T_T o_O", ["XD", "^_^", "-_-", "T_T", "o_O"]),
        ("¯\\_(ツ)_/¯ hello:) :)))) xD >.< (y)", ["¯\\_(ツ)_/¯", "hello", ":)", ":))))", "xD", ">.<", "(y)"]),
        ("note:Please 10:30 1<30 a-b", ["note", "please", "10", "30", "1", "30", "a", "b"]),
        ("नमस्ते می‌خواهم 東京タワー", ["नमस्ते", "می‌خواهم", "東", "京", "タワー"]),
        ("𝐡𝐞𝐥𝐥𝐨 Ｆｕｌｌ cafe\u0301", ["hello", "full", "café"]),
        ("... !!! ️", []),
    ],
)  # fmt: skip
def test_words_tags_emoji_and_emoticons_are_whole(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def plain(comments: list[str]) -> list[list[str]]:
    return [tokenize(mask(comment)) for comment in comments]


def nasty(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        pieces = draw.choice((PIECES, NUMBERS, [*draw.sample(PIECES, 8), " "]))
        made.append("".join(draw.choices(pieces, k=draw.randint(1, 24))))
    return made


def test_the_fast_way_gives_the_plain_tokens_whatever_the_text() -> None:
    splitter = Splitter()
    for seed in range(40):
        comments = nasty(500, seed)
        for comment, found, expected in zip(comments, splitter.split(comments), plain(comments), strict=True):
            assert found == expected, repr(comment)


@pytest.mark.parametrize(
    "comment",
    [
        "call 555 123 4567 now",
        "555.\u00a01234 567",
        "1234567 8",
        "12 (345) 678",
        "1  2  3  4  5  6  7",
        "2016-04-05 12",
        "in 2016 and 2017",
        "@[12:34:John Doe] hi",
        "＠[John Doe] hi",
        "(╯°□°)╯︵ ┻━┻",
        "(╯°□°)╯︵\ufe0f ┻━┻",
        "http://a\x1cb c",
        "XD xD! XD. D! www.! www. XDx",
        "a" * 100 + " " + "#" + "b" * 100,
        " \u0301a \u0327\u0301",
        "",
    ],
)
def test_what_spans_spaces_and_edges_of_chunks(comment: str) -> None:
    assert Splitter().split([comment, "and others"]) == plain([comment, "and others"])


def test_numbers_stand_for_tokens_and_unknown_ones_are_dropped() -> None:
    index = {"a": 0, "c": 7, ":)": 3}
    assert Splitter(index).split(["A b :) a", "call 555 123 4567 c", "b", "c 10", ""]) == [[0, 3, 0], [7], [], [7], []]


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_MAX_CHUNKS", 10)
    splitter, comments = Splitter(), nasty(500, 0)
    assert splitter.split(["x" * 65]) == [["x" * 65]]
    assert not splitter
    assert splitter.split(comments) == plain(comments)
    assert 0 < len(splitter) <= 10
    # Encoders travel to worker processes.
    again = pickle.loads(pickle.dumps(splitter))
    assert again.split(comments) == plain(comments)


@pytest.mark.skipif("VISE_POSTS" not in os.environ, reason="VISE_POSTS names no posts file (.jsonl or .jsonl.gz)")
def test_the_fast_way_gives_the_plain_tokens_of_real_posts() -> None:
    path = Path(os.environ["VISE_POSTS"])
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        comments = [comment for line in file for comment in json.loads(line)["comments"]]
    assert comments
    assert Splitter().split(comments) == plain(comments)
