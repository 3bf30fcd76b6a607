"""How images are prepared for an encoder: resized, cropped and normalized. It travels with the encoder."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vise_jax.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an encoder's images.

    Args:
        color: order of the channels that the encoder takes, "RGB" or "BGR".
        scale: divisor of the uint8 values.
        mean: subtracted from the scaled values, one per channel.
        std: divisor after that, one per channel.
        resize: length of the shorter side after resizing, in pixels.
        crop: side of the center crop, in pixels.
        interpolation: "bilinear" or "bicubic".

    Raises:
        UserError: a value that is not supported; names it.
    """

    color: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int
    crop: int
    interpolation: str

    def __post_init__(self) -> None:
        for name, is_valid in _RULES.items():
            if not is_valid(value := getattr(self, name)):
                raise UserError(f"The encoder's preprocessing has no valid {name!r}, it is {value!r}: correct it.")

    @classmethod
    def imagenet(cls, crop: int = 224) -> "Preprocessing":
        """Return torchvision's: the shorter side is resized to 256 / 224 of `crop`; ImageNet's mean and deviation."""
        return cls(
            color="RGB",
            scale=255.0,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            resize=round(crop * 256 / 224),
            crop=crop,
            interpolation="bilinear",
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing that `to_json` described.

        Raises:
            UserError: a key is missing, unknown or has no valid value; names it.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if differing := sorted(names ^ values.keys()):
            raise UserError(f"The encoder's preprocessing lacks, or has too many keys: {', '.join(differing)}.")
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})

    def to_json(self) -> dict[str, Any]:
        """Return the values by name, lists in the place of tuples."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def at(self, crop: int) -> "Preprocessing":
        """Return the same preprocessing for a crop of `crop` pixels (0 = unchanged), resized in proportion."""
        if not crop:
            return self
        return dataclasses.replace(self, resize=round(self.resize * crop / self.crop), crop=crop)


def normalize(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Normalize on the device: (images / scale - mean) / std, in the encoder's order of channels.

    Args:
        images: uint8 [B, H, W, 3], RGB.
        preprocessing: the encoder's.

    Returns:
        float32 [B, H, W, 3].
    """
    if preprocessing.color == "BGR":
        images = images[..., ::-1]
    mean, std = (np.array(values, np.float32).reshape(1, 1, 1, 3) for values in (preprocessing.mean, preprocessing.std))
    return (images.astype(jnp.float32) / preprocessing.scale - mean) / std


def _is_triple(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(isinstance(number, int | float) for number in value)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


_RULES: dict[str, Callable[[Any], bool]] = {
    "color": lambda value: value in ("RGB", "BGR"),
    "scale": _is_positive,
    "mean": _is_triple,
    "std": lambda value: _is_triple(value) and min(value) > 0,
    "resize": _is_positive,
    "crop": _is_positive,
    "interpolation": lambda value: value in ("bilinear", "bicubic"),
}
