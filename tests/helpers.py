"""What several test files use: a command run in this process, its small settings, and runs without training."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor
from trees import table

from iqa.checkpoint import save_checkpoint
from iqa.config import Config
from iqa.errors import UserError, exit_on_user_error
from models_swin import Backbone, SmartIQA
from smart_iqa.commands import COMMANDS
from train_swin import architecture_of

ROOT = Path(__file__).resolve().parent.parent


TINY = "test_convnext.r160_in1k"  # of timm: what does not need Swin takes a third of the time with it
SMALL = (
    f"--backbone {TINY} --no_pretrained --patch_size 32 --resize none --epochs 2 --train_patch_num 1 "
    "--test_patch_num 2 --num_workers 0 --device cpu --batch_size 16 --lr 1e-4 --no_spaq"
).split()


def command(script: str, *arguments: object) -> int:
    """Run a command's main in this process; its exit code."""
    module = importlib.import_module(COMMANDS.get(script, (script,))[0])
    before, sys.argv = sys.argv, [f"smart-iqa {script}", *map(str, arguments)]
    try:
        exit_on_user_error(module.main)
        return 0
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = before


def long(*case: object, name: str | None = None):
    """A case of a parametrized test that the fast suite leaves out: others walk the same path."""
    return pytest.param(*case, marks=pytest.mark.long, id=name)


def few(**more: object) -> settings:
    """Five examples instead of twenty, for a property of which an example takes long; where slow tests run, all."""
    count = settings.default.max_examples
    return settings(max_examples=count if count > 20 else 5, **more)


class Ended(NamedTuple):
    """What processes have said before they ended, and the largest of their exit codes."""

    code: int
    out: str
    err: str


def in_forks(folder: Path, *works: Callable[[], int]) -> Ended:
    """Run functions at once, each in a process forked from this one: starting anew is mostly imports.

    A function's result is the exit code of its process.
    """
    children = [
        multiprocessing.get_context("fork").Process(target=_in_fork, args=(folder / str(number), work))
        for number, work in enumerate(works)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    for child in children:
        child.kill()
        child.join()
    said = ["".join(Path(f"{folder / str(n)}.{end}").read_text() for n in range(len(works))) for end in ("out", "err")]
    return Ended(max(abs(child.exitcode or 0) for child in children), *said)


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Let processes that would start anew fork from this one."""
    with mock.patch("multiprocessing.get_context", return_value=multiprocessing.get_context("fork")):
        yield


def _in_fork(said: Path, work: Callable[[], int]) -> None:
    warnings.simplefilter("default")  # as in a process of its own
    sys.stdout, sys.stderr = (Path(f"{said}.{end}").open("w") for end in ("out", "err"))  # noqa: SIM115 (until it ends)
    sys.exit(work())


def halved_denormal() -> float:
    """Half of a number that is a denormal one in fp32 already; many, so that every thread computes some."""
    return (torch.full((1 << 18,), 2.0**-130) * 0.5).amax().item()


def refusal(call: Callable[..., object], *arguments: object) -> str | None:
    """What a call says that ends in a UserError, or None."""
    try:
        call(*arguments)
    except UserError as error:
        return str(error)
    return None


def make_run(folder: Path, fusion: str, backbone: str = TINY, images: int = 12, **settings: object) -> Path:
    """The folder of an untrained run on a table of images (40x36), all in its test part."""
    rows = [
        {"image": f"{i}.png", "mos": 5 + 7 * i, "content": f"c{i // 2}", "split": "test", "step": str(10 * (i % 3))}
        for i in range(images)
    ]
    data = table(folder / "data" / "table.csv", rows, size=(40, 36))
    common = {"patch_size": 32, "resize": "none", "num_workers": 0, "batch_size": 16, "pretrained": False}
    config = Config(dataset="csv", data_path=str(data), backbone=backbone, fusion=fusion, **common, **settings)
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    architecture = architecture_of(config)
    save_checkpoint(run / "best.safetensors", SmartIQA(**architecture), {"architecture": architecture})
    return run


def published_shapes(backbone: str, fusion: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published state dict; the backbone's own are timm's (for ResNet torchvision's)."""
    with torch.device("meta"):
        features = Backbone(backbone)
    trunk, body = ("res.", "res.") if backbone == "resnet50" else ("swin.", "swin.backbone.")
    shapes = {body + name: tuple(tensor.shape) for name, tensor in features.body.state_dict().items()}
    channels = features.channels
    for layer, (width, flat) in enumerate(zip((16, 32, 64), (1024, 512, 256), strict=True), start=1):
        shapes[f"{trunk}lda{layer}_pool.0.weight"] = (width, channels[layer - 1], 1, 1)
        shapes |= dense(f"{trunk}lda{layer}_fc", 16, flat)
    shapes |= dense(f"{trunk}lda4_fc", 176, channels[3])
    if fusion == "scale":
        shapes |= dense("multiscale_attention.attention_net.0", 256, channels[3])
        shapes |= dense("multiscale_attention.attention_net.3", 4, 256)
    widths = [channels[3] if fusion == "single" else sum(channels), 512, 256, 112]
    if backbone == "resnet50":
        widths = [2048, 1024, 512, 112]
    for i in range(3):
        shapes |= dense(f"conv1.{2 * i}", widths[i + 1], widths[i], 1, 1)
    for layer, maps in enumerate((512, 128, 32, 8), start=1):
        shapes |= dense(f"fc{layer}w_conv", maps, 112, 3, 3)
    for layer, size in enumerate((112, 56, 28, 14, 1), start=1):
        shapes |= dense(f"fc{layer}b_fc", size, 112)
    return shapes | dense("fc5w_fc", 14, 112)


def dense(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """The recipe by which the published code was filled too: values from the name alone."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype("float32")
    if len(shape) >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        z = 1 + 0.05 * z
    else:
        z = 0.05 * z
    return torch.from_numpy(np.asarray(z, dtype="float32"))


TORCH_FAMILY = {"torch", "torchvision", "timm", "accelerate"}


def empty_checkpoint(backbone: str = "tiny", fusion: str = "concat") -> dict[str, Tensor]:
    """A published checkpoint without storage: names and shapes are all that recognising needs."""
    return {name: torch.empty(shape, device="meta") for name, shape in published_shapes(backbone, fusion).items()}
