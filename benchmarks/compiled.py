"""Compile the training step for accelerators that are not here, and count what the programs do.

    python -m venv AOT
    AOT/bin/pip install 'jax[cuda13]' libtpu --editable .      # the versions of constraints.txt
    AOT/bin/python benchmarks/compiled.py --targets h100:1,v5e:2x2 --encoders resnet50

The real compilers of NVIDIA GPUs and TPUs run on any Linux machine. A target is a device and its topology. Each program
is compared with a plain ResNet in flax.linen that is compiled in the same run. No second is measured: a step of these
encoders is bound by the bytes that it moves. The last line is one JSON object; a ratio above 1 means that this project
moves fewer bytes.

Bytes are those that the compiler counts. NVIDIA's counts none: there they are those of operands and results of all
operations of the optimized program but views, and of an operand that is only sliced, those of the slices. What a
compiler chooses by trying it out on a device (autotuning) is left at its default.
"""

import contextlib
import importlib.util
import itertools
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", CUDA_VISIBLE_DEVICES="")
os.environ.update(XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0")
sys.path.insert(0, str(Path(__file__).parent / "shared"))
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import jax
import linen_resnet
import training_step
from absl import flags
from jax._src import xla_bridge
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from vise_jax import cli
from vise_jax.errors import UserError
from vise_jax.training import sharding
from vise_jax.training import state as train_state

QUICK = flags.DEFINE_bool("quick", False, "ResNet-50, 16 images of 64 pixels, one H100: a smoke test.")
TARGETS = flags.DEFINE_list("targets", None, "Devices, as h100:1, h100:8, v5e:2x2, v5p:2x2x1, v6e:2x2; default h100:1.")
ENCODERS = flags.DEFINE_list("encoders", None, "Names of encoders; by default the paper's three.")
BATCH = flags.DEFINE_integer("batch", None, "Images per device; by default 128, and 48 for ResNeXt-101 32x16d.", 1)
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side in pixels; by default 224.", 32)
REMAT = flags.DEFINE_list("remat", [], "Stages to rematerialize, as training.remat.")
PLAIN = flags.DEFINE_bool("plain", True, "Compile the plain ResNet, too.")

# As XLA prints it for this device (openxla/xla, pull request 25919), with the libraries' versions filled in.
_H100 = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_VIEWS = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id", "replica-id", "after-all"}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
# With its layout, which names memory space 1 for what a TPU keeps on the chip.
_PLACED = re.compile(r"\b[a-z]\w*\[[\d,]*\](\{[^}]*\})?")
_ON_CHIP = "S(1)"


class Operations(NamedTuple):
    """What the operations of a compiled step do, per device.

    Attributes:
        bytes: of operands and results.
        main_memory: bytes of them that are read from main memory, or written to it.
        fusions: number of fusions.
        libraries: number of calls by library function.
        collectives: number and bytes of collectives.
        conversions: bytes of operations that only copy, transpose or convert.
    """

    bytes: int
    main_memory: int
    fusions: int
    libraries: dict[str, int]
    collectives: tuple[int, int]
    conversions: int


class Program(NamedTuple):
    """What a compiled step does, per device.

    Attributes:
        bytes: read and written, as the compiler counts them: also those that stay on the chip.
        temporary: bytes of its temporary memory.
        held: bytes of arguments, results and temporary memory.
        flops: as the compiler counts them; None if it does not.
        operations: None where this jaxlib can't read them, as those of a TPU v5p or v6e.
    """

    bytes: int
    temporary: int
    held: int
    flops: float | None
    operations: Operations | None


def main(_: list[str]) -> None:
    quick = QUICK.value
    targets = TARGETS.value or ["h100:1"]
    names = ENCODERS.value or (["resnet50"] if quick else list(linen_resnet.ENCODERS))
    if unknown := sorted(set(names) - set(linen_resnet.ENCODERS)):
        raise UserError(f"--encoders has no {unknown[0]!r}: choose from {', '.join(linen_resnet.ENCODERS)}.")
    side = IMAGE_SIZE.value or (64 if quick else 224)
    found, ratios = {}, {}
    for target in targets:
        if not installed(target):
            print(f"{target}: not measured, its compiler is not installed.", flush=True)
            continue
        devices = topology(target)
        for name in names:
            images = BATCH.value or (16 if quick else 48 if name.startswith("resnext") else 128)
            variants = {"vise_jax": compile_ours, "flax.linen": compile_plain}
            programs = {
                variant: counted(function(name, devices, images, side))
                for variant, function in variants.items()
                if variant == "vise_jax" or PLAIN.value
            }
            for variant, program in programs.items():
                print(f"{target}, {name}, {images} images, {variant}: {described(program, images)}", flush=True)
            found[f"{target} {name}"] = {"images": images} | {
                key: one._asdict() | {"operations": one.operations and one.operations._asdict()}
                for key, one in programs.items()
            }
            if PLAIN.value:
                ratio = programs["flax.linen"].bytes / programs["vise_jax"].bytes
                ratios[f"flax.linen {target} {name}"] = {"median": ratio, "low": ratio, "high": ratio}
    description = {"benchmark": "compiled", "device": ",".join(targets), "ratios": ratios, "image_size": side}
    print(json.dumps(description | {"jax": jax.__version__, "remat": REMAT.value, "programs": found}))


def installed(target: str) -> bool:
    """Return whether the compiler of a target is installed."""
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin") if target.startswith("h100") else ("libtpu",)
    return any(importlib.util.find_spec(name) for name in plugins)


def topology(target: str) -> list[jax.Device]:
    """Return the devices of a target.

    Raises:
        UserError: it is unknown.
    """
    device, _, shape = target.partition(":")
    try:
        if device == "h100":
            config = _H100.format()
            return topologies.get_topology_desc(
                platform="cuda", topology_name="h100", topology=f"1x1x{shape}", target_config=config
            ).devices
        return topologies.get_topology_desc(platform="tpu", topology_name=target).devices
    except Exception as error:
        raise UserError(
            f"There is no target {target!r} here ({str(error).splitlines()[0][:200]}): see --help."
        ) from error


@contextlib.contextmanager
def _deviceless() -> Iterator[None]:
    """Let JAX lower for GPUs without one: it looks the platform up among the devices of this machine."""
    known = xla_bridge.canonicalize_platform
    with mock.patch.object(xla_bridge, "canonicalize_platform", lambda name: "cuda" if name == "gpu" else known(name)):
        yield


def _shapes(tree: Any, places: Any) -> Any:
    """Return the shapes of arrays, with a sharding for each or one for all."""
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    if isinstance(places, NamedSharding):
        return jax.tree.map(lambda leaf: place(leaf, places), tree)
    return type(tree)(*map(_shapes, tree, places))


def compile_ours(name: str, devices: list[jax.Device], images: int, side: int) -> Any:
    """Compile the step of this project."""
    size = images * len(devices)
    remat = tuple(map(int, REMAT.value))
    step, state, mesh, layout = training_step.build(
        name, width=64, batch_size=size, image_size=side, dtype="bfloat16", devices=devices, remat=remat
    )
    split = sharding.split(mesh)
    arguments = (
        _shapes(state, train_state.shardings(mesh, layout)),
        _shapes(training_step.batch(size, side), split),
        _shapes(training_step.control(size), split),
    )
    with _deviceless():
        return step.lower(*arguments).compile()  # type: ignore[attr-defined]


def compile_plain(name: str, devices: list[jax.Device], images: int, side: int) -> Any:
    """Compile the step of the plain ResNet."""
    mesh = sharding.data_mesh(devices)
    step, state = linen_resnet.make_step(name, training_step.HEADS, side, mesh)
    batch = _shapes(training_step.batch(images * len(devices), side), sharding.split(mesh))
    with _deviceless():
        return step.lower(_shapes(state, NamedSharding(mesh, PartitionSpec())), batch).compile()


def counted(compiled: Any) -> Program:
    """Count what a compiled step does."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    moved, operations = cost.get("bytes accessed"), None
    try:
        operations = _operations(compiled.as_text())
        moved = operations.bytes if moved is None else moved
    except jax.errors.JaxRuntimeError as error:
        if moved is None:
            raise
        print(f"Its operations can't be read: {str(error).splitlines()[0][:200]}", flush=True)
    return Program(
        int(moved),
        memory.temp_size_in_bytes,
        held + memory.temp_size_in_bytes,
        cost.get("flops"),
        operations,
    )


def _operations(text: str) -> Operations:
    """Count the operations of an optimized program."""
    sliced = _sliced_parameters(text)
    entry = text.split("\nENTRY ")[1].split("\n}")[0]
    results: dict[str, str] = {}
    total, main_memory, conversions, fusions, libraries = 0, 0, 0, 0, Counter[str]()
    collectives, collective_bytes = 0, 0
    for line in entry.splitlines()[1:]:
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, rest = match.groups()
        shape, operation, operands = _split(rest)
        results[name] = shape
        if operation in _VIEWS or operation.endswith("-done"):
            continue
        called = re.search(r"calls=%?([\w.\-]+)", line)
        parts = sliced.get(called[1], {}) if called else {}
        read = sum(parts.get(index, _size(results.get(operand, ""))) for index, operand in enumerate(operands))
        # The result of a start holds its operands, too.
        size = 2 * read if operation.endswith("-start") else read + _size(shape)
        total += size
        main_memory += _in_main_memory(operation, shape, [results.get(operand, "") for operand in operands], size)
        fusions += operation == "fusion"
        if operation == "custom-call" and (target := re.search(r'custom_call_target="([^"]+)"', line)):
            libraries[target[1]] += 1
        if operation.removesuffix("-start") in _COLLECTIVES:
            collectives += 1
            collective_bytes += read
        if operation in ("copy", "copy-start", "transpose", "convert") or re.match(
            r"(loop_|input_|wrapped_)?(convert|copy|transpose)[\w.]*$", name
        ):
            conversions += size
    return Operations(total, main_memory, fusions, dict(libraries), (collectives, collective_bytes), conversions)


def _in_main_memory(operation: str, shape: str, operands: list[str], size: int) -> int:
    """Return how many of an operation's bytes are read from main memory or written to it."""
    if _ON_CHIP not in "".join([shape, *operands]):
        return size
    arrays = list(_PLACED.finditer(shape))
    if operation in ("copy-start", "slice-start"):  # onto the chip or off it, of the size of the second
        return _size(arrays[1][0])
    placed = itertools.chain(arrays, *map(_PLACED.finditer, operands))
    return sum(_size(array[0]) for array in placed if _ON_CHIP not in (array[1] or ""))


def _sliced_parameters(text: str) -> dict[str, dict[int, int]]:
    """Return, by computation, the bytes that it reads of each parameter of which it only uses slices."""
    found: dict[str, dict[int, int]] = {}
    for block in text.split("\n\n"):
        header, *lines = block.strip().splitlines() or [""]
        # Names of a parameter, also as another view or type of all of it, to its number and the bytes of an element.
        parameters: dict[str, tuple[int, int]] = {}
        read: dict[int, int | None] = {}
        for line in lines:
            if not (match := _INSTRUCTION.match(line)):
                continue
            name, rest = match.groups()
            shape, operation, operands = _split(rest)
            if operation == "parameter":
                number = int(rest.partition("parameter(")[2].partition(")")[0])
                parameters[name] = number, _size(shape) // max(_elements(shape), 1)
            for number, width in {parameters[operand] for operand in operands if operand in parameters}:
                if operation in ("bitcast", "convert"):
                    parameters[name] = number, width
                elif operation != "slice":
                    read[number] = None
                elif (before := read.get(number, 0)) is not None:
                    read[number] = before + width * _elements(shape)
        if parts := {number: size for number, size in read.items() if size is not None}:
            found[header.removeprefix("ENTRY ").lstrip("%").split(" ")[0]] = parts
    return found


def _split(rest: str) -> tuple[str, str, list[str]]:
    """Split an instruction into the type of its result, its operation and the names of its operands."""
    shape, rest = _cut(rest, 0) if rest.startswith("(") else rest.split(" ", 1)
    operation, _, rest = rest.strip().partition("(")
    return shape, operation, re.findall(r"%([\w.\-]+)", _cut(rest, 1)[0])


def _cut(text: str, depth: int) -> tuple[str, str]:
    """Cut a text behind the parenthesis that closes the outermost of `depth` open ones."""
    for end, character in enumerate(text, start=1):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[:end], text[end:]
    return text, ""


def _size(shape: str) -> int:
    """Return the bytes of a type, of a tuple those of all elements."""
    return sum(_BYTES.get(dtype, 4) * _elements(f"{dtype}[{sides}]") for dtype, sides in _SHAPE.findall(shape))


def _elements(shape: str) -> int:
    """Return the number of elements of an array's type."""
    match = _SHAPE.search(shape)
    return math.prod(int(side) for side in match[2].split(",") if side) if match else 0


def described(program: Program, images: int) -> str:
    """Describe a program in one line, per image where that makes sense."""
    flops = "" if program.flops is None else f"{program.flops / images / 1e9:.1f} GFLOP, "
    memory = f"{program.temporary / 2**30:.2f} GiB temporary, {program.held / 2**30:.2f} held"
    moved = f"{flops}{program.bytes / images / 1e6:.1f} MB an image"
    if program.operations is None:
        return f"{moved}, {memory}"
    operations = program.operations
    count, size = operations.collectives
    libraries = ", ".join(f"{number} {name}" for name, number in sorted(operations.libraries.items())) or "none"
    return (
        f"{moved} ({operations.main_memory / images / 1e6:.1f} of main memory, "
        f"{operations.conversions / images / 1e6:.1f} of copies and conversions), {memory}, {operations.fusions} "
        f"fusions, {count} collectives of {size / 1e6:.0f} MB; library calls: {libraries}"
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
