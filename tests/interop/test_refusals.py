"""What must not become an encoder: files that don't fit, and the keys that are said; files that are no weights."""

import functools
import hashlib
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from vise_jax import interop
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError

torch = pytest.importorskip("torch")
import torch_peers  # noqa: E402

Tensors = dict[str, "torch.Tensor"]


@functools.cache
def _tensors(source: str) -> Tensors:
    """torchvision's, MoCo's or CLIP's state dict, of an encoder of width 4."""
    with tempfile.TemporaryDirectory() as directory:
        loaded = torch.load(torch_peers.write(source, Path(directory), 4).path)
    return loaded["state_dict"] if source == "moco" else loaded


def _refusal(path: Path, source: str, *args: str, **settings) -> str:
    with pytest.raises(UserError) as error:
        interop.convert(path, source, *args, **{"width": 4, **settings})
    return str(error.value)


def _without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if name != key}


def _with(**changed: Callable) -> Callable[[Tensors], Tensors]:
    """A key (dots written as `__`) changed by a function of its value; of None where it is new."""
    found = {key.replace("__", "."): change for key, change in changed.items()}
    return lambda tensors: tensors | {key: change(tensors.get(key)) for key, change in found.items()}


def _renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {new + name.removeprefix(old): value for name, value in tensors.items()}


CHANGES: dict[str, tuple[str, Callable[[Tensors], Tensors], tuple[str, ...]]] = {
    "a key missing": ("torchvision", _without("layer3.2.bn1.running_var"), ("missing: layer3.2.bn1.running_var.",)),
    "a key too many": (
        "torchvision",
        _with(layer4__3__conv1__weight=lambda _: torch.ones(2, 2, 1, 1)),
        ("unexpected: layer4.3.conv1.weight.",),
    ),
    "a transposed weight": (
        "torchvision",
        _with(layer1__0__conv3__weight=lambda weight: weight.transpose(0, 1)),
        ("of another shape: layer1.0.conv3.weight is [4, 16, 1, 1] instead of [16, 4, 1, 1].",),
    ),
    "a prefix too many": (
        "torchvision",
        _renamed("", "module."),
        ("missing: bn1.bias, bn1.running_mean,", "and 255 more", "unexpected: module.conv1.weight,"),
    ),
    "a prefix doubled": (
        "moco",
        _renamed("module.", "module.module."),
        ("missing: module.encoder_q.bn1.bias,", "unexpected: module.module.encoder_q.conv1.weight"),
    ),
    "a prefix missing": (
        "moco",
        lambda tensors: {name.removeprefix("module.encoder_q."): value for name, value in tensors.items()},
        ("missing: module.encoder_q.bn1.bias,", "unexpected: conv1.weight,"),
    ),
    "MoCo's key encoder": (
        "moco",
        lambda tensors: {name: value for name, value in tensors.items() if "encoder_q" not in name},
        ("missing: module.encoder_q.bn1.bias,", "not of the encoder: module.encoder_k.conv1.weight,"),
    ),
    "infinities": ("torchvision", _with(bn1__weight=lambda value: value / 0), ("not finite: bn1.weight.",)),
    "fp16 with infinities": (
        "clip-state",
        _with(visual__layer2__0__conv1__weight=lambda value: (value.float() * 1e7).half()),
        ("not finite: visual.layer2.0.conv1.weight.",),
    ),
    "a negative variance": (
        "torchvision",
        _with(bn1__running_var=lambda value: -value),
        ("negative: bn1.running_var.",),
    ),
    "a text half alone": (
        "clip-state",
        lambda tensors: {name: value for name, value in tensors.items() if not name.startswith("visual.")},
        ("missing: visual.attnpool.c_proj.bias,", "not of the encoder: positional_embedding,"),
    ),
    "a value that is no tensor": (
        "torchvision",
        _with(epoch=lambda _: 3),
        ("holds other things beside tensors: epoch (int);",),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_weights_that_do_not_fit(case, tmp_path):
    kind, change, words = CHANGES[case]
    torch.save(change(_tensors(kind)), tmp_path / "file.pth")
    said = _refusal(tmp_path / "file.pth", kind.split("-")[0])
    assert all(word in said for word in words), said
    assert "\n" not in said


def test_unchanged_weights_fit(tmp_path):
    for kind in ("torchvision", "moco", "clip-state"):
        torch.save(_tensors(kind), tmp_path / "file.pth")
        interop.convert(tmp_path / "file.pth", kind.split("-")[0], width=4)


def test_another_architecture(tmp_path):
    path = torch_peers.write("torchvision", tmp_path, 4, "resnet18").path
    said = _refusal(path, "torchvision", "resnet50")
    assert "layer1.0.conv1.weight is [4, 4, 3, 3] instead of [4, 4, 1, 1]" in said
    assert "missing: layer1.0.bn3.bias" in said
    torch.save(_tensors("torchvision"), tmp_path / "fifty.pth")
    assert "unexpected: layer1.0.conv3.weight" in _refusal(tmp_path / "fifty.pth", "torchvision", "resnet18")
    assert "missing: layer3.10.bn1.bias" in _refusal(tmp_path / "fifty.pth", "torchvision", "resnet101")
    said = _refusal(tmp_path / "fifty.pth", "vqagrid")
    assert "missing: backbone.stem.conv1.norm.bias" in said


class _Payload:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _in_torchscript(archive: Path, pickled: bytes) -> None:
    """Put another pickle into a TorchScript archive."""
    with zipfile.ZipFile(archive) as file:
        members = {member.filename: file.read(member) for member in file.infolist()}
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(name, pickled if name.endswith("/data.pkl") else content)


@pytest.mark.parametrize("kind", ["zip", "legacy", "torchscript", "npz"])
def test_a_payload_is_not_run(kind, tmp_path):
    witness = tmp_path / "witness"
    content = {"conv1.weight": torch.ones(1), "extra": _Payload(witness)}
    path = tmp_path / ("file.npz" if kind == "npz" else "file.pth")
    if kind == "torchscript":
        path = torch_peers.write("clip", tmp_path, 4).path
        _in_torchscript(path, pickle.dumps(_Payload(witness), protocol=2))
    elif kind == "npz":
        np.savez(path, extra=np.array([_Payload(witness)], object))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    said = _refusal(path, "clip")
    assert ("nothing of it was run" if kind != "npz" else "can't be read") in said, said
    if kind != "npz":
        assert "asks for io.open to be called" in said, said
    assert not witness.exists()
    # The same file does make it where pickles are believed.
    if kind in ("zip", "legacy"):
        torch.load(path, weights_only=False)
        assert witness.exists()


def test_code_of_a_torchscript_archive_is_not_run(tmp_path):
    class Loud(torch.nn.Module):
        def __init__(self, path: str):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.path = path

        @torch.jit.export
        def __getstate__(self):
            return self.path, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.path = state[0]
            self.training = state[1]
            # Makes a file of four bytes.
            self.weight = torch.from_file(state[0], shared=True, size=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    witness, path = tmp_path / "witness", tmp_path / "file.pt"
    torch.jit.save(torch.jit.script(Loud(str(witness))), path)
    _refusal(path, "clip")
    assert not witness.exists()
    torch.jit.load(path)
    assert witness.exists()


def test_zip_bombs(tmp_path):
    """Directories that promise much more than the file has: of zeros, and of many members."""
    with zipfile.ZipFile(tmp_path / "zeros.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros/data.pkl", b"")
        file.writestr("zeros/data/0", bytes(50_000_000))
    np.savez_compressed(tmp_path / "zeros.npz", zeros=np.zeros(10_000_000, np.float32))
    for name in ("zeros.pth", "zeros.npz"):
        said = _refusal(tmp_path / name, "torchvision")
        assert "would unpack to" in said
        assert "raise that if you trust it" in said
    said = _refusal(tmp_path / "zeros.npz", "torchvision", max_bytes=1000)
    assert "more than the 1,000 allowed" in said
    torch.save({"conv1.weight": torch.zeros(100)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as old,
        zipfile.ZipFile(tmp_path / "pressed.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert "is compressed" in _refusal(tmp_path / "pressed.pth", "torchvision")


def test_a_tensor_that_is_larger_than_its_data(tmp_path):
    huge = torch.ones(1).expand(64, 3, 2**20, 2**20)
    torch.save(_tensors("torchvision") | {"conv1.weight": huge}, tmp_path / "file.pth")
    assert "of another shape: conv1.weight" in _refusal(tmp_path / "file.pth", "torchvision")


def test_sha256_is_checked_before_the_file_is_opened(tmp_path, monkeypatch):
    path = torch_peers.write("torchvision", tmp_path, 4).path
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    interop.convert(path, "torchvision", width=4, sha256=right.upper())
    named = path.rename(tmp_path / "resnet50-0676ba61.pth")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    for path, sha256 in ((named, "0" * 64), (named, None)):  # the second is told by the name
        said = _refusal(path, "torchvision", sha256=sha256)
        assert "was not opened" in said
        assert right in said
    assert "is no SHA-256" in _refusal(named, "torchvision", sha256="0676ba61")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("file.pth", b""),
        ("file.pth", b"no weights at all"),
        ("file.pth", b"PK\x03\x04 and no directory"),
        ("file.safetensors", b"\x10\0\0\0\0\0\0\0 {"),
        ("file.npz", b"\x93NUMPY"),
    ],
)
def test_damaged_files(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert f"{name} can't be read" in _refusal(tmp_path / name, "torchvision")


def test_cut_files(tmp_path):
    for kind in ("torchvision", "torchvision-old", "clip", "clip-timm"):
        path = torch_peers.write(kind, tmp_path, 4).path
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert "can't be read" in _refusal(path, kind.split("-")[0])


def test_whole_modules_and_lists(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    said = _refusal(tmp_path / "module.pth", "torchvision")
    assert "asks for torch.nn.modules.linear.Linear" in said
    assert "state_dict() alone" in said
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    assert "holds a list" in _refusal(tmp_path / "list.pth", "torchvision")


def test_without_torch_only_its_own_files_are_refused(tmp_path, monkeypatch):
    tensors = {name: value.numpy() for name, value in _tensors("torchvision").items()}
    (tmp_path / "file.safetensors").write_bytes(safetensors.numpy.save(tensors))
    torch.save(_tensors("torchvision"), tmp_path / "file.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    said = _refusal(tmp_path / "file.pth", "torchvision")
    assert said.endswith("needs PyTorch: pip install -e '.[convert]'")
    assert isinstance(interop.convert(tmp_path / "file.safetensors", "torchvision", width=4), Encoder)


def test_torch_before_2_10_is_refused(tmp_path, monkeypatch):
    torch.save(_tensors("torchvision"), tmp_path / "file.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    assert "2.10 or newer" in _refusal(tmp_path / "file.pth", "torchvision")


@pytest.mark.parametrize(
    ("source", "arch", "words"),
    [
        ("keras", None, "no source 'keras'"),
        ("moco", "resnet101", "moco has no architecture 'resnet101'"),
        ("torchvision", "clip_resnet50", "choose one of resnet50"),
    ],
)
def test_sources_that_there_are_not(source, arch, words, tmp_path):
    (tmp_path / "file.pth").touch()
    assert words in _refusal(tmp_path / "file.pth", source, arch)
    assert "There is no file" in _refusal(tmp_path / "nothing.pth", "moco")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer: fetch the file itself"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b'<?xml version="1.0"?><Error/>', "an XML document"),
        (b'{"error": "not found"}', "a JSON document"),
    ],
)
def test_what_servers_send_instead_of_weights_is_named(content, words, tmp_path):
    for name in ("file.pth", "file.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert words in _refusal(tmp_path / name, "torchvision")


def test_torchs_advice_to_load_unsafely_is_not_passed_on(tmp_path):
    (tmp_path / "file.pth").write_bytes(bytes(range(128, 256)) * 4)
    said = _refusal(tmp_path / "file.pth", "torchvision")
    assert "can't be read" in said
    assert "weights_only" not in said


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.model.", "teacher."])
def test_a_known_wrapper_is_named_with_its_flag(prefix, tmp_path):
    tensors = _tensors("torchvision")
    torch.save({prefix + key: value for key, value in tensors.items()}, tmp_path / "file.pth")
    assert f"add --prefix={prefix}" in _refusal(tmp_path / "file.pth", "torchvision")
    torch.save(tensors, tmp_path / "plain.pth")
    wrapped = interop.convert(tmp_path / "file.pth", "torchvision", width=4, prefix=prefix)
    plain = interop.convert(tmp_path / "plain.pth", "torchvision", width=4)
    assert wrapped.fingerprint == plain.fingerprint


def test_a_moving_average_beside_the_weights_has_to_be_chosen(tmp_path):
    tensors = _tensors("torchvision")
    average = {key: value * 0.5 if value.is_floating_point() else value for key, value in tensors.items()}
    torch.save({"state_dict": tensors, "model_ema": average, "loss": np.float64(0.5)}, tmp_path / "file.pth")
    said = _refusal(tmp_path / "file.pth", "torchvision")
    assert "weights (state_dict) and their moving average (model_ema): choose with --ema or --noema" in said
    chosen = [interop.convert(tmp_path / "file.pth", "torchvision", width=4, ema=ema) for ema in (True, False)]
    kernels = [np.asarray(encoder.weights["conv1/kernel"]) for encoder in chosen]
    np.testing.assert_array_equal(kernels[0], kernels[1] * 0.5)
    torch.save({"state_dict": tensors}, tmp_path / "alone.pth")
    assert "no moving average" in _refusal(tmp_path / "alone.pth", "torchvision", ema=True)
    torch.save({"model_ema": average}, tmp_path / "average.pth")
    assert "moving average of the weights only" in _refusal(tmp_path / "average.pth", "torchvision", ema=False)
    # Weights without a wrapper are weights, too.
    torch.save(tensors | {"ema": average}, tmp_path / "flat.pth")
    assert "choose with --ema or --noema" in _refusal(tmp_path / "flat.pth", "torchvision")
    safetensors.torch.save_file(tensors, tmp_path / "flat.safetensors")
    assert "no moving average" in _refusal(tmp_path / "flat.safetensors", "torchvision", ema=False)


def test_another_choice_of_the_same_file_is_another_encoder(tmp_path):
    tensors = _tensors("torchvision")
    average = {key: value * 0.5 if value.is_floating_point() else value for key, value in tensors.items()}
    torch.save({"state_dict": tensors, "model_ema": average}, tmp_path / "file.pth")
    given = (tmp_path / "encoder", tmp_path / "file.pth", "torchvision")
    interop.convert(*given[1:], width=4, ema=True).save(tmp_path / "encoder")
    assert interop.convert_to(*given, max_bytes=10**9, ema=True)[1]
    with pytest.raises(UserError, match="holds another encoder"):
        interop.convert_to(*given, max_bytes=10**9, ema=False)
    with pytest.raises(UserError, match="holds another encoder"):
        interop.convert_to(*given, max_bytes=10**9, ema=True, prefix="teacher.")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_upcast_with_a_note(dtype, tmp_path):
    change = {key: value.to(getattr(torch, dtype)) for key, value in _tensors("torchvision").items() if value.ndim == 4}
    torch.save(_tensors("torchvision") | change, tmp_path / "file.pth")
    encoder = interop.convert(tmp_path / "file.pth", "torchvision", width=4)
    assert encoder.weights["conv1/kernel"].dtype == np.float32
    expected = change["conv1.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(encoder.weights["conv1/kernel"], expected)
    assert any(dtype in note for note in encoder.provenance["converted"]["notes"])
