r"""Convert a published PyTorch checkpoint to an encoder, or export an encoder to PyTorch.

Loading is strict: a missing or unexpected key is an error. No code in a file is executed. Only PyTorch's own files need
PyTorch (pip install -e '.[convert]'); .safetensors and .npz files don't.

Example:
    python scripts/convert.py --list
    python scripts/convert.py --source torchvision --arch resnet50 --weights resnet50-0676ba61.pth --output ENCODER
    python scripts/convert.py --source roberta --weights roberta-base/ --output TEXT_ENCODER
    python scripts/convert.py --encoder RUN/encoder --to torchvision --output vise_resnet50.safetensors
    python scripts/convert.py --encoder RUN/encoder --to timm --output vise_resnet50
"""

import sys
from pathlib import Path

from absl import flags

from vise_jax import artifact, cli
from vise_jax.errors import UserError

_LIST = flags.DEFINE_bool("list", False, "List the checkpoints that can be converted, and their addresses.")
_SOURCE = flags.DEFINE_string(
    "source", None, "Source of the checkpoint, see --list; vise_jax for a file that --to wrote."
)
_ARCH = flags.DEFINE_string("arch", None, "Architecture, e.g. resnet50; by default the source's first.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "The file: .pth, .pt, .th, .safetensors or .npz; for roberta and bert, the directory of the model."
)
_SHA256 = flags.DEFINE_string("sha256", None, "Expected SHA-256 of the file; checked before it is opened.")
_PREFIX = flags.DEFINE_string("prefix", "", "Prefix of the encoder's keys in the file, e.g. module.")
_EMA = flags.DEFINE_bool(
    "ema", None, "Of a file that has both, convert the moving average of the weights, or (--noema) the weights."
)
_MAX_GIGABYTES = flags.DEFINE_float(
    "max_gigabytes", 4.0, "Refuse larger files, and files that unpack to more.", lower_bound=0
)
_ENCODER = flags.DEFINE_string("encoder", None, "Encoder directory to export.")
_TO = flags.DEFINE_string(
    "to",
    None,
    "Layout to export to: torchvision, timm (a directory for timm.create_model), or vise (the authors' releases: a "
    "Sequential without fc).",
)
_HEAD = flags.DEFINE_string(
    "head", "", "With --to torchvision or timm: name of the head that becomes fc; by default there is no fc."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Directory for the encoder; with --to, the .safetensors file to write, or timm's directory."
)


def main(words: list[str]) -> None:
    """Convert in either direction, and print a summary."""
    cli.no_words(words)
    if _LIST.value:
        _show_sources()
    elif _ENCODER.value is not None or _TO.value is not None:
        of_checkpoints = (_SOURCE, _ARCH, _WEIGHTS, _SHA256, _PREFIX, _EMA, _MAX_GIGABYTES)
        foreign = [flag.name for flag in of_checkpoints if flag.present]
        if foreign:
            raise UserError(f"--{foreign[0]} goes with a checkpoint, not with --encoder: see --help for an example.")
        _export(cli.location(_ENCODER), cli.required(_TO), cli.location(_OUTPUT))
    else:
        if _HEAD.value:
            raise UserError("--head goes with --encoder, not with a checkpoint: see --help for an example.")
        source, output = cli.required(_SOURCE), cli.location(_OUTPUT)
        with artifact.local_copy(cli.location(_WEIGHTS)) as weights:
            _convert(source, weights, output)


def _convert(source: str, weights: Path, output: Path) -> None:
    from vise_jax import interop

    encoder, before = interop.convert_to(
        output,
        weights,
        source,
        _ARCH.value,
        sha256=_SHA256.value,
        max_bytes=int(_MAX_GIGABYTES.value * 2**30),
        prefix=_PREFIX.value,
        ema=_EMA.value,
    )
    conversion = encoder.provenance["converted"]
    print(
        f"{output}: {'already converted, ' if before else ''}{encoder.architecture['name']}, "
        f"{encoder.feature_dim:,} features; license {encoder.license}"
    )
    if not conversion["layout_verified"]:
        print(f"the layout of {source}'s files is not documented; encoder.json records it as unverified")
    for note in conversion.get("notes", []):
        print(f"note: {note}")


def _export(encoder: Path, layout: str, output: Path) -> None:
    from vise_jax import Encoder, interop

    loaded = Encoder.load(encoder)
    interop.export(loaded, layout, output, head=_HEAD.value)
    print(f"{output}: license {loaded.license}")
    if layout == "timm":
        print(f'load it with timm.create_model("local-dir:{output}", pretrained=True)')
    if layout == "torchvision" and not _HEAD.value:
        print("the file has no fc: set model.fc = torch.nn.Identity() before load_state_dict")


def _show_sources() -> None:
    from rich.console import Console
    from rich.table import Table

    from vise_jax.interop import SOURCES, TEXT_SOURCES

    table = Table("--source", "--arch", "images", "license", show_lines=True)
    table.add_column("description and address", overflow="fold")
    for name, source in SOURCES.items():
        images = source.preprocessing
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (images.mean, images.std))
        # A file of torch.hub has the beginning of its SHA-256 in its name.
        files = [file if sha in file else f"{file}, SHA-256 {sha}" for sha, file in source.published.items()]
        table.add_row(
            name,
            "\n".join(source.architectures),
            f"{images.color} / {images.scale:g}\nmean {mean}\nstd {std}\n"
            f"{images.interpolation} to {images.resize}, crop {images.crop}",
            source.license,
            "\n".join([source.title, *source.notes, source.where, *files]),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    texts = Table("--source", "license", "description and address", title="text encoders", show_lines=True)
    for name, text_source in TEXT_SOURCES.items():
        texts.add_row(name, text_source.license, f"{text_source.title}\n{text_source.where}")
    Console(width=None if sys.stdout.isatty() else 160).print(texts)
    print("--source vise_jax reads a file that --to wrote. vise_jax ships none of these files.")


if __name__ == "__main__":
    cli.run(main, __doc__)
