"""Devices that nobody waits for: what is brought to one and back while both go on working."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def computes_on_cuda(device: str) -> bool:
    """Whether the setting `device` (`auto`, `cpu`, `cuda`, `mps`) means a CUDA device here."""
    return device in ("auto", "cuda") and torch.cuda.is_available()


@functools.cache
def device_constant(values: tuple, device: torch.device) -> Tensor:
    """A float tensor of numbers, made once for each device: making it copies it there, for which everything waits."""
    with torch.inference_mode(False):  # training may use what a test has made
        return torch.tensor(values, dtype=torch.float32, device=device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, for which the CPU does not wait."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def fetch_later(values: Tensor) -> Callable[[], list[float]]:
    """Start a copy to the host.

    Args:
        values: (n,) on any device; nothing may write to it afterwards.

    Returns:
        What gives the numbers. It waits for the copy alone, not for what the device was asked to do since.
    """
    if values.device.type != "cuda":
        return values.tolist
    host, copied = values.to("cpu", non_blocking=True), torch.cuda.Event()  # the copy lies in pinned memory
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return host.tolist()

    return read
