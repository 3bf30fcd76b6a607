"""Linear heads on frozen features, stored beside a result."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special

from vise_jax import arrays, artifact
from vise_jax.errors import UserError


class Head(NamedTuple):
    """A linear classifier of features: logits = ((features - mean) * scale) @ kernel + bias.

    Attributes:
        kernel: float32 [D, K].
        bias: float32 [K].
        mean: float32 [D].
        scale: float32 [D].
    """

    kernel: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


def logits(head: Head, features: np.ndarray) -> np.ndarray:
    """Return unnormalized log-probabilities, float32 [..., K], of features float32 [..., D]."""
    return ((features - head.mean) * head.scale) @ head.kernel + head.bias


def probabilities(head: Head, features: np.ndarray) -> np.ndarray:
    """Return class probabilities, float32 [..., K], of features float32 [..., D]."""
    return scipy.special.softmax(logits(head, features), axis=-1)


def path_of(result: Path, seed: int) -> Path:
    """Return the path of the head of a result's split."""
    return result.with_suffix(f".head-{seed}.safetensors")


def write(path: Path, head: Head) -> None:
    """Write a head atomically, as safetensors."""
    with artifact.atomic_file(path) as file:
        file.write(arrays.to_safetensors(head._asdict()))


def read(path: Path) -> Head:
    """Read a head that `write` wrote.

    Raises:
        UserError: no such file, or one that is damaged.
    """
    try:
        tensors, _ = arrays.from_safetensors(path.read_bytes())
        head = Head(**{name: tensors[name] for name in Head._fields})
        dim, classes = head.kernel.shape
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no linear head: run evaluate.py again with the linear protocol.") from error
    if (head.bias.shape, head.mean.shape, head.scale.shape) != ((classes,), (dim,), (dim,)):
        raise UserError(f"{path} holds no linear head: run evaluate.py again with the linear protocol.")
    return head
