"""The machine a run lives on: seed, device and compiler."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from iqa.config import Config
from iqa.errors import UserError
from iqa.system import computes_on_cuda, keep_freed_memory, limit_threads

# How long processes wait for one of them: the first one checks and hashes a whole database while the others wait.
WAIT = datetime.timedelta(hours=12)

# The variable that gives cuBLAS its workspace, and the values with which its products are the same bits each time.
WORKSPACE, SAME_BITS = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")

# Crops that a test takes where training takes one. By their tensors (fp32, 224 px, `meta` device) it has room for 5.9
# of Swin-nano and 7.5 of Swin-tiny, and what does not fit is halved.
TESTED_FOR_ONE = 4


def make_accelerator(device: str = "auto", precision: str = "fp32", accumulate: int = 1) -> Accelerator:
    """Accelerate's handle on devices and processes.

    Args:
        device: `auto` (the best there is), `cpu`, `cuda` or `mps`.
        precision: `fp32`, or `bf16` or `fp16` for the backbone (autocast), or `auto` (see `resolve_precision`). On a
            GPU what stays fp32 is multiplied in TF32, unless `fp32` itself is asked for.
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
    in_tf32 = computes_on_cuda(device) and precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = in_tf32
    precision = resolve_precision(precision, device)
    for kind in (PartialState, AcceleratorState, GradientState):  # else the first one's settings are a process's only
        kind._shared_state = {}
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision={"fp32": "no"}.get(precision, precision),
        gradient_accumulation_steps=accumulate,
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
    )


def resolve_precision(precision: str, device: str) -> str:
    """What `auto` means on a device: `bf16` on a GPU that computes in it, else `fp32`; another one is as it is."""
    if precision != "auto":
        return precision
    return "bf16" if computes_on_cuda(device) and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def precision_of(accelerator: Accelerator) -> str:
    """The precision that an accelerator's backbone computes in: `fp32`, `bf16` or `fp16`."""
    return {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)


def fuse_attention(network: nn.Module, choice: str, accelerator: Accelerator) -> None:
    """Let a network's attention be torch's `scaled_dot_product_attention`, or the plain products and softmax.

    Args:
        network: any whose attention has timm's attribute `fused_attn`; both ways give the same up to rounding.
        choice: `on`, `off`, or `auto`: as the network was built, but plain in bf16 on a CPU, where a step of
            Swin-nano was 1.66 times as fast so (an Intel with AMX; in fp32 1.07 times).
        accelerator: device and precision.
    """
    plain_is_faster = accelerator.device.type == "cpu" and precision_of(accelerator) == "bf16"
    if choice == "auto" and not plain_is_faster:
        return
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = choice == "on"


def crops_at_once(config: Config) -> int:
    """How many crops a test scores at once: as set, or on a GPU as many as a training step's memory holds."""
    return config.test_batch_size or config.batch_size * (TESTED_FOR_ONE if computes_on_cuda(config.device) else 1)


@contextlib.contextmanager
def deterministic_kernels(asked: bool) -> Iterator[None]:
    """Compute, while it lasts and if it is `asked`, the same bits each time on a GPU too, at the price of some speed.

    Enter it before the GPU multiplies anything: cuBLAS reads its workspace once. A CPU needs none of it.

    Raises:
        UserError: the environment gives cuBLAS another workspace, or a layer has no such kernel on this device.
    """
    if not asked:
        yield
        return
    given, benchmark = os.environ.get(WORKSPACE), torch.backends.cudnn.benchmark
    if given not in (None, *SAME_BITS):
        raise UserError(f"--deterministic needs {WORKSPACE} to be {' or '.join(SAME_BITS)}, got {given!r}: unset it")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ[WORKSPACE] = given or SAME_BITS[0]
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError(f"--deterministic: {error}; leave it out, or take another --backbone") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        if given is None:
            del os.environ[WORKSPACE]


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Take numbers below the smallest normal float (1.2e-38 in fp32) for 0 while it lasts.

    A CPU computes with them up to fifty times as slowly, and the gradients of saturated sigmoids are full of them.
    """
    before = (torch.full((), torch.finfo(torch.float32).tiny / 4) * 1.0).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


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


def compile_network(network: nn.Module, **options: Any) -> None:
    """Compile a network in place, once for batches of all sizes: torch.compile alone does it anew for the last one.

    Args:
        network: takes a batch, of which the first side may change.
        **options: of torch.compile.
    """
    compiled = torch.compile(network._call_impl, **options)

    def call(batch: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(batch, 0)
        return compiled(batch)

    network._compiled_call_impl = call  # where `nn.Module.compile` puts it: copies of the network go without


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
