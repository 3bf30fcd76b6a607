"""What the training step needs and exchanges on 8, 32 and 256 devices, read off the compiled program; what follows.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --encoders resnet50 --devices 32 --systems h200 --links 450,25

*Read off*: the step of `train.py` is compiled for so many virtual CPU devices, from shapes alone, with 48 images a
device (the paper's 1536 on 32) and bfloat16. Its arguments, temporaries, collectives and arithmetic are those that the
compiler says. On an accelerator arguments, exchanged arrays and arithmetic are the same. The compiler may cut the
collectives into more or fewer, and temporaries differ: fusions keep fewer, layouts are padded, convolutions want
workspaces, which XLA's CPU compiler leaves out. Grouped convolutions are compiled as on an accelerator; 3x3
convolutions of maps up to 7x7 are matrix products here, with patches of nine times their input.

*Planned*: how long that takes on a system of chips, by arithmetic; nothing is measured. A chip reaches a share of its
vendor's peak (--utilization), a link a share of its vendor's speed (--link_fraction). Arrays go around rings or trees:
within a node, then between nodes, each chip with a part of its own. "In sequence" a step computes, then exchanges.
"Overlapped" it exchanges while the backward pass, two thirds of the arithmetic, goes on; what is left over, at least
a bucket of 32 MiB, comes on top. Reading data, launching and waiting for the slowest chip are not in it.

Exit status 1 where a step exchanges more than its gradients, once, and a few numbers: batch norm must not communicate
(--bn_group 0 shows how that looks). The last line is one JSON object; it has no ratios, as there is no peer.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from vise_jax import cli, config, models
from vise_jax.errors import UserError
from vise_jax.models import resnet
from vise_jax.training import pretrain, sharding
from vise_jax.training import state as train_state
from vise_jax.training.step import make_train_step


class System(NamedTuple):
    """Chips and their links, by vendors' numbers; latencies are assumptions.

    Attributes:
        flops: dense bfloat16 (V100: float16) operations a second of a chip, at its peak.
        node: chips that `within` joins.
        within: bytes a second, each way, of a chip to the others of its node.
        between: the same, of a chip to other nodes.
        latency_within: seconds for a message to the next chip of the node.
        latency_between: the same, of another node.
    """

    flops: float
    node: int
    within: float
    between: float
    latency_within: float
    latency_between: float


SYSTEMS = {
    # NVIDIA's H200 SXM data sheet: 1,979 TFLOP/s with sparsity, half of it without; NVLink 900 GB/s both ways together.
    # Between nodes of 8 a 400 Gb/s adapter for each GPU, as in NVIDIA's DGX H200.
    "h200": System(989e12, 8, 450e9, 50e9, 3e-6, 10e-6),
    # NVIDIA's V100 SXM2 data sheet: 125 TFLOP/s, NVLink 300 GB/s both ways together; four 100 Gb/s adapters for the 8
    # GPUs of a DGX-1.
    "v100": System(125e12, 8, 150e9, 6.25e9, 3e-6, 10e-6),
    # Google's page of TPU v5e: 197 TFLOP/s, 400 GB/s both ways together, a torus of up to 16 x 16 chips. A node is a
    # row of it: a reduction goes along the rows, then along the columns.
    "tpu_v5e": System(197e12, 16, 200e9, 200e9, 1e-6, 1e-6),
}
BUCKET = 2**25
HEADS = {"comments": 5000, "reactions": 128}
LABELS_PER_IMAGE = 100
# Numbers that may be exchanged beside the gradients: counts, losses, signals.
MOST_NUMBERS = 16

QUICK = flags.DEFINE_bool("quick", False, "A narrow ResNet-18, 4 images of 32 pixels, 2 and 8 devices: a smoke test.")
ENCODERS = flags.DEFINE_list("encoders", None, "Which; the paper's three if not said.")
DEVICES = flags.DEFINE_list("devices", None, "How many; 8,32,256 if not said.")
PER_DEVICE = flags.DEFINE_integer("per_device", None, "Images a device; 48 if not said.", 1)
BN_GROUP = flags.DEFINE_integer("bn_group", None, "As model.bn_group; one group for each device if not said.", 0)
SYSTEM_NAMES = flags.DEFINE_list("systems", list(SYSTEMS), f"Of: {', '.join(SYSTEMS)}.")
LINKS = flags.DEFINE_list("links", None, "WITHIN,BETWEEN: other links, GB/s each way, for all systems.")
# ResNet-50 on A100 (NVIDIA DeepLearningExamples, 2,470 images/s) and H100 (MLPerf v3.0, 7,000) and the paper's
# ResNeXt-101 on V100 (90) reach 16 to 19% of the peak.
UTILIZATION = flags.DEFINE_float("utilization", 0.18, "Share of a chip's peak that the step reaches.", 0.001, 1.0)
LINK_SHARE = flags.DEFINE_float(
    "link_fraction", 0.8, "Share of a link's speed that a ring reaches: an assumption.", 0.001, 1.0
)
COUNT = flags.DEFINE_integer("count", None, "For the benchmark itself: compile for the devices that there are.", 1)


class Collective(NamedTuple):
    """An instruction by which devices exchange arrays.

    Attributes:
        kind: HLO's name, e.g. "all-reduce".
        arrays: how many it takes.
        elements: their elements on one device, together (of the larger side, where it gathers or scatters).
        bytes: their bytes.
        devices: how many exchange with each other.
        source: where it comes from in the program.
    """

    kind: str
    arrays: int
    elements: int
    bytes: int
    devices: int
    source: str


def main(words: list[str]) -> None:
    cli.no_words(words)
    names = ENCODERS.value or (["resnet18"] if QUICK.value else ["resnet50", "resnet101", "resnext101_32x16d"])
    if unknown := sorted(set(names) - set(resnet.ENCODERS)):
        raise UserError(f"--encoders has no {unknown[0]!r}: choose from {', '.join(resnet.ENCODERS)}.")
    if COUNT.value:
        for name in names:
            print(json.dumps(examine(name, COUNT.value)), flush=True)
        return
    counts = _counts(DEVICES.value or (["2", "8"] if QUICK.value else ["8", "32", "256"]))
    systems = _systems()
    steps = [step for count in counts for step in _in_a_process(names, count)]
    steps.sort(key=lambda step: names.index(step["encoder"]))
    print(_table_of_steps(steps), end="\n\n")
    plans = [plan(step, name, system) for step in steps for name, system in systems.items()]
    usual = f"{UTILIZATION.value:.0%} of a chip's peak (in brackets at all of it)"
    print(f"Planned, at {usual} and {LINK_SHARE.value:.0%} of a link's:")
    print(_table_of_plans(plans), end="\n\n")
    print(
        json.dumps(
            {
                "benchmark": "scaling",
                "device": "virtual CPU devices",
                "ratios": {},
                "steps": steps,
                "planned": plans,
                "utilization": UTILIZATION.value,
                "link_fraction": LINK_SHARE.value,
                "versions": {"jax": jax.__version__},
            }
        )
    )
    if found := [f"{step['encoder']} on {step['devices']} devices {step['wrong']}" for step in steps if step["wrong"]]:
        raise UserError(f"A step exchanges something else than each gradient once: {'; '.join(found)}.")


def _counts(words: list[str]) -> list[int]:
    if not all(word.isdigit() and int(word) > 1 for word in words):
        raise UserError(f"--devices is {','.join(words)!r}: give numbers above 1, e.g. 8,32.")
    return [int(word) for word in words]


def _systems() -> dict[str, System]:
    if unknown := sorted(set(SYSTEM_NAMES.value) - set(SYSTEMS)):
        raise UserError(f"--systems has no {unknown[0]!r}: choose from {', '.join(SYSTEMS)}.")
    systems = {name: SYSTEMS[name] for name in SYSTEM_NAMES.value}
    if LINKS.value:
        try:
            within, between = (float(word) * 1e9 for word in LINKS.value)
        except ValueError:
            within = between = 0.0
        if min(within, between) <= 0:
            raise UserError(f"--links is {','.join(LINKS.value)!r}: give two speeds in GB/s above 0, e.g. 450,50.")
        systems = {name: system._replace(within=within, between=between) for name, system in systems.items()}
    return systems


def _in_a_process(names: list[str], count: int) -> list[dict[str, Any]]:
    """What `examine` says of these encoders, from a process that has so many devices."""
    command = [sys.executable, __file__, f"--count={count}", f"--encoders={','.join(names)}", f"--quick={QUICK.value}"]
    for flag in (PER_DEVICE, BN_GROUP):
        command += [] if flag.value is None else [f"--{flag.name}={flag.value}"]
    virtual = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": virtual}
    found = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            found.append(json.loads(line))
            print(_lines(found[-1]), flush=True)
    if process.returncode:
        raise UserError(f"The steps for {count} devices could not be compiled: the reason stands above.")
    return found


def examine(name: str, devices: int) -> dict[str, Any]:
    """Compile the training step of an encoder for all devices of this process, and say what it is made of."""
    quick = QUICK.value
    per_device, side, width = PER_DEVICE.value or (4 if quick else 48), 32 if quick else 224, 8 if quick else 64
    experiment = config.base()
    experiment.model.update(name=name, width=width, dtype="bfloat16", bn_group=BN_GROUP.value)
    experiment.data.image_size = side
    experiment.training.batch_size = per_device * devices
    mesh = sharding.data_mesh()
    layout = sharding.layout(experiment.training.batch_size, mesh.size, bn_group=experiment.model.bn_group)
    began = time.perf_counter()
    compiled, parameters, equal = compile_step(experiment, mesh, layout)
    collectives = parse_collectives(compiled.as_text())
    memory = compiled.memory_analysis()
    return {
        "encoder": name,
        "devices": devices,
        "per_device": per_device,
        "image_size": side,
        "parameters": parameters,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": [collective._asdict() for collective in collectives],
        "equal_gradients": equal,
        "wrong": wrong(collectives, parameters, equal, devices),
        "flops_per_image": compiled.cost_analysis()["flops"] / per_device,
        "flops_per_image_by_hand": arithmetic(name, side, width),
        "compile_seconds": time.perf_counter() - began,
    }


def compile_step(
    experiment: Any, mesh: jax.sharding.Mesh, layout: sharding.Layout
) -> tuple[jax.stages.Compiled, int, int]:
    """Compile the training step without making an array.

    Returns:
        The step; how many parameters there are; and how many of them have another one's gradient: the bias of a
        shortcut's norm has that of the block's last norm, and the compiler sums both only once.
    """
    total, held = 1_000_000, {}
    rate, optimizer = pretrain.make_optimizer(experiment.training, total)

    def state() -> train_state.TrainState:
        model = models.build(
            experiment.model.name,
            width=experiment.model.width,
            heads=HEADS,
            bn_group=layout.bn_group,
            dtype=experiment.model.dtype,
        )
        held["graphdef"], first = train_state.create(model, optimizer, layout)
        return first

    shapes, size, side = jax.eval_shape(state), layout.batch_size, experiment.data.image_size
    batch = {
        "images": jax.ShapeDtypeStruct((size, side, side, 3), np.uint8),
        "comment_labels": jax.ShapeDtypeStruct((size, LABELS_PER_IMAGE), np.int32),
        "comment_weights": jax.ShapeDtypeStruct((size, LABELS_PER_IMAGE), np.float32),
        "reaction_label": jax.ShapeDtypeStruct((size,), np.int32),
    }
    control = {
        "corrupt": jax.ShapeDtypeStruct((size,), np.int32),
        "signals": jax.ShapeDtypeStruct((size, 3), np.int32),
    }
    task = pretrain.make_task(experiment, {"examples": total, "validation": {"examples": 0}}, models.build)
    step = make_train_step(held["graphdef"], task, optimizer, rate, seed=0, mesh=mesh, layout=layout)
    sizes = {path: leaf.size for path, leaf in train_state.named_leaves(shapes.params).items()}
    equal = sum(size for path, size in sizes.items() if "downsample/1/bias" in path)
    return step.lower(shapes, batch, control).compile(), sum(sizes.values()), equal


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ({_KINDS})(-start)?\(", re.MULTILINE)
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


def parse_collectives(hlo: str) -> list[Collective]:
    """The collectives in the text of a compiled program for CPUs, each counted once even where it stands in a loop.

    Raises:
        ValueError: one is asynchronous, as compilers for accelerators write them: not understood here.
    """
    found = []
    for match in _INSTRUCTION.finditer(hlo):
        result, kind, asynchronous = match.groups()
        line = hlo[match.start() : hlo.index("\n", match.end()) if "\n" in hlo[match.end() :] else len(hlo)]
        if asynchronous:
            raise ValueError(f"an asynchronous {kind}: this reads programs for CPUs only")
        devices = _exchanging(line)
        arrays = [(_bytes(dtype), _product(shape)) for dtype, shape in _ARRAY.findall(result)]
        larger = devices if kind == "reduce-scatter" else 1
        source = re.search(r'op_name="([^"]*)"', line)
        found.append(
            Collective(
                kind,
                len(arrays),
                larger * sum(elements for _, elements in arrays),
                larger * sum(size * elements for size, elements in arrays),
                devices,
                source[1] if source else "",
            )
        )
    return found


def _exchanging(line: str) -> int:
    """How many devices exchange: groups are {{0,1},{2,3}}, [groups,devices]<=[all] or mesh['x'=8] {'x'}."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", line):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{('\w+'(?:,'\w+')*)\}", line):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", named[2]))
    raise ValueError(f"no groups of devices in: {line.strip()[:200]}")


def _bytes(dtype: str) -> int:
    bits = _BITS.search(dtype)
    return max(int(bits[0]) // 8, 1) if bits else 1


def _product(shape: str) -> int:
    return math.prod(int(side) for side in shape.split(",") if side)


def wrong(collectives: Iterable[Collective], parameters: int, equal: int, devices: int) -> str:
    """In words, what is exchanged beside one sum of each gradient over all devices and a few numbers; "" if nothing.

    Args:
        collectives: of the step.
        parameters: how many there are.
        equal: those whose gradient is another one's, so that it may be summed only once.
        devices: how many there are.
    """
    collectives = list(collectives)
    if others := [found for found in collectives if found.kind != "all-reduce" or found.devices != devices]:
        return f"has {others[0].kind} among {others[0].devices} devices ({others[0].source})"
    extra = sum(found.elements for found in collectives) - parameters
    if any(0 <= extra + merged <= MOST_NUMBERS for merged in (0, equal)):
        return ""
    return f"sums {abs(extra):,} numbers {'more' if extra > 0 else 'less'} than it has parameters"


def arithmetic(name: str, side: int, width: int = 64, heads: dict[str, int] | None = None) -> float:
    """Operations of a training step for one image, worked out from the papers' tables.

    A multiplication and an addition for each weight and place, three times: forward, and backward for the layer's input
    and for its weights; but the images need no gradient. Norms, activations and the loss are left out.
    """
    encoder = resnet.ENCODERS[name]
    groups, group_width = encoder.get("groups", 1), encoder.get("group_width", 64)
    expansion = encoder["block"].expansion
    halved = lambda length: -(-length // 2)  # noqa: E731

    side = halved(side)
    stem = 7 * 7 * 3 * width * side**2
    side, products, channels = halved(side), 0, width
    for stage, blocks in enumerate(encoder["blocks"]):
        base = width * 2**stage
        inner, out = base * group_width // 64 * groups, base * expansion
        for block in range(blocks):
            before, side = side, halved(side) if stage and not block else side
            if expansion == 1:
                products += (9 * channels * base + 9 * base * base) * side**2
            else:
                products += channels * inner * before**2 + (9 * inner * inner // groups + inner * out) * side**2
            if channels != out:
                products += channels * out * side**2
            channels = out
    products += channels * sum((HEADS if heads is None else heads).values())
    return 2.0 * (2 * stem + 3 * products)


def all_reduce(bytes_: float, devices: int, speed: float, latency: float) -> float:
    """Seconds to sum an array over devices, by a ring or, where messages are short, by a tree, as NCCL chooses.

    Either way everything passes a device twice: summed, and back. A ring has more but shorter messages.
    """
    ring = 2 * (devices - 1) * (bytes_ / devices / speed + latency)
    tree = 2 * (bytes_ / speed + math.ceil(math.log2(devices)) * latency)
    return min(ring, tree)


def reduction(bytes_: float, devices: int, system: System, link_fraction: float) -> float:
    """Seconds to sum an array over devices: scatter within each node, sum between nodes, gather within each node.

    Args:
        bytes_: of the array, on each device.
        devices: how many, in whole nodes.
        system: whose links.
        link_fraction: of their speed that is reached.
    """
    local = min(devices, system.node)
    nodes = -(-devices // local)
    within = all_reduce(bytes_, local, link_fraction * system.within, system.latency_within)
    if nodes == 1:
        return within
    return within + all_reduce(bytes_ / local, nodes, link_fraction * system.between, system.latency_between)


def overlapped(compute: float, exchange: float, last: float) -> float:
    """Seconds of a step that exchanges during its backward pass, two thirds of it, but for the last bucket."""
    backward = compute * 2 / 3
    return compute + max(exchange - backward, last)


def plan(step: dict[str, Any], name: str, system: System) -> dict[str, Any]:
    """How long a step would take on a system, at the chip's usual speed and, where links matter most, at its peak."""
    exchange = sum(
        reduction(found["bytes"], step["devices"], system, LINK_SHARE.value) for found in step["collectives"]
    )
    # A bucket's time, not more than all of them take.
    last = min(reduction(BUCKET, step["devices"], system, LINK_SHARE.value), exchange)
    found = {"encoder": step["encoder"], "devices": step["devices"], "system": name, "exchange_seconds": exchange}
    for speed, share in (("usual", UTILIZATION.value), ("peak", 1.0)):
        compute = step["flops_per_image_by_hand"] * step["per_device"] / (share * system.flops)
        ways = {"in_sequence": compute + exchange, "overlapped": overlapped(compute, exchange, last)}
        found[speed] = {
            "compute_seconds": compute,
            "weak_scaling": {way: compute / seconds for way, seconds in ways.items()},
            "images_per_second": {way: step["per_device"] * step["devices"] / seconds for way, seconds in ways.items()},
        }
    return found


def _lines(step: dict[str, Any]) -> str:
    lines = [f"{step['encoder']} on {step['devices']} devices, compiled in {step['compile_seconds']:.0f} s:"]
    for found in step["collectives"]:
        what = f"{found['kind']} of {found['arrays']} arrays, {found['bytes']:,} bytes"
        lines.append(f"    {what}, among {found['devices']} devices ({found['source']})")
    return "\n".join(lines)


def _table_of_steps(steps: list[dict[str, Any]]) -> str:
    head = ["encoder", "devices", "parameters", "arguments of a device", "its temporaries (CPU)", "collectives"]
    rows = [[*head, "numbers in them", "their bytes", "GFLOP an image: compiler / by hand"]]
    for step in steps:
        numbers, bytes_ = (sum(found[key] for found in step["collectives"]) for key in ("elements", "bytes"))
        rows.append(
            [
                step["encoder"],
                str(step["devices"]),
                f"{step['parameters']:,}",
                f"{step['argument_bytes'] / 1e9:.2f} GB",
                f"{step['temporary_bytes'] / 1e9:.1f} GB",
                str(len(step["collectives"])),
                f"{numbers:,}",
                f"{bytes_ / 1e6:.1f} MB",
                f"{step['flops_per_image'] / 1e9:.1f} / {step['flops_per_image_by_hand'] / 1e9:.1f}",
            ]
        )
    return _table(rows)


def _table_of_plans(plans: list[dict[str, Any]]) -> str:
    head = ["encoder", "system", "devices", "arithmetic, ms", "exchange, ms", "weak scaling in sequence", "overlapped"]
    rows = [[*head, "images/s in sequence", "overlapped"]]
    for found in plans:
        usual, peak = found["usual"], found["peak"]
        both = zip(usual["weak_scaling"].values(), peak["weak_scaling"].values(), strict=True)
        rows.append(
            [
                found["encoder"],
                found["system"],
                str(found["devices"]),
                f"{1e3 * usual['compute_seconds']:.1f} ({1e3 * peak['compute_seconds']:.1f})",
                f"{1e3 * found['exchange_seconds']:.2f}",
                *(f"{share:.1%} ({at_peak:.1%})" for share, at_peak in both),
                *(f"{float(f'{speed:.3g}'):,.0f}" for speed in usual["images_per_second"].values()),
            ]
        )
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    """In Markdown, the first row being its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    cli.run(main, __doc__)
