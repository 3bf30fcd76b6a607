"""Readers of word vectors against numpy's own, and the encoder that weighs them against the formula."""

import gzip
import struct
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from vise_jax import config
from vise_jax.engagement.comments import CommentEncoder, fit_encoder, tokenizer, vectors_sha256
from vise_jax.errors import UserError
from vise_jax.text import word_vectors

WORDS = ["</s>", "the", "😀", "#sandy", "café", "don't", "new\u00a0york", "line\u2028\x85", "storm", "<user>"]
VECTORS = np.random.default_rng(0).standard_normal((len(WORDS), 7)).astype(np.float32)
# In another order, with a token that no file has, and with what must not be taken for one.
WANTED = {token: row for row, token in enumerate(["storm", "flood", "café", "😀", "don't", "the", "#sandy", "user"])}
HELD = {"storm": 8, "café": 4, "😀": 2, "don't": 5, "the": 1, "#sandy": 3}


def text(end: str = "", header: str = "", words: list[str] = WORDS, vectors: np.ndarray = VECTORS) -> bytes:
    lines = [f"{word} {' '.join(map(str, vector))}{end}\n" for word, vector in zip(words, vectors, strict=True)]
    return (header + "".join(lines)).encode()


def binary(end: bytes = b"\n") -> bytes:
    entries = [word.encode() + b" " + row.tobytes() + end for word, row in zip(WORDS, VECTORS, strict=True)]
    return b"%d %d\n" % VECTORS.shape + b"".join(entries)


FILES = {
    "word2vec text": text(" ", header="10 7\n"),
    "word2vec binary": binary(),
    "word2vec binary without line feeds": binary(b""),
    "GloVe": text(),
    "GloVe of Windows": text("\r"),
    "fastText": text(" ", header="10 7\n"),
    "fastText of Windows": text("\r", header="10 7\r\n"),
    "fastText without the last line feed": text(header="10 7\n")[:-1],
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_each_kind_of_file_gives_its_vectors(kind: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    path.write_bytes(gzip.compress(FILES[kind]) if zipped else FILES[kind])
    vectors, found = word_vectors.read(str(path), WANTED)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(WANTED), 7)
    assert {token for token, row in WANTED.items() if found[row]} == set(HELD)
    expected = VECTORS
    if "binary" not in kind:
        lines = FILES[kind].decode().split("\n")["GloVe" not in kind :]
        expected = np.loadtxt(lines, np.float32, usecols=range(1, 8), delimiter=" ", comments=None)
    for token, row in WANTED.items():
        wanted = expected[HELD[token]] if token in HELD else np.zeros(7, np.float32)
        assert vectors[row].tobytes() == wanted.tobytes(), token


def test_floats_whose_bytes_look_like_text_are_floats(tmp_path: Path) -> None:
    path = tmp_path / "vectors.bin"
    numbers = b"12\n>" + struct.pack("<f", 0.5)
    path.write_bytes(b"1 2\na " + numbers)
    assert word_vectors.read(str(path), {"a": 0})[0].tobytes() == numbers


def test_words_with_spaces_and_words_of_other_casing(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    words = ["Apple", "apple", "APPLE", "Paris", "PARIS", ". . .", "at name@domain.com", "Straße", "❤️", "it’s", "2012"]
    vectors = np.arange(len(words) * 3, dtype=np.float32).reshape(-1, 3)
    path.write_bytes(text(words=words, vectors=vectors))
    wanted = {token: row for row, token in enumerate(["apple", "paris", "strasse", "❤", "it's", "2012", "at"])}
    found_vectors, found = word_vectors.read(str(path), wanted)
    assert found.tolist() == [True] * 6 + [False]
    # The casing that the token has comes before the first one, and that before the others.
    assert found_vectors[:6, 0].tolist() == [3, 9, 21, 24, 27, 30]


def test_only_wanted_vectors_are_held(tmp_path: Path) -> None:
    path = tmp_path / "many.vec"
    with open(path, "wb") as file:
        file.write(b"20000 100\n")
        for number in range(20_000):
            file.write(b"w%d" % number + b" 0.123456" * 100 + b"\n")
    assert path.stat().st_size > 18e6
    tracemalloc.start()
    try:
        vectors, found = word_vectors.read(str(path), {"w7": 0, "w19999": 1})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.all()
    assert (vectors == np.float32(0.123456)).all()
    assert peak < 4e6


GOOD = b"3 2\na 1 2\nb 3 4\nc 5 6\n"
PACKED = struct.pack("<2f", 1.5, 2.5)
BAD = {
    "too few numbers": (b"3 2\na 1 2\nb 3\nc 5 6\n", r"1 numbers in line 3, where its first line says 2"),
    "too many numbers": (b"3 2\na 1 2\nb 3 4 5\nc 5 6\n", r"3 numbers in line 3, where its first line says 2"),
    "an empty line": (b"3 2\na 1 2\n\nb 3 4\n", r"0 numbers in line 3"),
    "GloVe, too few": (b"a 1 2\nb 3\n", r"1 numbers in line 2 and 2 in its others"),
    "GloVe, too many": (b"a 1 2\nb 3 4\nc 5 6 7\n", r"3 numbers in line 3 and 2 in its others"),
    "a header of other dimensions": (b"3 3\na 1 2\nb 3 4\nc 5 6\n", r"2 numbers in line 2, where .* says 3"),
    "a header of more words": (b"4 2\na 1 2\nb 3 4\nc 5 6\n", r"says .* 4 words, but holds 3"),
    "a header of fewer words": (b"2 2\na 1 2\nb 3 4\nc 5 6\n", r"says .* 2 words, but holds 3"),
    "a header of too many numbers": (b"1 999999\na 1 2\n", r"vectors have 999,999 numbers, more than 16,384"),
    "a header of nothing": (b"0 2\n", r"says in its first line that it holds nothing"),
    "a word twice": (b"3 2\na 1 2\nb 3 4\na 5 6\n", r"holds 'a' twice, in line 2 and in line 4"),
    "a casing twice": (b"3 2\nA 1 2\na 3 4\nA 5 6\n", r"holds 'a' twice, in line 2 and in line 4"),
    "no number": (b"3 2\na 1 2\nb 3 x\nc 5 6\n", r"something else than numbers in line 3"),
    "not finite": (b"3 2\na 1 2\nb 3 nan\nc 5 6\n", r"numbers in line 3 that are not finite"),
    "more than float32 holds": (b"3 2\na 1 2\nb 3 1e99\nc 5 6\n", r"numbers in line 3 that are not finite"),
    "binary, cut off": (b"2 2\na " + PACKED + b"\nb " + PACKED[:7], r"ends or is damaged at word 2 of the 2 of 2"),
    "binary, a header of more words": (b"2 2\na " + PACKED + b"\n", r"at word 2 of the 2"),
    "binary, a header of fewer words": (b"1 2\na " + PACKED + b"\nb " + PACKED, r"continues after the 1 words of 2"),
    "binary, a header of other dimensions": (b"1 1\na " + PACKED, r"continues after the 1 words of 1 numbers"),
    "binary, a word twice": (b"2 2\na " + PACKED + b"a " + PACKED, r"holds 'a' twice, in word 1 and in word 2"),
    "binary, not finite": (b"1 1\na " + struct.pack("<f", np.inf), r"numbers in word 1 that are not finite"),
    "an archive": (b"PK\x03\x04\x14\0\0\0\x08\0glove.txt\x8f\n", r"first line of .* is neither two whole numbers nor"),
    "no numbers": (b"hello world\n", r"first line of .* is neither"),
    "an empty file": (b"", r"first line of .* is neither"),
    "a cut-off archive": (gzip.compress(GOOD * 100)[:-20], r"is cut off or damaged"),
    "a damaged archive": (gzip.compress(GOOD)[:-8] + bytes(8), r"is cut off or damaged"),
    "an archive damaged within": (gzip.compress(GOOD)[:10] + b"\xff" * 30, r"is cut off or damaged"),
    "an archive of nothing known": (b"\x1f\x8b" + bytes(20), r"is cut off or damaged"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_does_not_fit_says_where(what: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.vec"
    path.write_bytes(BAD[what][0])
    with pytest.raises(UserError, match=BAD[what][1]) as caught:
        word_vectors.read(str(path), {"a": 0, "b": 1})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unused_fields_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "odd.vec"
    path.write_bytes(b"5 2\na 1 2\nb 3 4\nc 5 x\nd nan 1\nb! 1 1\n")
    assert word_vectors.read(str(path), {"a": 0})[0].tolist() == [[1, 2]]
    with pytest.raises(UserError, match="something else than numbers in line 4"):
        word_vectors.read(str(path), {"c": 0})
    path.write_bytes(b"a 1 2\nb 1 2\nb 1 2\n")
    assert word_vectors.read(str(path), {"a": 0})[1].all()


def test_a_path_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(UserError, match=r"labels\.vectors=.* can't be read"):
            word_vectors.read(str(path), {"a": 0})


COMMENTS = ["Storm storm THE 😀", "the flood @storm", "the don't", "the", "rare"]


def fit(path: Path, **changes: object) -> CommentEncoder:
    labels = make_labels(path, **changes)
    counts = Counter(token for tokens in tokenizer(labels)(COMMENTS) for token in set(tokens))
    return fit_encoder(counts, len(COMMENTS), [], labels)[0]


def make_labels(path: Path, **changes: object) -> ConfigDict:
    labels = config.base().labels
    labels.update(comment_encoder="word_vectors", vectors=str(path), min_comment_count=1, **changes)
    return labels


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.vec"
    path.write_bytes(FILES["fastText"])
    return path


def test_phi_is_the_weighted_mean(path: Path) -> None:
    encoder = fit(path)
    assert encoder.kind == "word_vectors"
    # flood and rare have no vector: 7 of 9 tokens have one, each counted once a comment.
    assert encoder.vocabulary == ["the", "don't", "storm", "😀"]
    assert encoder.coverage == pytest.approx(7 / 9)
    assert encoder.vectors.tobytes() == VECTORS[[1, 5, 8, 2]].tobytes()
    idf = {"the": np.log(6 / 5) + 1, "storm": np.log(6 / 2) + 1, "😀": np.log(6 / 2) + 1}
    np.testing.assert_allclose(encoder.weights[[0, 2, 3]], list(idf.values()), rtol=1e-6)
    expected = 2 * idf["storm"] * VECTORS[8] + idf["the"] * VECTORS[1] + idf["😀"] * VECTORS[2]
    phi = encoder.encode([COMMENTS[0], "flood rare"])
    assert phi.dtype == np.float32
    np.testing.assert_allclose(phi[0], expected / np.linalg.norm(expected), rtol=1e-5)
    assert not phi[1].any()


def test_without_weights_phi_is_the_plain_mean(path: Path) -> None:
    encoder = fit(path, token_weights="none")
    expected = 2 * VECTORS[8] + VECTORS[1] + VECTORS[2]
    np.testing.assert_allclose(encoder.encode(COMMENTS[:1])[0], expected / np.linalg.norm(expected), rtol=1e-5)


def test_vocabulary_is_chosen_before_vectors_are_looked_up(path: Path) -> None:
    assert fit(path, max_vocabulary=3).vocabulary == ["the", "don't"]
    labels = make_labels(path)
    labels.min_comment_count = 3
    with pytest.raises(UserError, match=r"holds none of the 1 tokens"):
        fit_encoder(Counter({"flood": 3, "the": 2}), 3, [], labels)


def test_the_file_is_recognized_by_its_content(path: Path, tmp_path: Path) -> None:
    before = vectors_sha256(make_labels(path))
    assert list(before) == ["some.vec"]
    path.write_bytes(FILES["GloVe"])
    assert vectors_sha256(make_labels(path)) != before
    assert vectors_sha256(config.base().labels) == {}
    with pytest.raises(UserError, match=r"labels\.vectors=.* can't be read"):
        vectors_sha256(make_labels(tmp_path / "missing"))
