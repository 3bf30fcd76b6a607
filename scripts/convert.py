r"""Make an encoder of a published PyTorch checkpoint, or write an encoder as a file that PyTorch loads.

Every key of the file must be known and every weight filled, or nothing is written. Nothing that is in the file is run.
PyTorch is only needed to read its own files (pip install -e '.[convert]'); .safetensors and .npz do without.

Example:
    python scripts/convert.py --list
    python scripts/convert.py --source torchvision --arch resnet50 --weights resnet50-0676ba61.pth --output ENCODER
    python scripts/convert.py --source roberta --weights roberta-base/ --output TEXT_ENCODER
    python scripts/convert.py --encoder RUN/encoder --to torchvision --output vise_resnet50.safetensors
"""

import sys
from pathlib import Path

from absl import flags

from vise_jax import cli
from vise_jax.errors import UserError

_LIST = flags.DEFINE_bool("list", False, "Print whose checkpoints can be converted, and where they are to be had.")
_SOURCE = flags.DEFINE_string(
    "source", None, "Whose checkpoint it is, see --list; vise_jax for a file that --to has written."
)
_ARCH = flags.DEFINE_string("arch", None, "Its architecture, e.g. resnet50; by default the source's first one.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "The file: .pth, .pt, .th, .safetensors or .npz; for roberta and bert, the directory of the model."
)
_SHA256 = flags.DEFINE_string("sha256", None, "Expected SHA-256 of the file; checked before it is opened.")
_PREFIX = flags.DEFINE_string("prefix", "", "What stands before every key of the encoder in the file, e.g. module.")
_EMA = flags.DEFINE_bool("ema", None, "Of weights and their moving average in one file, take the average, or not.")
_MAX_GIGABYTES = flags.DEFINE_float(
    "max_gigabytes", 4.0, "A file that is larger, or unpacks to more, is refused.", lower_bound=0
)
_ENCODER = flags.DEFINE_string("encoder", None, "The other way: the directory of an encoder to write for PyTorch.")
_TO = flags.DEFINE_string(
    "to", None, "torchvision, or vise: the layout of the authors' releases (a Sequential without fc)."
)
_HEAD = flags.DEFINE_string("head", "", "With --to torchvision: the head that becomes fc; by default there is no fc.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for the encoder; with --to, the .safetensors file to write.")


def main(words: list[str]) -> None:
    """Convert in either direction, and print a summary."""
    cli.no_words(words)
    if _LIST.value:
        _show_sources()
    elif _ENCODER.value is not None or _TO.value is not None:
        foreign = [flag.name for flag in (_SOURCE, _ARCH, _WEIGHTS, _SHA256) if flag.value is not None]
        if foreign:
            raise UserError(f"--{foreign[0]} goes with a checkpoint, not with --encoder: see --help for an example.")
        _export(Path(cli.required(_ENCODER)), cli.required(_TO), Path(cli.required(_OUTPUT)))
    else:
        if _HEAD.value:
            raise UserError("--head goes with --encoder, not with a checkpoint: see --help for an example.")
        _convert(cli.required(_SOURCE), Path(cli.required(_WEIGHTS)), Path(cli.required(_OUTPUT)))


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
        f"{output}: {'was converted before, ' if before else ''}{encoder.architecture['name']}, "
        f"{encoder.feature_dim:,} features; license {encoder.license}"
    )
    if not conversion["layout_verified"]:
        print(f"the layout of {source}'s files is not verified: that is written in encoder.json")
    for note in conversion.get("notes", []):
        print(f"note: {note}")


def _export(encoder: Path, layout: str, output: Path) -> None:
    from vise_jax import Encoder, interop

    loaded = Encoder.load(encoder)
    interop.export(loaded, layout, output, head=_HEAD.value)
    print(f"{output}: license {loaded.license}")
    if layout == "torchvision" and not _HEAD.value:
        print("there is no fc in it: set model.fc = torch.nn.Identity() before load_state_dict")


def _show_sources() -> None:
    from rich.console import Console
    from rich.table import Table

    from vise_jax.interop import SOURCES, TEXT_SOURCES

    table = Table("--source", "--arch", "images", "license", show_lines=True)
    table.add_column("what, and where it is to be had", overflow="fold")
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
    texts = Table("--source", "license", "what, and where it is to be had", title="text encoders", show_lines=True)
    for name, text_source in TEXT_SOURCES.items():
        texts.add_row(name, text_source.license, f"{text_source.title}\n{text_source.where}")
    Console(width=None if sys.stdout.isatty() else 160).print(texts)
    print("--source vise_jax reads what --to has written. None of these files comes with vise_jax.")


if __name__ == "__main__":
    cli.run(main, __doc__)
