"""Compile the training step for accelerators that are not here, and count what the programs do.

    python -m venv AOT
    AOT/bin/pip install 'jax[cuda13]' libtpu --editable .      # the versions of constraints.txt
    AOT/bin/python benchmarks/compiled.py --targets h100:1,v5e:2x2 --encoders resnet50

The real compilers of NVIDIA GPUs and TPUs run on any Linux machine. A target is a device and its topology. Each program
is compared with a plain ResNet in flax.linen that is compiled in the same run. No second is measured: a step of these
encoders is bound by the bytes that it moves. The last line is one JSON object; a ratio above 1 means that this project
moves fewer bytes.

Bytes are those that the compiler counts. NVIDIA's counts none: there they are counted from the optimized program (see
`shared/hlo.py`). What a compiler chooses by trying it out on a device (autotuning) is left at its default.
"""

import contextlib
import importlib.util
import json
import os
import sys
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
from hlo import Operations, operations_of
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
        operations = operations_of(compiled.as_text())
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
