"""What a network costs: parameters, multiply-accumulates, latency, memory. Between a model and the tables of costs."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

SIDE = 224  # of an image, in pixels
WARM_UP = 2


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of each part: the backbone, the content branch, fusion, reduce and HyperNet; and `total`."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    parts = {name: count for name, count in parts.items() if count}
    return {**parts, "total": sum(parts.values())}


def count_macs(model: nn.Module, side: int = SIDE) -> int:
    """Multiply-accumulates of one image, by torch's counter.

    The counter does not see fused attention on a CPU, so attention runs unfused while counting.
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "fused_attn", False):
            module.fused_attn = False
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    return counter.get_total_flops() // 2


def measure_latency(
    model: nn.Module, batch: int, passes: int, device: torch.device, side: int = SIDE
) -> dict[str, float]:
    """Milliseconds per image over `passes` passes: median, and the quartiles as its spread."""
    model.eval().to(device)
    images = torch.randn(batch, 3, side, side, device=device)
    milliseconds = []
    with torch.inference_mode():
        for index in range(WARM_UP + passes):
            started = time.perf_counter()
            model(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if index >= WARM_UP:
                milliseconds.append(1000 * (time.perf_counter() - started) / batch)
    low, _, high = statistics.quantiles(milliseconds, n=4)
    return {"median": statistics.median(milliseconds), "quartiles": [low, high], "passes": passes, "batch": batch}


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, for as long as something holds them."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        return tree_map_only(Tensor, self._count, func(*args, **(kwargs or {})))

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def training_memory(model: nn.Module, batch: int, dtype: torch.dtype | None = None, side: int = SIDE) -> int:
    """Bytes that a training step with Adam needs, counted over its tensors without computing anything.

    Weights, gradients, Adam's two numbers for each of them, and what is kept for the backward pass at its peak. A
    device takes more for its own libraries and for what its allocator cannot place.

    Args:
        model: images (B, 3, side, side) -> scores (B,); its parameters say whether they learn.
        batch: images a step.
        dtype: of the backbone's autocast; None for none.
        side: of the images, in pixels.
    """
    learned = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    state = {**dict(model.named_parameters(prefix="model")), **dict(model.named_buffers(prefix="model"))}
    held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with FakeTensorMode() as fake, _LiveBytes() as live:
        arguments = {name: fake.from_tensor(tensor) for name, tensor in state.items()}
        torch.func.functional_call(_Step(model.train(), dtype), arguments, torch.empty(batch, 3, side, side))
    return held + 2 * learned + live.peak


class _Step(nn.Module):
    """Forward and backward of a model in one call, within which its blocks may be computed again."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> None:
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
            scores = self.model(images)
        scores.sum().backward()
