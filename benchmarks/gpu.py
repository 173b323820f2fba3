"""Speed of training and testing on a GPU, and the share of the device's own matrix rate that it reaches.

    python benchmarks/gpu.py --json gpu.json

Swin-Tiny, -Small and -Base with channel fusion, 224 px, bf16, batches of 32 to 256, eager and compiled, on made-up
crops that lie on the device already. A training step is `to_images`, forward, loss, backward and the fused optimizer's
step. `mfu` is the model's arithmetic (6 FLOPs a MAC and image: two forward, four backward; MACs by
`complexity.count_macs`) a second over the rate of a large bf16 product of matrices on the same device. An *epoch* is
KonIQ-10k's: 7,058 images of 20 crops; its *test* 2,015 of 20.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.common import require_writable, seconds_of, write_result
from data_loader import UNCHANGED, to_images
from HyperIQASolver_swin import make_optimizer
from iqa.config import Config
from iqa.costs import count_macs
from iqa.errors import Parser, UserError, exit_on_user_error
from models_swin import SmartIQA

BACKBONES, BATCHES = ("tiny", "small", "base"), (32, 64, 128, 256)
SIDE = 224
EPOCH_CROPS, TEST_CROPS = 7058 * 20, 2015 * 20
WARM_UP, STEPS = 3, 10
MATRIX = 8192


def median_seconds(work: Callable[[], object], device: torch.device, steps: int) -> float:
    """Median time of a call, with what it left to the device; after warm-up."""

    def finished() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return statistics.median([seconds_of(finished) for _ in range(WARM_UP + steps)][WARM_UP:])


def matrix_rate(device: torch.device, size: int = MATRIX, steps: int = STEPS) -> float:
    """FLOPs a second of a bf16 product of two square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, steps)


def measure_speed(
    backbone: str, batch: int, compiled: bool, device: torch.device, side: int = SIDE, steps: int = STEPS
) -> dict:
    """Images/s of training and of testing one variant.

    Args:
        backbone: a key of `models_swin.BACKBONES`.
        batch: images a step.
        compiled: by `torch.compile`.
        device: where.
        side: of the crops.
        steps: that are timed.
    """
    torch.manual_seed(0)
    model = SmartIQA(backbone, "channel").to(device)
    config = Config()
    optimizer = make_optimizer(model.parameter_groups(config.lr, config.lr_ratio), config)
    mean, std = model.backbone.mean, model.backbone.std
    if compiled:
        model.compile()
    crops = torch.randint(0, 256, (batch, 1, 3, side, side), dtype=torch.uint8, device=device)
    augment = torch.tensor(UNCHANGED, device=device).expand(batch, 1, -1)
    mos = torch.rand(batch, device=device) * 100

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model(to_images(crops, augment, mean, std)).float()

    def train() -> None:
        (forward() - mos).abs().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    trained = batch / median_seconds(train, device, steps)
    model.eval()
    with torch.inference_mode():
        tested = batch / median_seconds(forward, device, steps)
    return {"train_images_per_s": trained, "test_images_per_s": tested}


def measure_variant(backbone: str, batch: int, compiled: bool, device: torch.device, rate: float, **sizes) -> dict:
    """A row of the result: speed, share of the matrix rate, and the time of an epoch and of its test."""
    row = {"backbone": backbone, "batch": batch, "compiled": compiled}
    try:
        speed = measure_speed(backbone, batch, compiled, device, **sizes)
    except torch.OutOfMemoryError:
        return row | {"reason": "out of memory"}
    macs = count_macs(SmartIQA(backbone, "channel"), sizes.get("side", SIDE))
    return row | speed | {
        "macs": macs,
        "mfu": 6 * macs * speed["train_images_per_s"] / rate,
        "epoch_seconds": EPOCH_CROPS / speed["train_images_per_s"],
        "test_seconds": TEST_CROPS / speed["test_images_per_s"],
    }  # fmt: skip


def measure(device: torch.device, backbones: Sequence[str], batches: Sequence[int]) -> dict:
    """All variants, eager and compiled."""
    rate, rows = matrix_rate(device), []
    for backbone in backbones:
        for batch in batches:
            for compiled in (False, True):
                rows.append(measure_variant(backbone, batch, compiled, device, rate))
                print(rows[-1], flush=True)
    name = torch.cuda.get_device_name(device)
    return {"kind": "gpu", "device": name, "precision": "bf16", "matrix_flops_per_s": rate, "variants": rows}


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Speed of training and testing on a GPU.")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help=f"[{' '.join(BACKBONES)}]")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help=f"[{' '.join(map(str, BATCHES))}]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure on the first GPU."""
    arguments = make_parser().parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("no CUDA device here: run this on a machine with one; throughput.py measures a CPU")
    require_writable(arguments.json)
    write_result(arguments.json, measure(torch.device("cuda"), arguments.backbones, arguments.batches))


if __name__ == "__main__":
    exit_on_user_error(main)
