"""Compute the features of a dataset once, in parts that survive an interruption, and write them to one file."""

import contextlib
import dataclasses
import secrets
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from vise_jax import arrays, artifact
from vise_jax.data import images as data_images
from vise_jax.data.datasets import Dataset
from vise_jax.encoder import Encoder
from vise_jax.errors import Interrupted, UserError
from vise_jax.inference import feature_files
from vise_jax.preprocessing import Preprocessing
from vise_jax.progress import Progress

# Images of a part, or a batch if that is larger: the most that an interruption can cost.
_PART = 1024


class FeatureExtractor(Protocol):
    """The part of an encoder that extraction uses."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides on the features."""
        ...

    def features(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """Map images, uint8 [B, H, W, 3], to features, float32 [B, D], as if there were `batch_size` of them."""
        ...


@dataclasses.dataclass(frozen=True)
class Part:
    """Some consecutive images of a set.

    Attributes:
        indices: int64 [n], those that have features.
        features: float32 [n, D]; [0, 0] where none has.
        rejected: int64 [m], those that can't be read.
        reasons: text [m], a sentence about each of them.
    """

    indices: np.ndarray
    features: np.ndarray
    rejected: np.ndarray
    reasons: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "Part":
        """Read a part that `save` wrote."""
        return cls(**arrays.read_npz(path, [field.name for field in dataclasses.fields(cls)]))

    def save(self, path: Path) -> None:
        """Write the part atomically."""
        with artifact.atomic_file(path) as file:
            np.savez(file, **vars(self))


def open_encoder(source: str, seed: int) -> Encoder:
    """Load the encoder of a directory; for `random:NAME` and `random:DIRECTORY`, create an untrained one.

    Args:
        source: value of `--encoder`.
        seed: of random weights.

    Raises:
        UserError: see `Encoder.load` and `Encoder.random`.
    """
    return Encoder.random(source, seed) if source.startswith("random:") else Encoder.load(source)


@contextlib.contextmanager
def computed(
    encoder: FeatureExtractor,
    images: Dataset,
    preprocessing: Preprocessing,
    output: Path,
    *,
    batch_size: int,
    threads: int,
    max_image_pixels: int,
) -> Iterator[tuple[list[Path], dict[str, Any]]]:
    """Compute the features of all images, each once, resuming after the parts that an interrupted call left.

    Parts are kept in a hidden directory beside `output` until the block ends without an error. They belong to one
    encoder, dataset and preprocessing, and to one batch size and number of devices, which change the last bits: an
    interrupted extraction ends in the same bytes.

    Args:
        encoder: the encoder.
        images: the dataset.
        preprocessing: resize, crop and interpolation of the images before the encoder.
        output: file that the features will be written to.
        batch_size: images through the encoder at a time.
        threads: threads that decode; 0 = one per core.
        max_image_pixels: an image with more can't be read.

    Yields:
        the paths of all parts, in the order of the set, for `Part.read`; and the description of a file that is
        written from them.

    Raises:
        UserError: no image can be decoded, or features that are not finite. The parts are deleted then, since the same
            images would fail again.
    """
    size = min(batch_size, len(images))
    length = max(_PART // size, 1) * size
    bits = artifact.fingerprint([key_of(encoder, images, preprocessing), size, jax.local_device_count()])
    with contextlib.ExitStack() as stack:
        work = _acquire(output, bits[:12], stack)
        try:
            parts = _computed_in(work, encoder, images, preprocessing, length, size, threads, max_image_pixels)
        except Interrupted:
            raise
        except UserError:
            artifact.remove_tree(work)
            raise
        yield parts
        artifact.remove_tree(work)
    clear(output)


def _acquire(output: Path, bits: str, stack: contextlib.ExitStack) -> Path:
    """Lock the directory of the parts; while another process computes the same, take one of our own."""
    shared = output.with_name(f".{output.name}.parts-{bits}")
    artifact.make_directory(shared)
    try:
        stack.enter_context(artifact.lock(shared / ".lock", ""))
    except UserError:
        own = output.with_name(f"{shared.name}-{secrets.token_hex(4)}")
        artifact.make_directory(own)
        stack.enter_context(artifact.lock(own / ".lock", ""))
        return own
    return shared


def _computed_in(
    work: Path,
    encoder: FeatureExtractor,
    images: Dataset,
    preprocessing: Preprocessing,
    length: int,
    size: int,
    threads: int,
    max_image_pixels: int,
) -> tuple[list[Path], dict[str, Any]]:
    parts = [range(start, min(start + length, len(images))) for start in range(0, len(images), length)]
    paths = [work / f"{part.start:012d}.npz" for part in parts]
    done = next((number for number, path in enumerate(paths) if not _whole(path)), len(paths))
    todo = range(parts[done].start, len(images)) if done < len(parts) else range(0)
    with Progress("features", len(images), "images", done=len(images) - len(todo)) as progress:
        if done:
            progress.print(f"resuming after {len(images) - len(todo):,} of {len(images):,} images, kept in {work}")
        decoded = data_images.decode_each(images, todo, preprocessing, threads, max_image_pixels)
        with contextlib.closing(decoded):
            for part, path in zip(parts[done:], paths[done:], strict=True):
                _compute(encoder, part, decoded, size, progress).save(path)
    return paths, _about(encoder, images, preprocessing, paths)


def clear(output: Path) -> None:
    """Delete the parts that were kept beside a complete file, except those that a process is computing."""
    for name in artifact.entries(output.parent):
        if name.startswith(f".{output.name}.parts-"):
            work = output.with_name(name)
            with contextlib.suppress(UserError, FileNotFoundError), artifact.lock(work / ".lock", ""):
                artifact.remove_tree(work)


def _compute(
    encoder: FeatureExtractor,
    part: range,
    decoded: Iterator[np.ndarray | UserError],
    size: int,
    progress: Progress,
) -> Part:
    """Compute the features of the next images."""
    indices: list[int] = []
    coming: list[Future[np.ndarray]] = []
    rejected: dict[int, str] = {}
    with ThreadPoolExecutor(1) as device:
        for start in range(part.start, part.stop, size):
            batch = []
            for index in range(start, min(start + size, part.stop)):
                image = next(decoded)
                if not isinstance(image, UserError):
                    batch.append(image)
                    indices.append(index)
                else:
                    rejected[index] = str(image)
                    progress.print(f"left out: {image}")
            # The device works on one batch while the next is collected.
            if len(coming) > 1:
                coming[-2].result()
            if batch:
                coming.append(device.submit(encoder.features, np.stack(batch), size))
            progress.advance(min(size, part.stop - start))
    outputs = [future.result() for future in coming]
    features = np.concatenate(outputs) if outputs else np.zeros((0, 0), np.float32)
    if not np.isfinite(features).all():
        raise UserError("The encoder's features are not all finite numbers: its training has gone wrong, take another.")
    return Part(
        np.array(indices, np.int64), features, np.array([*rejected], np.int64), np.array([*rejected.values()], np.str_)
    )


def export(
    encoder: FeatureExtractor, images: Dataset, preprocessing: Preprocessing, path: Path, **settings: int
) -> dict[str, Any]:
    """Write the features of a dataset to a file, in its order, unless the file holds them already.

    Images that can't be read are left out and logged. If one of them can be read now, the file is written again.

    Args:
        encoder: computes the features.
        images: the dataset.
        preprocessing: of the images before the encoder.
        path: a .npz or .parquet file, see `feature_files.write`.
        **settings: `batch_size`, `threads` and `max_image_pixels`, see `computed`.

    Returns:
        The description, see `feature_files.read_about`.

    Raises:
        UserError: see `computed`; another suffix; or the file exists and holds something else.
    """
    if path.suffix not in feature_files.WRITERS:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}: name a file that ends in .npz or .parquet.")
    holds = feature_files.holds(path, key_of(encoder, images, preprocessing))
    if holds and is_up_to_date(path, images, preprocessing, **settings):
        clear(path)
        return feature_files.read_about(path)
    if not holds and artifact.exists(path):
        raise UserError(f"{path} already exists and holds something else: name another file, or delete it first.")
    with computed(encoder, images, preprocessing, path, **settings) as (parts, about):
        write(path, parts, about, images)
    return about


def is_up_to_date(path: Path, images: Dataset, preprocessing: Preprocessing, **settings: int) -> bool:
    """Return whether no image that a file of features leaves out can be decoded now; `settings` as of `export`."""
    limits = settings["threads"], settings["max_image_pixels"]
    return not any_decodable(images, feature_files.read_about(path)["rejected"], preprocessing, *limits)


def any_decodable(
    images: Dataset, names: Collection[str], preprocessing: Preprocessing, threads: int, max_image_pixels: int
) -> bool:
    """Return whether any of the images with these names can be decoded."""
    indices = [index for index, name in enumerate(images.names) if name in names]
    decoded = data_images.decode_each(images, indices, preprocessing, threads, max_image_pixels)
    with contextlib.closing(decoded):
        return any(not isinstance(image, UserError) for image in decoded)


def key_of(encoder: FeatureExtractor, images: Dataset, preprocessing: Preprocessing) -> str:
    """Return the SHA-256 (hex) of everything that decides the features of a set.

    The kind of device and the precision of products belong to it: they change the last bits.
    """
    return artifact.fingerprint([encoder.fingerprint, preprocessing.to_json(), images.fingerprint, computed_on()])


def computed_on() -> list[str]:
    """Return the kind of device and the precision of features, which decide their last bits."""
    return [jax.local_devices()[0].device_kind, "float32, highest precision"]


def _whole(path: Path) -> bool:
    try:
        Part.read(path)
    except (*feature_files.UNREADABLE, UserError):
        return False
    return True


def _about(
    encoder: FeatureExtractor, images: Dataset, preprocessing: Preprocessing, paths: list[Path]
) -> dict[str, Any]:
    count, dim = 0, 0
    rejected: dict[str, str] = {}
    for path in paths:
        part = arrays.read_npz(path, ["indices", "rejected", "reasons"])
        reasons = zip(part["rejected"].tolist(), part["reasons"].tolist(), strict=True)
        rejected |= {images.names[index]: reason for index, reason in reasons}
        count += len(part["indices"])
        dim = dim or arrays.read_npz(path, ["features"])["features"].shape[1]
    if not count:
        raise UserError(f"None of the {len(images):,} images can be used; the first: {next(iter(rejected.values()))}")
    return {
        "format_version": feature_files.FORMAT_VERSION,
        "key": key_of(encoder, images, preprocessing),
        "encoder": encoder.fingerprint,
        "crop": preprocessing.crop,
        "images": count,
        "dim": dim,
        "rejected": rejected,
    }


def write(path: Path, paths: list[Path], about: dict[str, Any], images: Dataset) -> None:
    """Write the features of all parts to one file, see `computed`."""

    def rows() -> Iterator[tuple[list[str], np.ndarray]]:
        for part in map(Part.read, paths):
            if len(part.indices):
                yield [images.names[index] for index in part.indices], part.features

    feature_files.write(path, rows(), about)
