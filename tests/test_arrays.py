"""NumPy's archives: what `numpy.savez` wrote is read, anything else is a ValueError."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vise_jax import arrays

ARRAYS = {
    "numbers": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "texts": np.array(["a", "ü😀"]),
    "text": np.array("x"),
    "none": np.zeros((0, 4)),
    "flags": np.array([True, False]),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    np.savez(path, **ARRAYS)
    return path


def test_arrays_are_those_of_numpy(file):
    with np.load(file) as expected:
        for stored in (arrays.read_npz(file), arrays.read_npz(file, ["texts", "none"])):
            for name, array in stored.items():
                np.testing.assert_array_equal(array, expected[name])
                assert array.dtype == expected[name].dtype
    assert list(arrays.read_npz(file)) == list(ARRAYS)


def rewritten(change: Callable[[bytes], bytes], name: str = "numbers") -> Callable[[Path], None]:
    """Change the content of a member, with valid checksums."""

    def rewrite(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, change(content) if member == f"{name}.npy" else content)

    return rewrite


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([print], object), allow_pickle=True)
    return file.getvalue()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no array": rewritten(lambda content: b"hello"),
    "an impossible shape": rewritten(lambda content: content.replace(b"(2, 3)", b"(2**99)")),
    "a huge shape": rewritten(lambda content: content.replace(b"(2, 3), }       ", b"(2, 999999999), }")),
    "a negative shape": rewritten(lambda content: content.replace(b"(2, 3), } ", b"(-2, -3), }")),
    "too many numbers": rewritten(lambda content: content + b"\0\0\0\0"),
    "too few numbers": rewritten(lambda content: content[:-4]),
    "objects": rewritten(lambda content: pickled()),
    "text that is no Unicode": rewritten(lambda content: content[:-4] + struct.pack("<I", 0x110000), "texts"),
    "a header that is no literal": rewritten(lambda content: content.replace(b"{'descr'", b"{('desc'")),
    "a file that was cut": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "compressed arrays": lambda path: np.savez_compressed(path, numbers=np.zeros((1000, 1000))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(file, damage):
    before = file.read_bytes()
    DAMAGE[damage](file)
    assert file.read_bytes() != before
    with pytest.raises(ValueError, match=r"no whole \.npz file"):
        arrays.read_npz(file)


def test_missing_arrays_and_files(file, tmp_path):
    with pytest.raises(ValueError, match=r"other\.npy"):
        arrays.read_npz(file, ["other"])
    with pytest.raises(FileNotFoundError):
        arrays.read_npz(tmp_path / "b.npz")


def test_each_flipped_bit_of_safetensors_is_noticed():
    written = {"weights": np.arange(4, dtype=np.float32).reshape(2, 2), "transposed": np.arange(6).reshape(2, 3).T}
    content, noticed = arrays.to_safetensors(written, {"job": "a", "best": "0.5"}), 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found, about = arrays.from_safetensors(bytes(flipped))
        except ValueError:
            noticed += 1
        else:
            # In the name of the checksum itself.
            assert (about["job"], about["best"]) == ("a", "0.5")
            for name, array in written.items():
                np.testing.assert_array_equal(found[name], array)
    assert noticed > 0.9 * 8 * len(content)
    assert arrays.from_safetensors(content)[1] == {"job": "a", "best": "0.5"}
    for cut in (0, 7, 20, len(content) - 1):
        with pytest.raises(ValueError, match="safetensors"):
            arrays.from_safetensors(content[:cut])
