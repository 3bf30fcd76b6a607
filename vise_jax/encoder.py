"""The encoder artifact: a network's weights with all that is needed to use them.

A folder holds `encoder.json` (architecture, preprocessing, which layer the features are and how many, provenance,
license, SHA-256 of the weights) and the weights themselves as an Orbax checkpoint in `weights/`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx, traverse_util
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vise_jax import artifact, models
from vise_jax.errors import UserError

FORMAT_VERSION = 2
_DESCRIPTION = "encoder.json"
_WEIGHTS = "weights"
_MADE_BY = "train.py or convert.py"
# Version 1 left settings out that had these values.
_VERSION_1_SETTINGS = {
    "width": 64,
    "stem": "imagenet",
    "bn_momentum": 0.9,
    "bn_epsilon": 1e-5,
    "zero_init_last_bn": True,
}

# Of RGB values between 0 and 1: torchvision's, and everybody's since.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_preprocessing(crop: int = 224) -> dict[str, Any]:
    """torchvision's preprocessing: the shorter side is resized to 256 / 224 of `crop`, then the center is cropped."""
    return {
        "color": "RGB",
        "scale": 255.0,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "resize": round(crop * 256 / 224),
        "crop": crop,
        "interpolation": "bilinear",
    }


def normalize(images: jax.Array, preprocessing: Mapping[str, Any]) -> jax.Array:
    """Normalize on the device: (images / scale - mean) / std, in the preprocessing's order of colors.

    Args:
        images: uint8 [B, H, W, 3], RGB.
        preprocessing: "color" ("RGB" or "BGR"), "scale", and "mean" and "std" of the three colors.

    Returns:
        float32 [B, H, W, 3].
    """
    if preprocessing["color"] == "BGR":
        images = images[..., ::-1]
    mean, std = (np.asarray(preprocessing[key], np.float32).reshape(1, 1, 1, 3) for key in ("mean", "std"))
    return (images.astype(jnp.float32) / preprocessing["scale"] - mean) / std


def weights_of(model: nnx.Module) -> dict[str, jax.Array]:
    """All parameters and batch statistics of a model by their path, e.g. `layer1/0/conv1/kernel`, in sorted order."""
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return dict(sorted(("/".join(map(str, path)), variable.get_value()) for path, variable in state))


# Arrays have no truth value: two instances are equal if they are the same object.
@dataclass(frozen=True, eq=False)
class Encoder:
    """A trained (or random) network: architecture, weights and how to prepare images for it.

    Args:
        architecture: the arguments of `vise_jax.models.build`.
        weights: path → array, exactly those of `weights_of` the architecture.
        preprocessing: "color", "scale", "mean", "std" (see `normalize`); "resize" (the shorter side), "crop" (pixels
            of the center crop) and "interpolation".
        provenance: where the weights come from, any JSON.
        license: under which the weights may be used.
    """

    architecture: dict[str, Any]
    weights: dict[str, jax.Array] = field(repr=False)
    preprocessing: dict[str, Any]
    provenance: dict[str, Any]
    license: str

    def __post_init__(self) -> None:
        _check_preprocessing(self.preprocessing)
        object.__setattr__(self, "architecture", models.resolve(**self.architecture))
        differences = _differences(expected_weights(self.architecture), self.weights)
        if differences:
            raise UserError(f"The weights don't fit the architecture {self.architecture}: {differences}.")

    @classmethod
    def from_model(
        cls,
        model: nnx.Module,
        *,
        architecture: dict[str, Any],
        preprocessing: dict[str, Any],
        provenance: dict[str, Any],
        license: str,
    ) -> "Encoder":
        """An encoder with the weights of a model that `vise_jax.models.build(**architecture)` made."""
        return cls(models.resolve(**architecture), weights_of(model), preprocessing, provenance, license)

    @classmethod
    def random(cls, source: str | Path, seed: int) -> "Encoder":
        """An untrained encoder, the baseline "Random Init" (Sec. 4.1), with the initial weights of torchvision.

        Args:
            source: a name of `vise_jax.models.ENCODERS` (224-pixel crops, ImageNet's normalization), or the folder of
                an encoder whose architecture and preprocessing are taken. Either may follow "random:".
            seed: of the weights.

        Raises:
            UserError: neither such a name nor such a folder.
        """
        source = str(source).removeprefix("random:")
        architecture: dict[str, Any] = {"name": source}
        preprocessing = imagenet_preprocessing()
        if source not in models.ENCODERS:
            if not Path(source).is_dir():
                names = ", ".join(models.ENCODERS)
                raise UserError(f"random:{source} is neither an encoder's name ({names}) nor the folder of an encoder.")
            description = _read_description(Path(source))
            architecture, preprocessing = description["architecture"], description["preprocessing"]
        architecture = {key: value for key, value in architecture.items() if key != "seed"}
        # Blocks that start as the identity make an untrained network weaker than torchvision's, the usual baseline.
        architecture = models.resolve(**{**architecture, "zero_init_last_bn": False})
        model = models.build(**architecture, seed=seed)
        provenance = {"random": {"seed": seed}}
        return cls.from_model(
            model, architecture=architecture, preprocessing=preprocessing, provenance=provenance, license="none needed"
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Encoder":
        """Read an encoder that `save` wrote.

        Raises:
            UserError: no encoder there, weights that are missing, unexpected or of another shape or type (it lists
                them), or whose SHA-256 is not that of the description.
        """
        folder = Path(folder)
        description = _read_description(folder)
        expected = expected_weights(description["architecture"])
        checkpointer = _checkpointer()
        again = f"make the folder again with {_MADE_BY}"
        path = (folder / _WEIGHTS).absolute()
        try:
            found = traverse_util.flatten_dict(dict(checkpointer.metadata(path).item_metadata.tree), sep="/")
        except Exception as error:  # Orbax and TensorStore raise whatever the damage leads to
            raise UserError(f"The weights in {path} can't be read ({_first_line(error)}): {again}.") from error
        differences = _differences(expected, found)
        if differences:
            raise UserError(f"The weights in {path} don't fit the architecture in {_DESCRIPTION}: {differences}.")
        try:
            tree = traverse_util.flatten_dict(checkpointer.restore(path, restore_args=_as_numpy(expected)), sep="/")
        except Exception as error:
            raise UserError(f"The weights in {path} can't be read ({_first_line(error)}): {again}.") from error
        if _sha256(tree) != description["sha256"]:
            raise UserError(f"The weights in {path} are not those that {_DESCRIPTION} was written for: {again}.")
        weights = {key: jnp.asarray(tree[key]) for key in expected}
        return cls(
            description["architecture"],
            weights,
            description["preprocessing"],
            description["provenance"],
            description["license"],
        )

    def save(self, folder: str | Path) -> None:
        """Write the encoder to a new folder, whole or not at all.

        Raises:
            UserError: the folder exists and holds something.
        """
        arrays = {key: np.asarray(value) for key, value in self.weights.items()}
        with artifact.atomic_directory(Path(folder)) as temporary:
            _checkpointer().save((temporary / _WEIGHTS).absolute(), traverse_util.unflatten_dict(arrays, "/"))
            description = {
                "format_version": FORMAT_VERSION,
                "modality": "image",
                "architecture": self.architecture,
                "preprocessing": self.preprocessing,
                "provenance": self.provenance,
                "license": self.license,
                "feature_dim": self.feature_dim,
                "feature_layer": _abstract(self.architecture).feature_layer,
                "sha256": _sha256(arrays),
            }
            artifact.write_json(temporary / _DESCRIPTION, description)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides on the features: architecture, weights, preprocessing."""
        return artifact.fingerprint([self.architecture, self.preprocessing, _sha256(self.weights)])

    @cached_property
    def feature_dim(self) -> int:
        """Number of features of an image."""
        return _abstract(self.architecture).feature_dim

    def features(self, images: np.ndarray | jax.Array, batch_size: int = 0) -> np.ndarray:
        """Features of images that were resized and cropped as `preprocessing` says.

        Args:
            images: uint8 [B, H, W, 3], RGB.
            batch_size: images through the network at a time, split over this process's devices; 0 = all at once. The
                last ones are filled up, so that the network is compiled for one shape only.

        Returns:
            float32 [B, D]: the mean of the feature map, or of CLIP what its attention pool makes of it.

        Raises:
            UserError: images of another type or shape.
        """
        return self._run("features", images, batch_size)

    def feature_map(self, images: np.ndarray | jax.Array, batch_size: int = 0) -> np.ndarray:
        """The last stage's output, float32 [B, h, w, D]; see `features`."""
        return self._run("feature_map", images, batch_size)

    def _run(self, name: str, images: np.ndarray | jax.Array, batch_size: int) -> np.ndarray:
        found, images = [], np.asarray(_checked(images))
        split = NamedSharding(self._mesh, PartitionSpec("data"))
        size = max(-(-(batch_size or len(images)) // self._mesh.size), 1) * self._mesh.size
        for start in range(0, max(len(images), 1), size):
            part = images[start : start + size]
            padding = np.zeros((size - len(part), *part.shape[1:]), np.uint8)
            batch = jax.device_put(np.concatenate([part, padding]), split)
            found.append(np.asarray(self._forward(batch, self._placed)[name], np.float32)[: len(part)])
        return np.concatenate(found)

    def model(self) -> nnx.Module:
        """The network with these weights, as `vise_jax.models.build` makes it; its variables are its own."""
        return _with_weights(self.architecture, self.weights)

    @cached_property
    def _mesh(self) -> Mesh:
        devices = jax.local_devices()
        return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)

    @cached_property
    def _placed(self) -> dict[str, jax.Array]:
        """The weights, on each device."""
        return jax.device_put(self.weights, NamedSharding(self._mesh, PartitionSpec()))

    @cached_property
    def _forward(self) -> Any:
        def forward(images: jax.Array, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
            network = _with_weights(self.architecture, weights)
            return network(normalize(images, self.preprocessing), train=False)[1]

        return jax.jit(forward)


def _with_weights(architecture: Mapping[str, Any], weights: Mapping[str, jax.Array]) -> Any:
    graph, state = nnx.split(_abstract(architecture))
    filled = [
        (path, variable.replace(weights["/".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def expected_weights(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Path → shape and type of the weights that an architecture has."""
    return weights_of(_abstract(architecture))


def _abstract(architecture: Mapping[str, Any]) -> Any:
    """The network with shapes and types in the place of arrays."""
    try:
        return nnx.eval_shape(lambda: models.build(**architecture))
    except (TypeError, AttributeError) as error:
        raise UserError(f"{dict(architecture)} is no architecture of an encoder: {_first_line(error)}.") from error


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What two sets of arrays differ in, in words; empty when every path, shape and type is the same."""
    wrong = [f"missing {key}" for key in expected if key not in found]
    wrong += [f"unexpected {key}" for key in found if key not in expected]
    for key in expected.keys() & found.keys():
        is_, should = (f"{np.dtype(value.dtype)} {list(value.shape)}" for value in (found[key], expected[key]))
        if is_ != should:
            wrong.append(f"{key} is {is_} instead of {should}")
    shown = "; ".join(sorted(wrong)[:16])
    return shown if len(wrong) <= 16 else f"{shown}; and {len(wrong) - 16} more"


def _sha256(weights: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of path, type, shape and little-endian bytes of every array, in the order of their paths."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        array = np.ascontiguousarray(weights[key])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{key} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _checkpointer() -> ocp.Checkpointer:
    # One process reads or writes an encoder by itself, whether or not others are there.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"encoder{jax.process_index()}",
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _as_numpy(expected: Mapping[str, Any]) -> Any:
    # Without this, Orbax would look for the devices that the weights were saved from.
    return traverse_util.unflatten_dict({key: ocp.RestoreArgs(restore_type=np.ndarray) for key in expected}, "/")


def _read_description(folder: Path) -> dict[str, Any]:
    description = artifact.read_description(folder, _DESCRIPTION, version=FORMAT_VERSION, made_by=_MADE_BY, older=(1,))
    if description["format_version"] == 1 and isinstance(description.get("architecture"), dict):
        description |= {
            "modality": "image",
            "architecture": _VERSION_1_SETTINGS | description["architecture"],
            "license": description.pop("licence", description.get("license")),
        }
    if isinstance(description.get("architecture"), dict) and not models.is_resolved(description["architecture"]):
        raise UserError(
            f"{folder / _DESCRIPTION} holds no architecture of an encoder, or leaves settings to defaults: write the "
            f"directory again with {_MADE_BY}."
        )
    if description.get("modality") != "image":
        raise UserError(
            f"{folder} holds an encoder of {description.get('modality')!r}, not of images: give an image encoder."
        )
    kinds = {"architecture": dict, "preprocessing": dict, "provenance": dict, "license": str, "sha256": str}
    for key, kind in kinds.items():
        if not isinstance(description.get(key), kind):
            raise UserError(f"{folder / _DESCRIPTION} has no valid {key!r}: make the folder again with {_MADE_BY}.")
    return description


def _check_preprocessing(preprocessing: Mapping[str, Any]) -> None:
    def numbers(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(v, int | float) for v in value)

    def positive(value: Any) -> bool:
        return isinstance(value, int | float) and value > 0

    rules = {
        "color": lambda value: value in ("RGB", "BGR"),
        "scale": positive,
        "mean": numbers,
        "std": lambda value: numbers(value) and all(v > 0 for v in value),
        "resize": positive,
        "crop": positive,
        "interpolation": lambda value: value in ("bilinear", "bicubic"),
    }
    for key, allowed in rules.items():
        if not allowed(preprocessing.get(key)):
            raise UserError(f"The encoder's preprocessing has no valid {key!r}: it is {preprocessing.get(key)!r}.")


def _checked(images: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    if getattr(images, "dtype", None) != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        found = f"{getattr(images, 'dtype', type(images).__name__)} {list(getattr(images, 'shape', ()))}"
        raise UserError(f"Images must be uint8 [B, H, W, 3], but these are {found}: stack RGB images of one size.")
    return images


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
