"""Time a whole training step of each encoder on synthetic images, beside PyTorch on the same device.

    python benchmarks/step.py
    python benchmarks/step.py --encoders resnet50 --batch 16 --peers "eager nchw,eager channels_last"
    python benchmarks/step.py --encoders resnet18 --width 32 --image_size 64 --batch 64   # the demo's encoder

A step is what `train.py` does with a batch: flip and normalize uint8 images, forward, Eq. 1 on two heads, backward,
SGD with momentum and weight decay; on one device. Each variant is a process of its own, which has compiled before a
clock starts: in one process, PyTorch's and XLA's threads and memory slow each other down. They take turns, round by
round, so that a machine that slows down slows all of them. The last line is one JSON object; a ratio above 1 means that
this project is ahead of PyTorch's best variant.
"""

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

# Leave memory to torch, which runs beside.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parent / "shared"))

import jax
import numpy as np
import training_step
from absl import flags
from measuring import Prepared, Variant, ratio, take_turns, timed

from vise_jax import cli
from vise_jax.errors import UserError
from vise_jax.training import sharding
from vise_jax.training import state as train_state

OURS = "vise_jax"
PEERS = ("eager nchw", "eager channels_last", "compiled nchw", "compiled channels_last")

QUICK = flags.DEFINE_bool("quick", False, "ResNet-18, 4 images of 64 pixels, 2 rounds, no torch.compile: a smoke test.")
ENCODERS = flags.DEFINE_list("encoders", None, "Which; by default the paper's three.")
BATCH = flags.DEFINE_integer("batch", None, "Images in a step; by default 128 on a GPU and 16 elsewhere.", 1)
WIDTH = flags.DEFINE_integer("width", 64, "Channels of the encoder's first stage; the demo's has 32.", 1)
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side in pixels; by default 224.", 32)
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "By default bfloat16 on a GPU and float32 elsewhere.")
PEER_NAMES = flags.DEFINE_list("peers", None, f"PyTorch's variants, of: {', '.join(PEERS)}. By default all.")
ROUNDS = flags.DEFINE_integer("rounds", None, "Turns that each variant takes; by default 10.", 1)
STEPS = flags.DEFINE_integer("steps", None, "Steps in a turn; by default 10 on a GPU and 1 elsewhere.", 1)


def main(_: list[str]) -> None:
    on_gpu, quick = jax.default_backend() == "gpu", QUICK.value
    batch_size = BATCH.value or (4 if quick else 128 if on_gpu else 16)
    image_size = IMAGE_SIZE.value or (64 if quick else 224)
    dtype = DTYPE.value or ("bfloat16" if on_gpu else "float32")
    rounds, steps = ROUNDS.value or (2 if quick else 10), STEPS.value or (10 if on_gpu and not quick else 1)
    names = ENCODERS.value or (["resnet18"] if quick else ["resnet50", "resnet101", "resnext101_32x16d"])
    peers = _peers(PEER_NAMES.value or (PEERS[:2] if quick else PEERS))

    encoders, ratios = {}, {}
    for name in names:
        batch = training_step.batch(batch_size, image_size)
        variants = {OURS: Variant(prepare, name, WIDTH.value, batch, dtype)}
        variants |= {f"torch {peer}": Variant(_prepare_torch, name, WIDTH.value, batch, dtype, peer) for peer in peers}
        seconds = take_turns(variants, rounds, steps)
        speeds = {variant: batch_size * steps / times for variant, times in seconds.items()}
        encoders[name] = {
            variant: {"images_per_second": float(np.median(speeds[variant])), "peak_bytes": process.end()}
            for variant, process in variants.items()
        }
        for variant, found in encoders[name].items():
            peak = "" if found["peak_bytes"] is None else f", {found['peak_bytes'] / 2**30:.2f} GiB at most"
            print(f"{name}, {variant}: {found['images_per_second']:.2f} images/s{peak}", flush=True)
        best = max(speeds, key=lambda variant: -1 if variant == OURS else np.median(speeds[variant]))
        if best != OURS:
            ratios[f"torch {name}"] = {"best": best, **ratio(speeds[OURS], speeds[best])}
    print(
        json.dumps(
            {
                "benchmark": "step",
                "device": jax.devices()[0].device_kind,
                "ratios": ratios,
                "batch": batch_size,
                "width": WIDTH.value,
                "image_size": image_size,
                "dtype": dtype,
                "rounds": rounds,
                "steps": steps,
                "versions": {module: _version(module) for module in ("jax", "flax", "torch")},
                "encoders": encoders,
            }
        )
    )


def prepare(name: str, width: int, batch: dict[str, np.ndarray], dtype: str) -> Prepared:
    """Compile the training step of `train.py`; its description is its peak memory."""
    size, side = batch["images"].shape[:2]
    step, state, mesh, layout = training_step.build(
        name, width=width, batch_size=size, image_size=side, dtype=dtype, devices=jax.devices()[:1]
    )
    place = [
        jax.device_put(state, train_state.shardings(mesh, layout)),
        sharding.put_batch(mesh, batch),
        sharding.put_batch(mesh, training_step.control(size)),
    ]
    compiled = step.lower(*place).compile()  # type: ignore[attr-defined]

    def run(count: int) -> None:
        for _ in range(count):
            place[0], metrics = compiled(*place)
        metrics["loss"].block_until_ready()

    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return timed(run), lambda: held + memory.temp_size_in_bytes


def _peers(names: list[str] | tuple[str, ...]) -> list[str]:
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise UserError(f"--peers has no {unknown[0]!r}: choose from {', '.join(PEERS)}.")
    if not importlib.util.find_spec("torch"):
        print("torch is not installed: nothing to compare with, so there are no ratios.")
        return []
    return list(names)


def _prepare_torch(name: str, width: int, batch: dict[str, np.ndarray], dtype: str, peer: str) -> Prepared:
    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    import torch_step

    how, layout = peer.split()
    run, peak = torch_step.prepare(
        name, training_step.HEADS, batch, layout=layout, compiled=how == "compiled", dtype=dtype, width=width
    )
    return timed(run), lambda: peak


def _version(module: str) -> Any:
    found = importlib.util.find_spec(module)
    return importlib.metadata.version(module) if found else None


if __name__ == "__main__":
    cli.run(main, __doc__)
