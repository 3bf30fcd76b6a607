"""Read files at the bounds of what is read, and far beyond, and print how much memory each takes.

    python benchmarks/bounds.py

Each case runs in its own process. Files beyond a bound are sparse or packed: they are small on disk and large when they
are read. The last line is one JSON object, with MB of peak memory above that of the process before it read. Linux only.
"""

import gzip
import io
import json
import multiprocessing
import os
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "shared"))

from absl import flags
from measuring import peak_bytes
from rich.console import Console
from rich.table import Table

from vise_jax import cli, config
from vise_jax.errors import UserError

QUICK = flags.DEFINE_bool("quick", False, "Two cases: a smoke test.")
ONLY = flags.DEFINE_string("only", None, "Names of cases, with semicolons between them; by default all.")
_LABELS, _EVALUATION = config.base().labels, config.evaluation()
_MEGABYTE, _GIGABYTE = 2**20, 2**30


class Case(NamedTuple):
    """A file, and how it is read.

    Attributes:
        bound: the config key or flag that bounds it, or "constant".
        write: writes it.
        read: reads it, and returns what came of it in words.
    """

    bound: str
    write: Callable[[Path], object]
    read: Callable[[Path], str]


def _posts(path: Path) -> str:
    from vise_jax.posts import RejectLog, read

    log = RejectLog(path)
    count = sum(1 for _ in read(path, log))
    return f"{count} posts, {dict(log.rejected | log.notes)}"


def _line(length: int) -> bytes:
    return b'{"post_id": "a", "comments": ["' + b"x" * (length - 40) + b'"]}\n'


def _packed_line(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(4 * _GIGABYTE // _MEGABYTE):
            file.write(b"x" * _MEGABYTE)


def _sparse_line(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(4 * _GIGABYTE)


def _wide(path: Path) -> None:
    path.write_bytes(b'{"post_id": "a", "other": [' + b"[]," * (21 * _MEGABYTE) + b"0]}\n")


def _many_comments(path: Path) -> None:
    path.write_bytes(json.dumps({"post_id": "a", "comments": ["a"] * 10_000_000}).encode() + b"\n")


def _tar(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        member = tarfile.TarInfo("a.jpg")
        member.size = size
        with open(path, "wb") as file:
            file.write(member.tobuf())
            file.truncate(512 + -(-size // 512) * 512 + 1024)

    return write


def _png(width: int, height: int, text: int = 0) -> Callable[[Path], None]:
    """Write a black PNG file, with a text chunk that unpacks to `text` bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def write(path: Path) -> None:
        packer = zlib.compressobj(9)
        rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        words = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(text), 9)) if text else b""
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + words + chunk(b"IDAT", rows) + chunk(b"IEND", b""))

    return write


def _image_of_post(path: Path) -> str:
    from vise_jax.labeling.images import read_image
    from vise_jax.posts import BadPost, Post

    try:
        encoded, _ = read_image(
            Post("a", path.name, source=path.with_name("p.jsonl")),
            _LABELS.max_image_pixels,
            max_bytes=_LABELS.max_image_bytes,
        )
    except BadPost as bad:
        return bad.reason
    return f"{len(encoded):,} bytes"


def _image(path: Path) -> str:
    from vise_jax.data import datasets, images
    from vise_jax.preprocessing import Preprocessing

    pixels = _EVALUATION.max_image_pixels
    (image,) = images.decode_each(datasets.open_unlabeled(path), [0], Preprocessing.imagenet(224), 1, pixels)
    return str(image) if isinstance(image, UserError) else str(image.shape)


def _zip_of_entries(path: Path) -> None:
    _png(8, 8)(path)
    picture = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(_EVALUATION.max_archive_entries):
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", picture if number < 2 else b"")


def _zip_of_zeros(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            with archive.open(f"{name}/0.png", "w", force_zip64=True) as file:
                for _ in range(2048):
                    file.write(bytes(_MEGABYTE))


def _dataset(path: Path) -> str:
    from vise_jax.data import datasets

    try:
        dataset = datasets.open_labeled(path)
        return f"{len(dataset):,} images, the first of {len(dataset.read(0)):,} bytes"
    except UserError as error:
        return str(error)


def _weights(path: Path) -> str:
    from vise_jax.interop import containers
    from vise_jax.interop.conversion import MAX_BYTES

    return f"{len(containers.read(path, max_bytes=MAX_BYTES))} arrays"


def _zip_weights(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        for _ in range(2000):
            file.write(bytes(_MEGABYTE))


def _huge_array(path: Path) -> None:
    import numpy as np

    array = io.BytesIO()
    np.save(array, np.zeros((2, 3), np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", array.getvalue().replace(b"(2, 3), }        ", b"(99999, 99999), }"))


def _features(path: Path) -> str:
    from vise_jax import arrays

    try:
        return str(list(arrays.read_npz(path)))
    except ValueError as error:
        return str(error)


def _vectors(path: Path) -> str:
    from vise_jax.text import word_vectors

    return str(word_vectors.read(str(path), {"a": 0})[0].shape)


_CASES: dict[str, Case] = {
    "a line at the bound.jsonl": Case(
        "labels.max_line_bytes", lambda path: path.write_bytes(_line(_LABELS.max_line_bytes - 10)), _posts
    ),
    "a line of 4 GiB.jsonl": Case("labels.max_line_bytes", _sparse_line, _posts),
    "a line of 4 GiB, packed.jsonl.gz": Case("labels.max_line_bytes", _packed_line, _posts),
    "lists to the bound of a line.jsonl": Case("labels.max_line_bytes", _wide, _posts),
    "10M comments of a post.jsonl": Case("labels.max_post_comments", _many_comments, _posts),
    "a member of 4 GiB.tar": Case("labels.max_line_bytes", _tar(4 * _GIGABYTE), _posts),
    "an image at the bound.png": Case("labels.max_image_pixels", _png(10_000, 4_999), _image_of_post),
    "an image of 10,000 megapixels.png": Case("labels.max_image_pixels", _png(100_000, 100_000), _image_of_post),
    "an image file of 4 GiB.jpg": Case("labels.max_image_bytes", _sparse_line, _image_of_post),
    "text of 1 GiB in an image.png": Case("constant", _png(8, 8, _GIGABYTE), _image_of_post),
    "evaluation at the bound.png": Case("max_image_pixels", _png(10_000, 4_999), _image),
    "evaluation beyond it.png": Case("max_image_pixels", _png(100_000, 100_000), _image),
    "entries at the bound.zip": Case("max_archive_entries", _zip_of_entries, _dataset),
    "entries of 2 GiB.zip": Case("max_image_bytes", _zip_of_zeros, _dataset),
    "packed weights of 2 GB.npz": Case("--max_gigabytes", _zip_weights, _weights),
    "an array beyond its file.npz": Case("its file", _huge_array, _features),
    "a line of 4 GiB.vec": Case("constant", _sparse_line, _vectors),
}


def _measure(name: str, path: Path, results: Any) -> None:
    sys.stderr.flush()
    for package in ("vise_jax.data.images", "vise_jax.posts.readers", "vise_jax.labeling.images"):
        __import__(package)
    # Reset the peak.
    Path("/proc/self/clear_refs").write_text("5")
    before, began = peak_bytes(), time.monotonic()
    try:
        what = _CASES[name].read(path)
    except UserError as error:
        what = str(error)
    results.put(((peak_bytes() - before) / 2**20, time.monotonic() - began, what.replace(str(path), path.name)))


def main(words: list[str]) -> None:
    cli.no_words(words)
    few = ["10M comments of a post.jsonl", "an array beyond its file.npz"]
    names = ONLY.value.split(";") if ONLY.value else few if QUICK.value else list(_CASES)
    os.environ["JAX_PLATFORMS"] = "cpu"
    context = multiprocessing.get_context("forkserver")
    table = Table("file", "bound", "bytes", "peak MB", "seconds", "result")
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            case, path, results = _CASES[name], Path(directory) / name, context.Queue()
            case.write(path)
            process = context.Process(target=_measure, args=(name, path, results))
            process.start()
            process.join()
            peak, seconds, what = results.get() if process.exitcode == 0 else (-1, -1, f"ended: {process.exitcode}")
            size = path.stat().st_blocks * 512
            path.unlink()
            measured[name] = {"bound": case.bound, "megabytes": round(peak), "seconds": round(seconds, 1)}
            table.add_row(name, case.bound, f"{size:,}", f"{peak:,.0f}", f"{seconds:.1f}", what[:110])
            print(name, measured[name], what[:200], flush=True)
    Console(width=200).print(table)
    print(json.dumps({"benchmark": "bounds", "cases": measured}))
    if any(of_case["megabytes"] < 0 for of_case in measured.values()):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, __doc__)
