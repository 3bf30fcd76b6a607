"""The run folder: whose it is, and the encoder at its end."""

import json
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

import vise_jax
from vise_jax import artifact, models
from vise_jax import config as vise_config
from vise_jax.encoder import Encoder, imagenet_preprocessing, weights_of
from vise_jax.errors import UserError
from vise_jax.training.hosts import barrier

_FORMAT_VERSION = 1
# Keys that may change when a run goes on: they don't change what is computed. The shards are known by fingerprint,
# and what is in `labels` has become part of them. The groups of batch norm stay those that the run began with.
_FREE_KEYS = frozenset(
    {
        "data.shards",
        "data.threads",
        "data.max_corrupt_fraction",
        "training.checkpoint_every",
        "training.checkpoint_minutes",
        "training.keep_checkpoints",
        "training.keep_best",
        "training.distributed",
        "training.heartbeat_seconds",
        "profile.steps",
    }
)


def claim(workdir: Path, config: ConfigDict, shards_fingerprint: str, bn_group: int) -> int:
    """Write `config.json`, or compare with the one that is there.

    Args:
        workdir: the run folder; made if need be.
        config: the whole configuration.
        shards_fingerprint: the manifest's.
        bn_group: how many examples would share batch statistics.

    Returns:
        How many share them in this run: as many as when it began.

    Raises:
        UserError: the folder holds another experiment; names the keys that differ.
    """
    path = workdir / "config.json"
    # Through JSON, so that tuples compare equal to the lists that they are read back as.
    mine = json.loads(json.dumps({"config": vise_config.flat(config), "shards": shards_fingerprint}))
    begun = path.exists()
    barrier("look at the run folder")
    if begun:
        theirs = artifact.read_description(workdir, path.name, version=_FORMAT_VERSION, made_by="train.py")
        keys = {key for key in mine["config"] | theirs["config"] if not key.startswith("labels.")} - _FREE_KEYS
        differing = sorted(key for key in keys if mine["config"].get(key) != theirs["config"].get(key))
        if mine["shards"] != theirs["shards"]:
            differing.append("the shards")
        if differing:
            raise UserError(
                f"{workdir} holds another experiment ({', '.join(differing[:10])} differ): name a new --workdir, "
                "or give the same config to go on."
            )
        return theirs["bn_group"]
    if workdir.exists() and (not workdir.is_dir() or any(entry.name[0] != "." for entry in workdir.iterdir())):
        raise UserError(f"{workdir} is no run folder: name a new --workdir.")
    barrier("take the run folder")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        artifact.write_json(path, {"format_version": _FORMAT_VERSION, "kind": "run", "bn_group": bn_group, **mine})
    barrier("the run folder is taken")
    return bn_group


def warm_start(model: models.VisE, folder: Path, preprocessing: dict[str, Any]) -> None:
    """Give a new model the weights of an encoder; its heads stay as they are.

    Raises:
        UserError: another architecture (names the first ten arrays), or images that are prepared in another way.
    """
    source = Encoder.load(folder)
    weights = {name.removeprefix("encoder/"): value for name, value in source.weights.items()}
    weights = {name: value for name, value in weights.items() if not name.startswith("heads/")}
    expected = weights_of(model.encoder)
    differing = sorted(
        name
        for name in weights | expected
        if getattr(weights.get(name), "shape", None) != getattr(expected.get(name), "shape", None)
    )
    if differing:
        raise UserError(
            f"The encoder {folder} (training.init_from) is of another architecture than the config's: "
            f"{', '.join(differing[:10])} differ: change the section model, or take another encoder."
        )
    for key in ("color", "scale", "mean", "std"):
        if source.preprocessing[key] != preprocessing[key]:
            raise UserError(
                f"The encoder {folder} (training.init_from) takes images with {key} {source.preprocessing[key]}, "
                f"training makes them with {preprocessing[key]}: take another encoder."
            )
    for path, variable in nnx.to_flat_state(nnx.state(model.encoder, (nnx.Param, nnx.BatchStat))):
        nnx.update(model.encoder, nnx.from_flat_state([(path, variable.replace(weights["/".join(map(str, path))]))]))


def export(
    workdir: Path, config: ConfigDict, architecture: dict[str, Any], manifest: dict[str, Any], model: models.VisE
) -> Path:
    """Write the trained encoder, unless it is there already, and return its folder."""
    folder = workdir / "encoder"
    if jax.process_index() == 0 and not folder.exists():
        trained = {
            "vise_jax": vise_jax.__version__,
            "config": vise_config.flat(config) | {"data.shards": Path(config.data.shards).name},
            "shards": manifest["fingerprint"],
            "labeler": manifest["labeler"],
        }
        Encoder.from_model(
            model,
            architecture=architecture,
            preprocessing=imagenet_preprocessing(config.data.image_size),
            provenance={"trained": trained},
            license="not stated: whoever trained this encoder decides, within the rights to the posts",
        ).save(folder)
    barrier("the encoder is written")
    return folder
