"""Speed of training and testing on a GPU, and the share of the device's own matrix rate that it reaches.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --json gpu.json --backbones tiny --batches 128 --no_compile    # a few minutes

Swin-Tiny, -Small and -Base with channel fusion, 224 px, in the precision that training takes by itself (bf16 where the
GPU has it), batches of 32 to 256, on made-up crops that lie on the device already: with fused attention and without,
and compiled. A training step is `to_images`, forward, loss, backward and the fused optimizer's step;
`network_images_per_s` is the same without `to_images`. `mfu` is the model's arithmetic (6 FLOPs a MAC and image: two
forward, four backward; MACs by `complexity.count_macs`) a second over the rate of a large bf16 product of matrices on
the same device. An *epoch* is KonIQ-10k's: 7,058 images of 20 crops; its *test* 2,015 of 20.

The *loop* is the real one, for the first batch size of each backbone: images of 1024x768, decoded once into a cache,
through `train_loader` and the solver's `train_one_epoch`, then `Scorer.score_table`. `overhead_share` is the part of
its time that is not network and optimizer. `deterministic_cost` is by how much `--deterministic` lengthens a step.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.common import made_up_pictures, require_writable, seconds_of, write_result
from data_loader import UNCHANGED, PixelCache, Preparation, test_loader, to_images, train_loader
from HyperIQASolver_swin import HyperIQASolver, make_optimizer
from iqa.config import Config
from iqa.costs import count_macs
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.runtime import (
    SAME_BITS,
    WORKSPACE,
    autocast,
    compile_network,
    deterministic_kernels,
    fuse_attention,
    make_accelerator,
    precision_of,
    seed_everything,
)
from models_swin import SmartIQA
from smart_iqa.scorer import Scorer

BACKBONES, BATCHES = ("tiny", "small", "base"), (32, 64, 128, 256)
WAYS = ({"fused_attn": "on"}, {"fused_attn": "off"}, {"fused_attn": "on", "compiled": True})
SIDE = 224
EPOCH_CROPS, TEST_CROPS = 7058 * 20, 2015 * 20
WARM_UP, STEPS = 3, 10
MATRIX = 8192
PICTURES, LOOP_STEPS = 400, 60


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
    backbone: str,
    batch: int,
    device: torch.device,
    fused_attn: str = "on",
    compiled: bool = False,
    side: int = SIDE,
    steps: int = STEPS,
) -> dict:
    """Images/s of training and of testing one variant.

    Args:
        backbone: a key of `models_swin.BACKBONES`.
        batch: images a step.
        device: where.
        fused_attn: `on` or `off`.
        compiled: by `torch.compile`.
        side: of the crops.
        steps: that are timed.
    """
    seed_everything(0)
    accelerator = make_accelerator(device.type, "auto")
    model = SmartIQA(backbone, "channel").to(device)
    fuse_attention(model, fused_attn, accelerator)
    config = Config()
    optimizer = make_optimizer(model.parameter_groups(config.lr, config.lr_ratio), config)
    mean, std = model.backbone.mean, model.backbone.std
    if compiled:
        compile_network(model)
    crops = torch.randint(0, 256, (batch, 1, 3, side, side), dtype=torch.uint8, device=device)
    augment = torch.tensor(UNCHANGED, device=device).expand(batch, 1, -1)
    mos = torch.rand(batch, device=device) * 100
    ready = to_images(crops, augment, mean, std)

    def forward(images: torch.Tensor) -> torch.Tensor:
        with autocast(accelerator):
            return model(images).float()

    def train(images: Callable[[], torch.Tensor]) -> None:
        (forward(images()) - mos).abs().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def prepared() -> torch.Tensor:
        return to_images(crops, augment, mean, std)

    found = {
        "train_images_per_s": batch / median_seconds(lambda: train(prepared), device, steps),
        "network_images_per_s": batch / median_seconds(lambda: train(lambda: ready), device, steps),
    }
    model.eval()
    with torch.inference_mode():
        return found | {"test_images_per_s": batch / median_seconds(lambda: forward(prepared()), device, steps)}


def measure_variant(backbone: str, batch: int, device: torch.device, rate: float, **how) -> dict:
    """A row of the result: speed, share of the matrix rate, and the time of an epoch and of its test."""
    row = {"backbone": backbone, "batch": batch, "compiled": how.get("compiled", False)}
    row |= {"fused_attn": how.get("fused_attn", "on")}
    try:
        speed = measure_speed(backbone, batch, device, **how)
    except torch.OutOfMemoryError:
        return row | {"reason": "out of memory"}
    macs = count_macs(SmartIQA(backbone, "channel"), how.get("side", SIDE))
    return row | speed | {
        "macs": macs,
        "mfu": 6 * macs * speed["train_images_per_s"] / rate,
        "epoch_seconds": EPOCH_CROPS / speed["train_images_per_s"],
        "test_seconds": TEST_CROPS / speed["test_images_per_s"],
    }  # fmt: skip


def measure_deterministic(backbone: str, batch: int, device: torch.device, plain: float, **how) -> dict:
    """By how much a step is longer with `--deterministic` than at `plain` images/s."""
    with deterministic_kernels(True):
        speed = measure_speed(backbone, batch, device, **how)
    return {"deterministic_cost": plain / speed["train_images_per_s"] - 1}


def measure_loop(
    backbone: str,
    batch: int,
    device: torch.device,
    folder: Path,
    pictures: int = PICTURES,
    steps: int = LOOP_STEPS,
    **settings: object,
) -> dict:
    """Crops/s of `train_one_epoch` and of `score_table`, from images on disk that are decoded already.

    Args:
        backbone: a key of `models_swin.BACKBONES`.
        batch: crops a step.
        device: where.
        folder: an empty one, for images and cache.
        pictures: made up, of 1024x768.
        steps: of an epoch.
        settings: of the run, beside these.
    """
    table = made_up_pictures(folder, pictures, 1024, 768)
    crops = max(1, steps * batch // pictures)
    config = Config(
        backbone=backbone, fusion="channel", device=device.type, batch_size=batch, train_patch_num=crops,
        num_workers=min(8, os.cpu_count() or 1), tracker="tensorboard", log_every=0, **settings,
    )  # fmt: skip
    seed_everything(0)
    accelerator = make_accelerator(config.device, config.precision)
    model = SmartIQA(backbone, "channel").to(accelerator.device)
    preparation = Preparation(model, config, PixelCache(folder, table, config))
    dataset = preparation.dataset(table)
    solver = HyperIQASolver(
        model=model,
        config=config,
        train_loader=train_loader(dataset, config),
        val_loader=test_loader(dataset, config),
        to_images=preparation.to_images,
        run_dir=folder,
        accelerator=accelerator,
        made={},
    )
    solver.train_one_epoch(1)  # decodes, and starts the workers
    trained = solver.train_one_epoch(2)["crops_per_s"]
    scorer = Scorer(model, dataclasses.replace(config, batch_size=batch), accelerator, preparation)
    scorer.score_table(table)
    tested = len(table) * config.test_crops / seconds_of(lambda: scorer.score_table(table))
    return {"loop_images_per_s": trained, "loop_test_images_per_s": tested}


def measure(device: torch.device, backbones: Sequence[str], batches: Sequence[int], ways: Sequence[dict]) -> dict:
    """All variants, and for each backbone the loop and what determinism costs."""
    rate, rows = matrix_rate(device), []
    for backbone in backbones:
        for batch in batches:
            for how in ways:
                rows.append(measure_variant(backbone, batch, device, rate, **how))
                if batch == batches[0] and how == ways[0] and "reason" not in rows[-1]:
                    rows[-1] |= _loop_of(rows[-1], device)
                print(rows[-1], flush=True)
    name = torch.cuda.get_device_name(device)
    precision = precision_of(make_accelerator(device.type, "auto"))
    return {"kind": "gpu", "device": name, "precision": precision, "matrix_flops_per_s": rate, "variants": rows}


def _loop_of(row: dict, device: torch.device) -> dict:
    """What the loop adds to a row."""
    place = row["backbone"], row["batch"], device
    with tempfile.TemporaryDirectory() as folder:
        loop = measure_loop(*place, Path(folder))
    loop |= {"overhead_share": 1 - loop["loop_images_per_s"] / row["network_images_per_s"]}
    return loop | measure_deterministic(*place, row["train_images_per_s"])


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Speed of training and testing on a GPU.")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help=f"[{' '.join(BACKBONES)}]")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help=f"[{' '.join(map(str, BATCHES))}]")
    parser.add_argument("--no_compile", action="store_true", help="leave the compiled variants out: they take minutes")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure on the first GPU."""
    arguments = make_parser().parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("no CUDA device here: run this on a machine with one; throughput.py measures a CPU")
    require_writable(arguments.json)
    os.environ.setdefault(WORKSPACE, SAME_BITS[0])  # torch looks once in a process whether cuBLAS is deterministic
    ways = [how for how in WAYS if not (arguments.no_compile and how.get("compiled"))]
    write_result(arguments.json, measure(torch.device("cuda"), arguments.backbones, arguments.batches, ways))


if __name__ == "__main__":
    exit_on_user_error(main)
