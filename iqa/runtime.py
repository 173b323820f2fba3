"""The machine a run lives on: seed, device, logging, and the record of what made a result."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from iqa.errors import UserError
from iqa.memory import keep_freed_memory

RECORDED_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "pandas", "accelerate")


def make_accelerator(device: str = "auto", precision: str = "fp32", accumulate: int = 1) -> Accelerator:
    """Accelerate's handle on devices and processes.

    Args:
        device: `auto` (the best there is), `cpu`, `cuda` or `mps`.
        precision: `fp32`, `bf16` or `fp16` (autocast).
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
    mixed = {"fp32": "no"}.get(precision, precision)
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed, gradient_accumulation_steps=accumulate)


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


def is_first_process() -> bool:
    """Whether this is the one that prints and writes, of the processes that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def start_logging() -> None:
    """Log lines to stderr as they are, for a script's user; of several processes the first one speaks."""
    logging.basicConfig(
        level=logging.INFO if is_first_process() else logging.ERROR, format="%(message)s", stream=sys.stderr
    )
    for chatty in ("httpx", "httpx2", "huggingface_hub", "PIL", "matplotlib", "fontTools", "timm"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def provenance() -> dict:
    """What made a result: command, versions, git commit and machine."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
        },
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "processor": _processor(),
            "cores": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _git(*arguments: str) -> str | None:
    """Output of a git command in this project's folder; None outside a repository."""
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
