"""What PyTorch computes for the encoders, in small files that the tests compare with where torch is not installed.

    python tests/models/make_reference.py

Weights and images are drawn from a seeded NumPy generator, which the tests draw again. Of a large array only its
`sketch` is kept: its norm and its products with random vectors, in which any difference between two arrays shows as
large as its own norm.
"""

import contextlib
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx

from vise_jax import models, variables

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "benchmarks" / "peers"))
with contextlib.suppress(ImportError):
    import torch
    import torch_resnet

# Encoder → width, batch, side. ResNeXt is thin so that its gradient takes seconds: the groups are 2 channels wide.
CASES = {
    "resnet18": (64, 4, 64),
    "resnet50": (64, 4, 64),
    "resnet101": (64, 4, 64),
    "resnext101_32x16d": (8, 4, 64),
}
PROJECTIONS = 8

Arrays = dict[str, np.ndarray]


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def draw_weights(shapes: dict[str, tuple[int, ...]], biases: Arrays) -> Arrays:
    """Random float32 weights, batch statistics among them, for paths as `layer1/0/conv1/kernel`; kernels are HWIO.

    Args:
        shapes: path → shape.
        biases: path → bias, where `keep_off_the_edge` chose it; others are drawn.
    """
    bottleneck = any("bn3" in path for path in shapes)
    weights = {}
    for path, shape in shapes.items():
        generator, kind = _generator(path), path.rsplit("/", 1)[1]
        if kind == "kernel":
            value = generator.standard_normal(shape) * np.sqrt(2 / (shape[0] * shape[1] * shape[3]))
        elif kind in ("scale", "var"):
            # As in trained networks, blocks add little to their shortcut: rounding doesn't grow from block to block.
            small = kind == "scale" and path.endswith("bn3/scale" if bottleneck else "bn2/scale")
            value = generator.uniform(0.5, 1.0, shape) * (0.2 if small else 1.0)
        else:
            value = biases.get(path, 0.1 * generator.standard_normal(shape))
        weights[path] = value.astype(np.float32)
    return weights


def draw_images(batch: int, side: int) -> np.ndarray:
    """Normalized images, float32 [batch, side, side, 3]."""
    return _generator("images").standard_normal((batch, side, side, 3)).astype(np.float32)


def draw_cotangent(batch: int, features: int) -> np.ndarray:
    """The weights [batch, features] of the features in the scalar whose gradient is taken."""
    return _generator("cotangent").standard_normal((batch, features)).astype(np.float32)


def sketch(name: str, array: np.ndarray) -> np.ndarray:
    """Norm of an array and its products with random vectors of signs: float64 [1 + PROJECTIONS]."""
    flat = np.asarray(array, np.float64).reshape(-1)
    generator, products = _generator(name), []
    for _ in range(PROJECTIONS):
        bits = np.unpackbits(np.frombuffer(generator.bytes(-(-flat.size // 8)), np.uint8), count=flat.size)
        products.append(2 * (bits.astype(np.float64) @ flat) - flat.sum())
    return np.array([np.linalg.norm(flat), *products])


def distance(found: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
    """Estimate |a - b| / max(|b|, floor) (Euclidean norms) from the sketches of a and b."""
    return float(np.sqrt(np.mean(np.square(found[1:] - expected[1:]))) / max(expected[0], floor))


def summarize(case: str, outputs: dict[str, np.ndarray | Arrays]) -> Arrays:
    """What is compared: every eighth feature itself, and sketches of everything.

    Args:
        case: the encoder.
        outputs: "train" and "eval", the feature maps [B, h, w, D]; "gradients" and "statistics", by path.
    """
    summary: Arrays = {}
    for mode in ("train", "eval"):
        feature_map = np.asarray(outputs[mode])
        summary[f"{mode}/features"] = feature_map.mean((1, 2))[:, ::8]
        summary[f"{mode}/feature_map"] = sketch(f"{case}/{mode}", feature_map)
    for kind in ("gradients", "statistics"):
        for path, value in outputs[kind].items():
            summary[f"{kind}/{path}"] = sketch(path, value)
    return summary


def torch_name(path: str) -> str:
    """torchvision's name of a weight: `layer1/0/bn1/var` → `layer1.0.bn1.running_var`."""
    module, kind = path.rsplit("/", 1)
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return f"{module.replace('/', '.')}.{names[kind]}"


def load_torch(case: str, weights: Arrays) -> "torch_resnet.ResNet":
    """The torch encoder with these weights, strictly."""
    model = torch_resnet.ResNet(case, CASES[case][0])
    state = {
        torch_name(path): torch.from_numpy(value.transpose(3, 2, 0, 1).copy() if value.ndim == 4 else value.copy())
        for path, value in weights.items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return model


def torch_images(case: str) -> "torch.Tensor":
    """The images as torch lays them out, [batch, 3, side, side]."""
    return torch.from_numpy(draw_images(*CASES[case][1:]).transpose(0, 3, 1, 2).copy())


def run_torch(case: str, weights: Arrays) -> dict[str, np.ndarray | Arrays]:
    """Feature maps, gradients and new batch statistics as torch computes them on the CPU in float32."""
    model, images = load_torch(case, weights), torch_images(case)
    with torch.no_grad():
        in_eval = model.eval()(images)
    in_train = model.train()(images)
    cotangent = torch.from_numpy(draw_cotangent(len(images), model.feature_dim))
    (in_train.mean((2, 3)) * cotangent).sum().backward()

    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    gradients, statistics = {}, {}
    for path in weights:
        name = torch_name(path)
        if name in buffers:
            statistics[path] = buffers[name].numpy()
        else:
            gradient = parameters[name].grad.numpy()
            gradients[path] = gradient.transpose(2, 3, 1, 0) if gradient.ndim == 4 else gradient
    return {
        "train": in_train.detach().numpy().transpose(0, 2, 3, 1),
        "eval": in_eval.numpy().transpose(0, 2, 3, 1),
        "gradients": gradients,
        "statistics": statistics,
    }


def keep_off_the_edge(case: str, weights: Arrays) -> Arrays:
    """Biases, float16, with which no ReLU of the network has an input near zero in training mode.

    Rounding differs between two implementations. With any biases it moves a few of the millions of units over ReLU's
    edge, and one such unit already changes gradients: torch's own ResNet-50 with biases as drawn, in float32 beside
    float64, differs by 1.7% in the worst tensor and by more than 0.1% in every one. So every channel's
    bias is moved by at most 0.2 to where the gap around zero is widest.
    """
    model, biases = load_torch(case, weights).train(), {}

    def move(path: str, norm: "torch.nn.BatchNorm2d", relu_input: "torch.Tensor") -> "torch.Tensor":
        old = norm.bias.detach().clone()
        candidates = (old + torch.linspace(-0.2, 0.2, 81)[:, None]).half().float()
        values = relu_input.transpose(0, 1).flatten(1)  # [C, units]
        margins = torch.stack([(values + shift[:, None]).abs().amin(1) for shift in candidates - old])
        best = candidates.gather(0, margins.argmax(0)[None])[0]
        norm.bias.copy_(best)
        biases[f"{path}/bias"] = best.numpy().astype(np.float16)
        return (best - old)[None, :, None, None]

    def watch(path: str, norm: "torch.nn.BatchNorm2d", shortcut: Callable) -> None:
        norm.register_forward_hook(lambda _, __, output: output + move(path, norm, output + shortcut()))

    def remember(block: "torch.nn.Module", inputs: "tuple[torch.Tensor]") -> None:
        block.shortcut = inputs[0] if block.downsample is None else block.downsample(inputs[0])

    watch("bn1", model.bn1, lambda: 0.0)
    for stage in range(1, 5):
        for index, block in enumerate(getattr(model, f"layer{stage}")):
            norms = [name for name in ("bn1", "bn2", "bn3") if hasattr(block, name)]
            block.register_forward_pre_hook(remember)
            for name in norms[:-1]:
                watch(f"layer{stage}/{index}/{name}", getattr(block, name), lambda: 0.0)
            last = f"layer{stage}/{index}/{norms[-1]}"
            watch(last, getattr(block, norms[-1]), lambda block=block: block.shortcut)
    with torch.no_grad():
        model(torch_images(case))
    return biases


def shapes_of(case: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of vise_jax's encoder, by path."""
    abstract = nnx.eval_shape(lambda: models.build(case, width=CASES[case][0]))
    return {path: value.shape for path, value in variables.of_model(abstract).items()}


def read(case: str) -> tuple[Arrays, Arrays]:
    """The biases to draw weights with, and torch's summary, both from this encoder's file."""
    with np.load(HERE / f"reference_{case}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    biases = {name.removeprefix("biases/"): arrays.pop(name) for name in list(arrays) if name.startswith("biases/")}
    return biases, arrays


def main() -> None:
    """Write reference_<encoder>.npz beside this file for every case."""
    for case in CASES:
        shapes = shapes_of(case)
        biases = keep_off_the_edge(case, draw_weights(shapes, {}))
        summary = summarize(case, run_torch(case, draw_weights(shapes, biases)))
        arrays = {name: value.astype(np.float32) for name, value in summary.items()}
        path = HERE / f"reference_{case}.npz"
        np.savez_compressed(path, **arrays, **{f"biases/{name}": value for name, value in biases.items()})
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
