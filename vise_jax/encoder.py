"""The encoder artifact: a network's weights with all that is needed to use them.

A directory holds `encoder.json` (modality, architecture, preprocessing, feature layer and dimension, provenance,
license, SHA-256 of the weights), the weights as an Orbax checkpoint, `weights/`, and a model card, `README.md`. A text
encoder has a `tokenizer` in the place of `preprocessing`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vise_jax import arrays, artifact, model_card, models, variables
from vise_jax.errors import UserError
from vise_jax.preprocessing import Preprocessing, normalize

FORMAT_VERSION = 2
_DESCRIPTION = "encoder.json"
WEIGHTS = "weights"
MODEL_CARD = "README.md"
MADE_BY = "train.py or convert.py"
# The key that describes the input of a modality.
_INPUTS = {"image": "preprocessing", "text": "tokenizer"}
_NOUNS = {"image": "images", "text": "text"}
# Version 1 left settings out that had these values.
_VERSION_1_SETTINGS = {
    "width": 64,
    "stem": "imagenet",
    "bn_momentum": 0.9,
    "bn_epsilon": 1e-5,
    "zero_init_last_bn": True,
}


# Arrays have no truth value: two instances are equal if they are the same object.
@dataclass(frozen=True, eq=False)
class Encoder:
    """A trained or untrained image encoder: architecture, weights and preprocessing.

    Args:
        architecture: arguments of `vise_jax.models.build`; defaults are filled in.
        weights: array by path, exactly those of the architecture, see `vise_jax.variables`.
        preprocessing: how images are prepared.
        provenance: where the weights come from, any JSON.
        license: under which the weights may be used.

    Raises:
        UserError: the weights don't fit the architecture.
    """

    architecture: dict[str, Any]
    weights: dict[str, jax.Array] = field(repr=False)
    preprocessing: Preprocessing
    provenance: dict[str, Any]
    license: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", models.resolve(**self.architecture))
        differences = variables.differences(variables.expected(self.architecture), self.weights)
        if differences:
            raise UserError(
                f"The architecture {self.architecture} doesn't fit, give that of the weights: {differences}."
            )

    @classmethod
    def from_model(
        cls,
        model: nnx.Module,
        *,
        architecture: dict[str, Any],
        preprocessing: Preprocessing,
        provenance: dict[str, Any],
        license: str,
    ) -> "Encoder":
        """Return an encoder with the weights of a model that `vise_jax.models.build(**architecture)` returned."""
        return cls(models.resolve(**architecture), variables.of_model(model), preprocessing, provenance, license)

    @classmethod
    def random(cls, source: str | Path, seed: int) -> "Encoder":
        """Return an untrained encoder, the baseline "Random Init" (Sec. 4.1), with torchvision's initial weights.

        Args:
            source: a name of `vise_jax.models.ENCODERS` (224-pixel crops, ImageNet's normalization), or the directory
                of an encoder whose architecture and preprocessing are taken. Either may follow "random:".
            seed: of the weights.

        Raises:
            UserError: neither such a name nor such a directory.
        """
        source = str(source).removeprefix("random:")
        architecture: dict[str, Any] = {"name": source}
        preprocessing = Preprocessing.imagenet()
        if source not in models.ENCODERS:
            directory = artifact.location(source)
            if not artifact.is_remote(directory) and not directory.is_dir():
                names = ", ".join(models.ENCODERS)
                raise UserError(
                    f"random:{source} is neither an encoder's name nor an encoder's directory: give a directory, or "
                    f"one of {names}."
                )
            description = read_description(directory, "image")
            architecture = description["architecture"]
            preprocessing = Preprocessing.from_json(description["preprocessing"])
        architecture = {key: value for key, value in architecture.items() if key != "seed"}
        # Blocks that start as the identity make an untrained network weaker than torchvision's, the usual baseline.
        architecture = models.resolve(**{**architecture, "zero_init_last_bn": False})
        model = models.build(**architecture, seed=seed)
        provenance = {"random": {"seed": seed}}
        return cls.from_model(
            model, architecture=architecture, preprocessing=preprocessing, provenance=provenance, license="none needed"
        )

    @classmethod
    def load(cls, directory: str | Path) -> "Encoder":
        """Read an encoder that `save` wrote.

        Raises:
            UserError: no encoder there; or weights that are missing, unexpected, of another shape or type (it lists
                them), or of another SHA-256 than described.
        """
        directory = artifact.location(directory)
        description = read_description(directory, "image")
        with artifact.local_copy(directory) as copy:
            weights = read_weights(copy, description)
        return cls(
            description["architecture"],
            weights,
            Preprocessing.from_json(description["preprocessing"]),
            description["provenance"],
            description["license"],
        )

    def save(self, directory: str | Path) -> None:
        """Write the encoder and its model card to a new directory, atomically.

        Raises:
            UserError: the directory exists and holds something.
        """
        weights = {key: np.asarray(value) for key, value in self.weights.items()}
        with artifact.atomic_directory(artifact.location(directory), _DESCRIPTION) as temporary:
            variables.write(temporary / WEIGHTS, weights)
            description = {
                "format_version": FORMAT_VERSION,
                "modality": "image",
                "architecture": self.architecture,
                "preprocessing": self.preprocessing.to_json(),
                "provenance": self.provenance,
                "license": self.license,
                "feature_dim": self.feature_dim,
                "feature_layer": variables.abstract_model(self.architecture).feature_layer,
                "sha256": self._sha256,
            }
            artifact.write_json(temporary / _DESCRIPTION, description)
            artifact.write_text(temporary / MODEL_CARD, self.card())

    def card(self, **library: str) -> str:
        """Return the model card in Markdown.

        Args:
            **library: `library` and `usage` of `model_card.render`; by default, vise_jax's.
        """
        parameters = [value.size for path, value in self.weights.items() if not path.endswith(("/mean", "/var"))]
        return model_card.render(
            architecture=self.architecture,
            modality="image",
            inputs=model_card.of_images(self.preprocessing),
            provenance=self.provenance,
            license=self.license,
            feature_dim=self.feature_dim,
            parameters=sum(parameters),
            sha256=self._sha256,
            **library,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the features: architecture, weights and preprocessing."""
        return artifact.fingerprint([self.architecture, self.preprocessing.to_json(), self._sha256])

    @cached_property
    def _sha256(self) -> str:
        """SHA-256 (hex) of the weights."""
        return arrays.sha256(self.weights)

    @cached_property
    def feature_dim(self) -> int:
        """Number of features of an image, D."""
        return variables.abstract_model(self.architecture).feature_dim

    def features(self, images: np.ndarray | jax.Array, batch_size: int = 0) -> np.ndarray:
        """Compute the features of images that were resized and cropped by `preprocessing`.

        Products and convolutions run in full float32, on accelerators too.

        Args:
            images: uint8 [B, H, W, 3], RGB.
            batch_size: images that go through the network at a time, split over this process's devices; 0 = all at
                once. The last batch is padded, so that the network is compiled for one shape only.

        Returns:
            float32 [B, D]: the mean of the feature map; for CLIP, the output of its attention pool.

        Raises:
            UserError: images of another type or shape.
        """
        return self._run("features", images, batch_size)

    def feature_map(self, images: np.ndarray | jax.Array, batch_size: int = 0) -> np.ndarray:
        """Compute the output of the last stage, float32 [B, h, w, D]; see `features`."""
        return self._run("feature_map", images, batch_size)

    def _run(self, name: str, images: np.ndarray | jax.Array, batch_size: int) -> np.ndarray:
        outputs, images = [], np.asarray(_checked(images))
        split = NamedSharding(self._mesh, PartitionSpec("data"))
        size = max(-(-(batch_size or len(images)) // self._mesh.size), 1) * self._mesh.size
        for start in range(0, max(len(images), 1), size):
            chunk = images[start : start + size]
            padding = np.zeros((size - len(chunk), *chunk.shape[1:]), np.uint8)
            batch = jax.device_put(np.concatenate([chunk, padding]), split)
            outputs.append(np.asarray(self._forward(batch, self._placed)[name], np.float32)[: len(chunk)])
        return np.concatenate(outputs)

    def model(self) -> nnx.Module:
        """Return the network with these weights; its variables are its own."""
        return variables.with_weights(self.architecture, self.weights)

    @cached_property
    def _mesh(self) -> Mesh:
        devices = jax.local_devices()
        return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)

    @cached_property
    def _placed(self) -> dict[str, jax.Array]:
        """The weights, on each device."""
        return jax.device_put(self.weights, NamedSharding(self._mesh, PartitionSpec()))

    @cached_property
    def _forward(self) -> Callable[[jax.Array, dict[str, jax.Array]], dict[str, jax.Array]]:
        def forward(images: jax.Array, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
            # Without it, float32 products are TF32 on GPUs and bfloat16 on TPUs.
            with jax.default_matmul_precision("highest"):
                network = variables.with_weights(self.architecture, weights)
                return network(normalize(images, self.preprocessing), train=False)[1]

        return jax.jit(forward, compiler_options=models.compiler_options(self._mesh.devices.flat[0].platform))


def read_weights(directory: Path, description: dict[str, Any]) -> dict[str, jax.Array]:
    """Read the weights of an encoder.

    Args:
        directory: of the encoder.
        description: as `read_description` returned it.

    Raises:
        UserError: weights that are missing, unexpected, of another shape or type, or of another SHA-256 than described.
    """
    weights = variables.read(directory / WEIGHTS, variables.expected(description["architecture"]))
    if arrays.sha256(weights) != description["sha256"]:
        raise UserError(
            f"The weights in {directory / WEIGHTS} are not those that {_DESCRIPTION} was written for: write the "
            f"directory again with {MADE_BY}."
        )
    return {key: jnp.asarray(array) for key, array in weights.items()}


def read_description(directory: Path, modality: str) -> dict[str, Any]:
    """Read and check `encoder.json`.

    Args:
        directory: of the encoder.
        modality: "image" or "text", that the caller needs.

    Raises:
        UserError: no encoder there, an invalid description, or an encoder of the other modality.
    """
    description = artifact.read_description(
        directory, _DESCRIPTION, version=FORMAT_VERSION, made_by=MADE_BY, older=(1,)
    )
    if description["format_version"] == 1 and isinstance(description.get("architecture"), dict):
        description |= {
            "modality": "image",
            "architecture": _VERSION_1_SETTINGS | description["architecture"],
            "license": description.pop("licence", description.get("license")),
        }
    if not isinstance(description.get("modality"), str) or description["modality"] not in _INPUTS:
        raise UserError(
            f"{directory / _DESCRIPTION} has no valid 'modality': write the directory again with {MADE_BY}."
        )
    if description["modality"] != modality:
        theirs, ours = _NOUNS[description["modality"]], _NOUNS[modality]
        raise UserError(f"{directory} holds an encoder of {theirs}, not of {ours}: give an encoder of {ours}.")
    if isinstance(description.get("architecture"), dict) and not models.is_resolved(description["architecture"]):
        raise UserError(
            f"{directory / _DESCRIPTION} holds no architecture of an encoder, or leaves settings to defaults: write "
            f"the directory again with {MADE_BY}."
        )
    kinds = {"architecture": dict, "provenance": dict, "license": str, "sha256": str}
    for key, kind in {**kinds, _INPUTS[description["modality"]]: dict}.items():
        if not isinstance(description.get(key), kind):
            raise UserError(
                f"{directory / _DESCRIPTION} has no valid {key!r}: write the directory again with {MADE_BY}."
            )
    unused = _INPUTS.keys() - {description["modality"]}
    if wrong := [_INPUTS[modality] for modality in unused if _INPUTS[modality] in description]:
        raise UserError(
            f"{directory / _DESCRIPTION} describes an encoder of {_NOUNS[modality]}, which has no {wrong[0]!r}: write "
            f"the directory again with {MADE_BY}."
        )
    return description


def _checked(images: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    if getattr(images, "dtype", None) != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        given = f"{getattr(images, 'dtype', type(images).__name__)} {list(getattr(images, 'shape', ()))}"
        raise UserError(f"Images must be uint8 [B, H, W, 3], but these are {given}: stack RGB images of one size.")
    return images
