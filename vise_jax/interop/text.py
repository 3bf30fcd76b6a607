"""Convert text encoders from directories in Hugging Face's layout, strictly."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vise_jax
from vise_jax import artifact, models, variables
from vise_jax.errors import UserError
from vise_jax.interop import containers
from vise_jax.interop.conversion import MAX_BYTES, fill, upcast
from vise_jax.interop.layouts import prefixed
from vise_jax.text_encoder import TextEncoder

_WEIGHTS = "model.safetensors"
# Keys of config.json by our setting.
_SETTINGS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "attention_heads": "num_attention_heads",
    "intermediate_width": "intermediate_size",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "segments": "type_vocab_size",
    "epsilon": "layer_norm_eps",
}
# Supported values of settings in config.json; the first is the default.
_SUPPORTED = {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,)}


@dataclass(frozen=True)
class TextSource:
    """A family of published text encoders.

    Args:
        title: shown by `convert.py --list`.
        pooling: default without `1_Pooling/config.json`.
        license: of the weights.
        where: address of the files.
    """

    title: str
    pooling: str
    license: str
    where: str


# Sources by their name for --source, which is `model_type` in config.json.
TEXT_SOURCES = {
    "roberta": TextSource(
        title="RoBERTa base and large (Liu et al. 2019), the paper's text encoder; features are the first token's",
        pooling="first",
        license="MIT",
        where="https://huggingface.co/FacebookAI/roberta-base: config.json, model.safetensors, tokenizer.json",
    ),
    "bert": TextSource(
        title="the BERT family, e.g. sentence encoders such as MiniLM; pooling as in 1_Pooling/config.json",
        pooling="mean",
        license="not stated: see the model's own README",
        where="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    ),
}
_NOT_THE_ENCODERS = (
    r"((roberta|bert)\.)?pooler\..*",
    r"((roberta|bert)\.)?embeddings\.position_ids",
    r"(lm_head|cls|classifier)\..*",
)


def convert_text(
    directory: str | Path, source: str, *, sha256: str | None = None, max_bytes: int = MAX_BYTES
) -> TextEncoder:
    """Convert a text encoder.

    Args:
        directory: with `config.json`, `model.safetensors` and `tokenizer.json`; of a sentence encoder also
            `modules.json`, `1_Pooling/config.json` and `sentence_bert_config.json`.
        source: a name of `TEXT_SOURCES`.
        sha256: expected SHA-256 (hex) of `model.safetensors`, checked before it is opened.
        max_bytes: largest size of `model.safetensors`.

    Raises:
        UserError: a missing or damaged file, a config that is not supported, weights that are missing, unexpected, of
            another shape or type, or not finite, or a tokenizer that doesn't fit the weights.
    """
    directory, row = Path(directory), TEXT_SOURCES[source]
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory: name one with config.json, {_WEIGHTS} and tokenizer.json.")
    config = _json(directory / "config.json")
    architecture = _architecture(directory, source, config, row)
    path = weights_of(directory)
    digest = containers.check(path, sha256=sha256, max_bytes=max_bytes)
    tensors, notes = upcast(containers.read(path, max_bytes=max_bytes))
    # Older files have TensorFlow's names.
    names = {key: re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key) for key in tensors}
    tensors = {re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", names[key]): value for key, value in tensors.items()}
    prefix = f"{source}." if any(key.startswith(f"{source}.embeddings.") for key in tensors) else ""
    expected = variables.expected(architecture)
    weights = fill(path, f"the {source} of its config.json", expected, tensors, prefixed(prefix), _NOT_THE_ENCODERS)
    try:
        tokenizer = (directory / "tokenizer.json").read_bytes()
    except OSError as error:
        raise UserError(f"{directory / 'tokenizer.json'} can't be read ({error.strerror}): get it again.") from error
    return TextEncoder(
        architecture,
        weights,
        tokenizer,
        _max_tokens(directory, architecture),
        {
            "converted": {
                "source": source,
                "file": _WEIGHTS,
                "sha256": digest,
                "layout_verified": True,
                "where": row.where,
                "notes": notes,
                "vise_jax": vise_jax.__version__,
            }
        },
        row.license,
    )


def weights_of(directory: Path) -> Path:
    """Return the path of a directory's weights."""
    return directory / _WEIGHTS


def _architecture(directory: Path, source: str, config: Mapping[str, Any], row: TextSource) -> dict[str, Any]:
    if config.get("model_type") != source:
        raise UserError(
            f"{directory / 'config.json'} has the model_type {config.get('model_type')!r}, not {source!r}: give that "
            f"--source, one of {', '.join(TEXT_SOURCES)}."
        )
    for key, supported in _SUPPORTED.items():
        if config.get(key, supported[0]) not in supported:
            raise UserError(
                f"{directory / 'config.json'} has {key}={config[key]!r}, which is not supported: {key} must be "
                f"{supported[0]!r}."
            )
    if missing := [key for key in _SETTINGS.values() if key not in config]:
        raise UserError(f"{directory / 'config.json'} lacks {missing[0]}: get the file again.")
    pooling, unit_length = _pooling(directory, row.pooling)
    settings = {ours: config[theirs] for ours, theirs in _SETTINGS.items()}
    # RoBERTa counts positions from the index after that of its padding token.
    padding = config.get("pad_token_id", 1)
    if type(padding) is not int or padding < 0:
        raise UserError(f"{directory / 'config.json'} has pad_token_id={padding!r}, no number: get the file again.")
    first = padding + 1 if source == "roberta" else 0
    settings |= {"first_position": first, "pooling": pooling, "unit_length": unit_length}
    return models.resolve(models.TEXT_ENCODER, **settings)


def _pooling(directory: Path, default: str) -> tuple[str, bool]:
    """Return pooling and whether features are normalized, as sentence-transformers' files say."""
    pooling = default
    if (directory / "1_Pooling" / "config.json").is_file():
        about = _json(directory / "1_Pooling" / "config.json")
        modes = [key.removeprefix("pooling_mode_") for key, value in about.items() if value is True]
        known = {"mean_tokens": "mean", "cls_token": "first"}
        modes = [mode for mode in modes if mode != "include_prompt"]
        if len(modes) != 1 or modes[0] not in known:
            raise UserError(
                f"{directory}/1_Pooling/config.json has the pooling {modes}: take a model with mean or cls."
            )
        pooling = known[modes[0]]
    modules: Any = _json(directory / "modules.json", list) if (directory / "modules.json").is_file() else []
    kinds = [str(module.get("type")).rsplit(".", 1)[-1] for module in modules if isinstance(module, dict)]
    if other := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise UserError(
            f"{directory}/modules.json has the module {other[0]}: take a model of Transformer, Pooling and Normalize."
        )
    return pooling, "Normalize" in kinds


def _max_tokens(directory: Path, architecture: Mapping[str, Any]) -> int:
    limit = architecture["positions"] - architecture["first_position"]
    path = directory / "sentence_bert_config.json"
    stated = _json(path).get("max_seq_length") if path.is_file() else None
    return min(stated, limit) if isinstance(stated, int) and stated >= 2 else limit


def _json(path: Path, kind: type = dict) -> Any:
    try:
        value = artifact.from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON: get the model's directory again.") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} is not as it should be: get the model's directory again.")
    return value
