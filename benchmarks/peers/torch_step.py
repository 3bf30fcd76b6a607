"""VisE's training step in PyTorch, as its users would write it: the peer of `benchmarks/step.py`."""

from collections.abc import Callable

import numpy as np
import torch
import torch_resnet
from torch import nn
from torch.nn import functional

from vise_jax.preprocessing import Preprocessing


class VisE(nn.Module):
    """The encoder and a linear head for each kind of engagement, on uint8 images [B, 3, H, W]."""

    def __init__(self, name: str, heads: dict[str, int], width: int = 64):
        super().__init__()
        self.encoder = torch_resnet.ResNet(name, width)
        self.heads = nn.ModuleDict({head: nn.Linear(self.encoder.feature_dim, heads[head]) for head in heads})
        preprocessing = Preprocessing.imagenet()
        self.mean, self.std = (
            nn.Buffer(torch.tensor(values).reshape(1, 3, 1, 1)) for values in (preprocessing.mean, preprocessing.std)
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
        features = self.encoder((images.float() / 255 - self.mean) / self.std).mean((2, 3))
        return {name: head(features) for name, head in self.heads.items()}


def loss_of(logits: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute Eq. 1 where every example has labels: soft targets on comments, one class on reactions."""
    log_probabilities = functional.log_softmax(logits["comments"].float(), 1).gather(1, batch["comment_labels"])
    weights = batch["comment_weights"] / batch["comment_weights"].sum(1, keepdim=True)
    reactions = functional.cross_entropy(logits["reactions"].float(), batch["reaction_label"])
    return -(weights * log_probabilities).sum(1).mean() + reactions


def prepare(
    encoder: str,
    heads: dict[str, int],
    batch: dict[str, np.ndarray],
    *,
    layout: str,
    compiled: bool,
    dtype: str,
    width: int = 64,
) -> tuple[Callable[[int], None], int | None]:
    """Make the step of one variant.

    Args:
        encoder: its name.
        heads: name → classes.
        batch: as of `vise_jax.training.step`, images NHWC.
        layout: "nchw" or "channels_last".
        compiled: through `torch.compile`.
        dtype: "bfloat16" is autocast.
        width: channels of the first stage.

    Returns:
        A function that takes a number of steps and waits for them; and the peak memory of a step in bytes, None on
        a CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    memory_format = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    model = VisE(encoder, heads, width).to(device).to(memory_format=memory_format).train()  # type: ignore[call-overload]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, foreach=True)
    tensors = {key: torch.from_numpy(value).to(device) for key, value in batch.items()}
    images = tensors["images"].permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    tensors |= {key: tensors[key].long() for key in ("comment_labels", "reaction_label")}
    autocast = dtype == "bfloat16"

    def forward(images: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = model(images)
        return loss_of(logits, tensors)

    forward = torch.compile(forward) if compiled else forward

    def step(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss = forward(images, tensors)
            loss.backward()
            optimizer.step()
        loss.item()

    if not on_gpu:
        return step, None
    step(1)  # compiles, and tries cuDNN's algorithms, which takes memory that later steps don't
    torch.cuda.reset_peak_memory_stats()
    step(1)
    return step, torch.cuda.max_memory_allocated() - before
