"""Static models against the mean that model2vec defines, computed from the tokenizer's numbers."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vise_jax import config
from vise_jax.engagement.comments import CommentEncoder, fit_encoder, tokenizer, vectors_sha256
from vise_jax.errors import UserError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "storm", "##s", "the", "sea", "hi", "<", ">", "user", "url", "😀", "!", ",", "a"]
COMMENTS = [
    "The storms, the sea!",
    "hi 😀 storm",
    "seas 🌊 quokka",
    "the the the",
    "@bob hi@bob http://a.bc/d",
    "🌊",
    "",
]


def make_model(
    directory: Path, rows: int = len(PIECES), name: str = "embeddings", dtype: str = "float32", **tensors: np.ndarray
) -> Path:
    directory.mkdir()
    made = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    made.enable_padding(pad_id=0, pad_token="[PAD]", length=8)
    made.save(str(directory / "tokenizer.json"))
    embeddings = (10 * np.random.default_rng(0).standard_normal((rows, 5))).astype(dtype)
    safetensors.numpy.save_file({name: embeddings, **tensors}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    return directory


def make_labels(directory: Path, **changes: Any) -> ConfigDict:
    labels = config.base().labels
    labels.update(
        comment_encoder="static", vectors=str(directory), min_comment_count=1, token_weights="none", **changes
    )
    return labels


def fit(directory: Path, **changes: Any) -> CommentEncoder:
    labels = make_labels(directory)
    labels.update(changes)
    counts = Counter(token for tokens in tokenizer(labels)(COMMENTS) for token in set(tokens))
    return fit_encoder(counts, len(COMMENTS), [], labels)[0]


def expected_means(directory: Path, texts: list[str], max_tokens: int = 512) -> np.ndarray:
    """What model2vec computes: the mean over the tokens that are known, of unit length."""
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    embeddings = tensors.get("embeddings", tensors.get("embedding.weight")).astype(np.float64)
    known = Tokenizer.from_file(str(directory / "tokenizer.json"))
    known.no_padding()
    means = []
    for text in texts:
        # The median length of a piece is 3.
        text = text[: 3 * max_tokens]
        numbers = [number for number in known.encode(text, add_special_tokens=False).ids[:max_tokens] if number != 1]
        rows = tensors["mapping"][numbers] if "mapping" in tensors else numbers
        weights = tensors["weights"][numbers] if "weights" in tensors else np.ones(len(numbers))
        mean = (embeddings[rows] * weights[:, None]).mean(axis=0) if numbers else np.zeros(5)
        means.append(mean / (np.linalg.norm(mean) or 1))
    return np.array(means)


# The comments as they are once masked, without the placeholders.
MASKED = ["The storms, the sea!", "hi 😀 storm", "seas 🌊 quokka", "the the the", "hi", "🌊", ""]
DRAW = np.random.default_rng(1)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sentence-transformers": {"name": "embedding.weight"},
    "float16": {"dtype": "float16"},
    "int8": {"dtype": "int8"},
    "weights": {"weights": DRAW.random(len(PIECES)).astype(np.float32)},
    "float16 weights": {"dtype": "float16", "weights": DRAW.random(len(PIECES)).astype(np.float16)},
    "shared rows": {
        "rows": 4,
        "mapping": DRAW.integers(0, 4, len(PIECES)),
        "weights": DRAW.random(len(PIECES)).astype(np.float64),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_without_weights_phi_is_model2vecs_mean(kind: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model", **KINDS[kind])
    encoder = fit(directory)
    assert encoder.kind == "static"
    expected = expected_means(directory, MASKED)
    assert np.linalg.norm(expected, axis=1).round(6).tolist() == [1, 1, 1, 1, 1, 0, 0]
    # All that decides is in the encoder.
    shutil.rmtree(directory)
    phi = encoder.encode(COMMENTS)
    assert phi.dtype == encoder.vectors.dtype == np.float32
    np.testing.assert_allclose(phi, expected, atol=2e-6)
    assert encoder.encode([]).shape == (0, 5)


def test_idf_weighs_and_the_vocabulary_holds_what_is_frequent(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model")
    encoder = fit(directory, token_weights="idf", min_comment_count=2)
    # [UNK] is in two comments and has no vector; placeholders are no tokens, punctuation is as the model wants it.
    assert encoder.vocabulary == ["##s", "hi", "sea", "storm", "the"]
    assert encoder.coverage == pytest.approx(10 / 15)
    vectors = dict(zip(PIECES, safetensors.numpy.load_file(directory / "model.safetensors")["embeddings"], strict=True))
    idf = np.log(8 / 3) + 1
    expected = 2 * idf * vectors["the"] + idf * (vectors["storm"] + vectors["##s"] + vectors["sea"])
    np.testing.assert_allclose(encoder.weights, np.full(5, idf), rtol=1e-6)
    np.testing.assert_allclose(encoder.encode(COMMENTS[:1])[0], expected / np.linalg.norm(expected), rtol=1e-5)


@pytest.mark.parametrize(("max_length", "tokens"), [(3, 3), (None, 10**6), ("not said", 512)])
def test_long_texts_are_cut_off_where_the_model_does(max_length: Any, tokens: int, tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model")
    about = {} if max_length == "not said" else {"max_length": max_length}
    (directory / "config.json").write_text(json.dumps(about))
    # Many short tokens, and long ones that are fewer.
    texts = ["hi , " * 255 + "the sea " + "hi " * 300, "the sea storm hi " * 90 + "storm " * 30]
    encoder, _ = fit_encoder(Counter(PIECES), 1, [], make_labels(directory))
    np.testing.assert_allclose(encoder.encode(texts), expected_means(directory, texts, tokens), atol=2e-6)


def test_a_model_with_scores_has_an_unknown_token_too(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model")
    scores = [("<unk>", 0.0), ("▁hi", -1.0), ("▁sea", -2.0), ("s", -3.0), ("▁", -9.0)]
    unigram = Tokenizer(models.Unigram(scores, unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.save(str(directory / "tokenizer.json"))
    vectors = np.eye(5, dtype=np.float32)
    safetensors.numpy.save_file({"embeddings": vectors}, directory / "model.safetensors")
    encoder = fit(directory)
    assert "<unk>" not in encoder.vocabulary
    np.testing.assert_allclose(encoder.encode(["hi seas z"])[0], np.array([0, 1, 1, 1, 1]) / 2, atol=1e-6)


def test_the_model_is_recognized_by_its_content(tmp_path: Path) -> None:
    labels = make_labels(make_model(tmp_path / "model"))
    before = vectors_sha256(labels)
    assert list(before) == ["model.safetensors", "tokenizer.json", "config.json"]
    safetensors.numpy.save_file({"embeddings": np.zeros((16, 5), np.float32)}, tmp_path / "model/model.safetensors")
    after = vectors_sha256(labels)
    assert [before[name] == after[name] for name in before] == [False, True, True]
    (tmp_path / "model/config.json").unlink()
    assert list(vectors_sha256(labels)) == ["model.safetensors", "tokenizer.json"]


def zeros(**shapes: tuple[int, ...]) -> bytes:
    return safetensors.numpy.save({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


BAD = {
    "no tokenizer": ("tokenizer.json", None, r"tokenizer\.json can't be read \(No such file"),
    "no vectors": ("model.safetensors", None, r"model\.safetensors can't be read \(No such file"),
    "tokenizer cut off": ("tokenizer.json", b'{"version": "1.0', r"tokenizer\.json or config\.json is damaged"),
    "tokenizer of another kind": ("tokenizer.json", b'{"word": 1}', r"tokenizer\.json or config\.json is damaged"),
    "config cut off": ("config.json", b"{", r"tokenizer\.json or config\.json is damaged"),
    "config of another kind": ("config.json", b"[]", r"tokenizer\.json or config\.json is damaged"),
    "max_length is a word": ("config.json", b'{"max_length": "x"}', r"tokenizer\.json or config\.json is damaged"),
    "vectors cut off": ("model.safetensors", zeros(embeddings=(16, 5))[:-9], r"model\.safetensors is damaged"),
    "a pickle": ("model.safetensors", b"\x80\x04pickle", r"model\.safetensors is damaged"),
    "other tensors": ("model.safetensors", zeros(weight=(16, 5)), r"holds no embeddings of two dimensions"),
    "one dimension": ("model.safetensors", zeros(embeddings=(16,)), r"holds no embeddings of two dimensions"),
    "too few vectors": ("model.safetensors", zeros(embeddings=(15, 5)), r"15 rows and 16 weights for the 16 tokens"),
    "too few weights": (
        "model.safetensors",
        zeros(embeddings=(16, 5), weights=(15,)),
        r"16 rows and 15 weights for the 16 tokens",
    ),
    "rows that are not there": (
        "model.safetensors",
        safetensors.numpy.save({"embeddings": np.zeros((3, 5), np.float32), "mapping": np.full(16, 3)}),
        r"mapping to rows that it lacks",
    ),
    "rows that are no numbers of rows": (
        "model.safetensors",
        zeros(embeddings=(16, 5), mapping=(16,)),
        r"mapping to rows that it lacks",
    ),
    "not finite": (
        "model.safetensors",
        safetensors.numpy.save({"embeddings": np.full((16, 5), np.nan, np.float32)}),
        r"numbers that are not finite",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_directory_is_reported_in_a_sentence(what: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model")
    name, content, message = BAD[what]
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        fit(directory)
    assert f"labels.vectors={directory}: " in str(caught.value)
    assert "\n" not in str(caught.value)
