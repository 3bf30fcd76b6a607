"""The run directory: its lock, its experiment, and the encoder that it exports."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

import vise_jax
from vise_jax import artifact, hosts, models, variables
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.preprocessing import Preprocessing
from vise_jax.training.mirror import Mirror, complete_steps, mirrored

_FORMAT_VERSION = 1
# Keys that may change when a run is resumed: they don't change what is computed. The shards are compared by
# fingerprint, and `labels` decided their content. The size of batch-norm groups stays that of the first start.
_FREE_KEYS = frozenset(
    {
        "data.shards",
        "data.threads",
        "data.max_corrupt_fraction",
        "training.checkpoint_every",
        "training.checkpoint_minutes",
        "training.keep_checkpoints",
        "training.log_every",
        "training.evaluate_every",
        "training.probe",
        "training.distributed",
        "training.heartbeat_seconds",
        "profile.steps",
    }
)
# Keys that describe where and how a run was watched, not what the encoder is. They stay in the run directory.
_PRIVATE_KEYS = _FREE_KEYS | {"training.init_from", "labels.salt_file", "labels.vectors", "labels.link_roots"}


# What a run says of the encoder that it started from.
_ORIGIN = "init_from.json"


class Acquired(NamedTuple):
    """A run directory that is locked.

    Attributes:
        path: where this process reads and writes the run's files; `workdir`, or a copy of one in an object store.
        mirror: of a run directory in an object store, else None.
        bn_group: size of a batch-norm group, as of the run's first start.
        shards: fingerprint of the shards, as of the run's first start.
    """

    path: Path
    mirror: Mirror | None
    bn_group: int
    shards: str


@contextlib.contextmanager
def acquire(workdir: Path, config: Mapping[str, Any], fingerprints: Sequence[str], bn_group: int) -> Iterator[Acquired]:
    """Lock the run directory, and write `config.json` or compare with the one that is there.

    Args:
        workdir: the run directory, a path or a URL, created if it doesn't exist.
        config: the values of the config by dotted key.
        fingerprints: of the shards, and of these before posts were deleted from them.
        bn_group: size of a batch-norm group of a new run.

    Raises:
        UserError: the directory holds another experiment (names the keys that differ), or another process trains in it.
    """
    names = artifact.entries(workdir) if artifact.is_remote(workdir) or not workdir.is_file() else {workdir.name}
    if "config.json" not in names and any(name[0] != "." for name in names):
        raise UserError(f"{workdir} is no run directory: name a new --workdir.")
    hosts.barrier("look at the run directory")
    with contextlib.ExitStack() as stack:
        hosts.on_first(lambda: stack.enter_context(_locked(workdir)))
        local, mirror = stack.enter_context(mirrored(workdir))
        path = local / "config.json"
        # Through JSON, so that tuples compare equal to the lists that they are read back as.
        mine = json.loads(json.dumps({"config": dict(config), "shards": fingerprints[0]}))
        begun = path.exists()
        hosts.barrier("compare the run directory")
        if begun:
            theirs = artifact.read_description(local, path.name, version=_FORMAT_VERSION, made_by="train.py")
            _compare(workdir, mine, theirs, fingerprints)
            bn_group, mine["shards"] = theirs["bn_group"], theirs["shards"]
        elif jax.process_index() == 0:
            artifact.write_json(path, {"format_version": _FORMAT_VERSION, "kind": "run", "bn_group": bn_group, **mine})
            if mirror:
                mirror.upload()
        hosts.barrier("the run directory is acquired")
        yield Acquired(local, mirror, bn_group, mine["shards"])


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    artifact.make_directory(workdir)
    artifact.refuse_links(workdir)
    with artifact.lock(
        workdir / ".lock", f"Another process trains in {workdir}: wait for it, or name a new --workdir."
    ):
        yield


def _compare(workdir: Path, mine: dict[str, Any], theirs: dict[str, Any], fingerprints: Sequence[str]) -> None:
    keys = {key for key in mine["config"] | theirs["config"] if not key.startswith("labels.")} - _FREE_KEYS
    differing = sorted(key for key in keys if mine["config"].get(key) != theirs["config"].get(key))
    if theirs["shards"] not in fingerprints:
        differing.append("the shards")
    if differing:
        raise UserError(
            f"{workdir} holds another experiment ({', '.join(differing[:10])} differ): name a new --workdir, or give "
            "the same config to resume."
        )


def cache_compilations(workdir: Path) -> None:
    """Keep compiled programs in the run directory, so that a resumed run starts without compiling.

    A cache that JAX was told to use, as by `JAX_COMPILATION_CACHE_DIR`, is used instead.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compilation_cache").absolute()))


def checkpoints(workdir: Path) -> list[int]:
    """Return the steps of the run's complete checkpoints, rising."""
    if artifact.is_remote(workdir):
        return complete_steps(workdir)
    return sorted(int(name) for name in artifact.entries(workdir / "checkpoints") if name.isdigit())


def warm_start(model: models.VisE, directory: str, preprocessing: Preprocessing) -> dict[str, Any]:
    """Initialize the encoder of a model from an encoder artifact. The heads keep their initial weights.

    Returns:
        What an encoder that is trained from it says of it: fingerprint, provenance and license.

    Raises:
        UserError: the architecture (the message names the first ten arrays) or the normalization differs.
    """
    source = Encoder.load(directory)
    weights = {name.removeprefix("encoder/"): value for name, value in source.weights.items()}
    weights = {name: value for name, value in weights.items() if not name.startswith("heads/")}
    expected = variables.of_model(model.encoder)
    differing = sorted(
        name
        for name in weights | expected
        if getattr(weights.get(name), "shape", None) != getattr(expected.get(name), "shape", None)
    )
    if differing:
        raise UserError(
            f"The encoder {directory} (training.init_from) is of another architecture than the config's: "
            f"{', '.join(differing[:10])} differ: change the section model, or take another encoder."
        )
    for key in ("color", "scale", "mean", "std"):
        theirs, ours = getattr(source.preprocessing, key), getattr(preprocessing, key)
        if theirs != ours:
            raise UserError(
                f"The encoder {directory} (training.init_from) takes images with {key} {theirs}, "
                f"training prepares them with {ours}: take another encoder."
            )
    for path, variable in nnx.to_flat_state(nnx.state(model.encoder, (nnx.Param, nnx.BatchStat))):
        nnx.update(model.encoder, nnx.from_flat_state([(path, variable.replace(weights["/".join(map(str, path))]))]))
    return {"fingerprint": source.fingerprint, "provenance": source.provenance, "license": source.license}


def write_origin(path: Path, origin: dict[str, Any]) -> None:
    """Note in a run directory what `warm_start` returned; the first process does."""
    if jax.process_index() == 0:
        artifact.write_json(path / _ORIGIN, origin)


def read_origin(path: Path) -> dict[str, Any] | None:
    """Return what `write_origin` noted; None for a run from scratch.

    Raises:
        UserError: the file is damaged.
    """
    file = path / _ORIGIN
    return artifact.parse_json(file.read_bytes(), file, "start again in a new --workdir") if file.exists() else None


def export(
    workdir: Path,
    config: Mapping[str, Any],
    architecture: dict[str, Any],
    preprocessing: Preprocessing,
    manifest: dict[str, Any],
    model: models.VisE,
    origin: dict[str, Any] | None = None,
) -> Path:
    """Write the trained encoder, unless it exists, and return its directory.

    Its provenance holds the experiment, without paths, hosts and other keys of the run.

    Args:
        workdir: the run directory.
        config: of the run, flat.
        architecture: of the encoder.
        preprocessing: of the images.
        manifest: of the shards.
        model: the trained model.
        origin: of the encoder that the run started from, as `warm_start` returns it; None from scratch.
    """
    directory = workdir / "encoder"
    if jax.process_index() == 0 and not artifact.is_file(directory / "encoder.json"):
        trained = {
            "vise_jax": vise_jax.__version__,
            "config": {key: value for key, value in config.items() if key not in _PRIVATE_KEYS},
            "shards": manifest["fingerprint"],
            "labeler": manifest["labeler"],
        }
        Encoder.from_model(
            model,
            architecture=architecture,
            preprocessing=preprocessing,
            provenance={"trained": trained} | ({"from": origin} if origin else {}),
            license="not stated: to be decided by the trainer of this encoder, within the rights to the posts"
            + (f" and the license of the encoder that it started from ({origin['license']})" if origin else ""),
        ).save(directory)
    hosts.barrier("the encoder is written")
    return directory
