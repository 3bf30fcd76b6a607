"""Tokenizers of Hugging Face's library `tokenizers`, from files that may be damaged or hostile."""

import contextlib
from collections.abc import Callable, Iterator

from tokenizers import Tokenizer

from vise_jax.errors import UserError

# Larger numbers of tokens are no tokenizer's, and must not fill the memory.
_MAX_NUMBER = 10_000_000


def parse(content: bytes, max_tokens: int | None, refuse: Callable[[str], UserError]) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`, without padding.

    Args:
        content: of the file.
        max_tokens: longer texts are truncated; None = none are.
        refuse: from what is wrong to the error.

    Raises:
        UserError: the file is damaged; the numbers of its tokens are out of range; or it can't split a text.
    """
    with explained(refuse):
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        if max_tokens is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(max_tokens)
        numbers = tokenizer.get_vocab(with_added_tokens=True).values()
        if (largest := max(numbers, default=-1)) > _MAX_NUMBER:
            raise ValueError(f"a token has the number {largest:,}")
        # Some damage shows only here.
        tokenizer.encode_batch_fast(["a b"])
    return tokenizer


@contextlib.contextmanager
def explained(refuse: Callable[[str], UserError]) -> Iterator[None]:
    """Turn errors of the library into one of ours.

    Raises:
        UserError: see `parse`.
    """
    try:
        yield
    except Exception as error:  # the library names nothing narrower
        raise refuse(str(error)) from error
    except BaseException as error:
        # A panic of Rust code is no `Exception`.
        if type(error).__name__ != "PanicException":
            raise
        raise refuse(str(error)) from error
