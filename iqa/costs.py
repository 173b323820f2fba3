"""What a network costs: parameters, multiply-accumulates, latency. Between a model and the tables of costs."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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
