"""The machine a run lives on: seed, device and compiler."""

from __future__ import annotations

import datetime
import os
import shutil

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch.utils.data import DataLoader

from iqa.errors import UserError
from iqa.system import keep_freed_memory, limit_threads

# How long processes wait for one of them: the first one checks and hashes a whole database while the others wait.
WAIT = datetime.timedelta(hours=12)


def make_accelerator(device: str = "auto", precision: str = "fp32", accumulate: int = 1) -> Accelerator:
    """Accelerate's handle on devices and processes.

    Args:
        device: `auto` (the best there is), `cpu`, `cuda` or `mps`.
        precision: `fp32`, or `bf16` or `fp16` for the backbone (autocast).
        accumulate: batches whose gradients make one optimizer step.

    Raises:
        UserError: the device is not there, or cannot compute in that precision.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UserError(f"device {device} is not available here; use --device auto or cpu")
    if precision == "fp16" and (device == "cpu" or not any(available.values())):
        raise UserError("precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    if device == "cpu" or not any(available.values()):
        keep_freed_memory()
    limit_threads()
    mixed = {"fp32": "no"}.get(precision, precision)
    for kind in (PartialState, AcceleratorState, GradientState):  # else the first one's settings are a process's only
        kind._shared_state = {}
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision=mixed,
        gradient_accumulation_steps=accumulate,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
    )


def autocast(accelerator: Accelerator) -> torch.autocast:
    """The arithmetic of an accelerator's precision; its own `autocast` is that of the last one made."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    return torch.autocast(accelerator.device.type, dtype, enabled=dtype is not None)


def require_compiler() -> None:
    """Before a run with torch.compile, whose generated code is compiled on the machine.

    Raises:
        UserError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"--compile needs a C++ compiler, and there is no {compiler} here: install one, or leave it out"
        )


def seed_everything(seed: int) -> None:
    """Seed torch's generators; crops and splits have generators of their own."""
    torch.manual_seed(seed)


def seed_pass(loader: DataLoader) -> None:
    """Seed a loader by one draw of the run's generator, so that what follows is the same with any number of workers."""
    loader.generator.manual_seed(torch.empty((), dtype=torch.int64).random_().item())


def random_states() -> dict[str, torch.Tensor]:
    """The states of torch's generators, by name, as tensors for a checkpoint."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(tensors: dict[str, torch.Tensor]) -> None:
    """Put torch's generators into the states that `random_states` gave."""
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
