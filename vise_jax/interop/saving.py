"""Convert a checkpoint to an encoder directory, once."""

from pathlib import Path

from vise_jax import artifact
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.interop import containers
from vise_jax.interop.conversion import MAX_BYTES, architecture_of, convert
from vise_jax.interop.export import OURS
from vise_jax.interop.text import TEXT_SOURCES, convert_text, weights_of
from vise_jax.text_encoder import TextEncoder


def convert_to(
    directory: str | Path,
    path: str | Path,
    source: str,
    arch: str | None = None,
    *,
    sha256: str | None = None,
    max_bytes: int = MAX_BYTES,
    prefix: str = "",
    ema: bool | None = None,
) -> tuple[Encoder | TextEncoder, bool]:
    """Convert and save an encoder, or load it if the same file has been converted to that directory.

    Args:
        directory: of the encoder.
        path: the file; for a text encoder, the directory.
        source: a name of `SOURCES` or `TEXT_SOURCES`, or "vise_jax".
        arch: see `convert`.
        sha256: see `convert`.
        max_bytes: see `convert`.
        prefix: see `convert`.
        ema: see `convert`.

    Returns:
        The encoder, and whether it had been converted before.

    Raises:
        UserError: see `convert` and `convert_text`; or the directory holds something else.
    """
    is_text = source in TEXT_SOURCES
    if is_text and (arch is not None or prefix or ema is not None):
        raise UserError(f"{source} states its architecture in config.json: leave out --arch, --prefix and --ema.")
    if artifact.is_file(artifact.location(directory) / "encoder.json"):
        existing = TextEncoder.load(directory) if is_text else Encoder.load(directory)
        conversion = existing.provenance.get("converted", {})
        named = existing.architecture["name"]
        name = (arch or named) if source == OURS else named if is_text else architecture_of(source, arch)
        file = weights_of(Path(path)) if is_text else Path(path)
        digest = containers.check(file, sha256=sha256, max_bytes=max_bytes)
        chosen = conversion.get("prefix", ""), conversion.get("ema")
        if (conversion.get("source"), conversion.get("sha256"), named, *chosen) == (source, digest, name, prefix, ema):
            return existing, True
        raise UserError(f"{directory} holds another encoder: name a new directory, or delete it first.")
    encoder: Encoder | TextEncoder
    if is_text:
        encoder = convert_text(path, source, sha256=sha256, max_bytes=max_bytes)
    else:
        encoder = convert(path, source, arch, sha256=sha256, max_bytes=max_bytes, prefix=prefix, ema=ema)
    encoder.save(directory)
    return encoder, False
