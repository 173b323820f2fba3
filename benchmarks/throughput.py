"""How fast the loader, training, evaluation and head training are, beside the least that they could cost.

    python benchmarks/throughput.py --json throughput.json

Less than 10 minutes on two cores. Everything runs in this one process on made-up images and untrained networks
(weights change no speed), in fp32, with channel fusion. What is compared takes turns (A B A B); a ratio is the median
over the turns. The JSON holds every time that was taken, and

- `loader_crops_per_s`: uint8 crops of 224 a second out of `train_loader` in batches of 64, without workers, from
  cached 384x512 images, on one core;
- `loader_jitter_cost`: (ready with colour jitter - ready without) / ready without, where *ready* is the time to
  fetch an epoch of batches and to make them images by `to_images`, on one core;
- `train_ratio_*`: images/s of `HyperIQASolver.train_one_epoch` (loader, forward, loss, backward, optimizer, progress)
  over images/s of forward and backward of the same timm backbone alone, with the sum of its stages' means as loss and
  the same images each time; batch 16, all cores;
- `overhead_share_*`: share of that epoch's time that is spent outside the network's forward and backward and the
  optimizer's step; `overhead_share` is Swin-nano's, the hardest of the three since its step is the shortest;
- `eval_batch_gain_*`: crops/s of `Scorer.score_table`, whose batches hold crops of several images, over one crop
  at a time, the same crops, from cached images; `eval_batch_gain` is lite0's, the backbone of the CPU settings in
  `configs/`;
- `frozen_epoch_gain_*`: time of an epoch that trains the whole network over the time of one that trains the head on
  cached features of the frozen backbone, for equally many crops; batch 16;
- with `--compile`, which takes some minutes more and a C++ compiler, `compile_gain_*`: images/s of training end to end
  compiled over eager.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.common import (
    against_target,
    interleaved,
    made_up_pictures,
    print_targets,
    ratios,
    require_writable,
    seconds_of,
    spread,
    write_result,
)
from data_loader import CropDataset, PixelCache, Preparation, test_loader, to_images, train_loader
from HyperIQASolver_swin import HyperIQASolver
from iqa.config import Config
from iqa.errors import Parser, exit_on_user_error
from iqa.runtime import compile_network, make_accelerator, require_compiler, seed_everything
from models_swin import SmartIQA
from smart_iqa.frozen_features import FrozenFeatures
from smart_iqa.scorer import Scorer

WIDTH, HEIGHT = 512, 384
LOADER_BATCH, BATCH = 64, 16
TRAINED = {"tiny": "tiny", "nano": "nano", "lite0": "tf_efficientnet_lite0"}
SCORED = COMPILED = ("nano", "lite0")
TARGETS = {
    "loader_crops_per_s": {"at_least": 10_000},
    "loader_jitter_cost": {"below": 0.20},
    "train_ratio_tiny": {"at_least": 0.93},
    "train_ratio_nano": {"at_least": 0.85},
    "overhead_share": {"below": 0.03},
    "eval_batch_gain": {"at_least": 1.3},
    "eval_batch_gain_nano": {"at_least": 1.3},
    "frozen_epoch_gain_lite0": {"at_least": 10},
    "frozen_epoch_gain_nano": {"at_least": 10},
    "frozen_epoch_gain_tiny": {"at_least": 25},
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `QUICK` only shows that everything runs."""

    side: int = 224  # of a crop
    pictures: int = 64  # of 384x512
    loader_crops: int = 10  # per image and epoch
    loader_turns: int = 41
    steps: int = 2  # of an epoch that trains a whole network
    head_crops: int = 4  # per image and epoch of head training, on the same images
    turns: dict[str, int] = dataclasses.field(default_factory=lambda: {"tiny": 5, "nano": 7, "lite0": 7})
    scored: int = 32  # images that are scored
    scored_crops: int = 4  # of each
    eval_turns: int = 9


FULL = Sizes()
QUICK = Sizes(
    side=32, pictures=16, loader_crops=2, loader_turns=2, steps=1, head_crops=1, eval_turns=2,
    turns=dict.fromkeys(TRAINED, 2), scored=3, scored_crops=2,
)  # fmt: skip


def settings(sizes: Sizes, **changes) -> Config:
    """A run's settings as they are measured."""
    common = {"resize": "none", "pretrained": False, "num_workers": 0, "device": "cpu", "fusion": "channel"}
    return Config(**common, patch_size=sizes.side, test_patch_num=sizes.scored_crops, **changes)


def measure_loader(pictures: pd.DataFrame, cache: PixelCache, sizes: Sizes) -> dict:
    """Crops out of the loader, and made ready for the network without and with colour jitter; on one core."""
    works: dict[str, Callable[[], None]] = {}
    for name, jitter in (("fetch", False), ("ready", False), ("ready_with_jitter", True)):
        config = settings(sizes, batch_size=LOADER_BATCH, train_patch_num=sizes.loader_crops, color_jitter=jitter)
        loader = train_loader(CropDataset(pictures, config, cache), config)
        works[name] = _draw(loader, jitter) if name != "fetch" else _fetch(loader)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = interleaved(works, sizes.loader_turns)
    torch.set_num_threads(threads)
    crops = len(pictures) * sizes.loader_crops
    return {
        "crops": crops,
        "batch": LOADER_BATCH,
        "threads": 1,
        "crops_per_s": {name: spread([crops / s for s in values]) for name, values in seconds.items()},
        "jitter_cost": spread([r - 1 for r in ratios(seconds["ready_with_jitter"], seconds["ready"])]),
    }


def _fetch(loader: DataLoader) -> Callable[[], None]:
    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def _draw(loader: DataLoader, jitter: bool) -> Callable[[], None]:
    def epoch() -> None:
        for batch in loader:
            to_images(batch.crops, batch.augment, mean=(0.5,) * 3, std=(0.5,) * 3, jitter=jitter)

    return epoch


class TimedEpoch:
    """An epoch of training that notes the share of its time outside network and optimizer."""

    def __init__(self, solver: HyperIQASolver):
        self.solver, self.inside, self.overhead_shares = solver, 0.0, []

    def __call__(self) -> None:
        """Train one epoch."""
        solver, self.inside = self.solver, 0.0
        timed = ((solver.model, "forward"), (solver.accelerator, "backward"), (solver.optimizer, "step"))
        with contextlib.ExitStack() as stack:
            for owner, name in timed:
                stack.enter_context(mock.patch.object(owner, name, self._timed(getattr(owner, name))))
            seconds = seconds_of(lambda: solver.train_one_epoch(1))
        self.overhead_shares.append(1 - self.inside / seconds)

    def _timed(self, function: Callable) -> Callable:
        def call(*args, **kwargs):
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self.inside += time.perf_counter() - started
            return result

        return call


def make_solver(
    pictures: pd.DataFrame, folder: Path, backbone: str, config: Config, cache: PixelCache | None
) -> HyperIQASolver:
    """The solver of a run on all images; without a cache of images, of head training on frozen features."""
    seed_everything(config.seed)
    model = SmartIQA(backbone, config.fusion, freeze_backbone=config.freeze_backbone)
    accelerator = make_accelerator(config.device)
    features = None if cache else FrozenFeatures(folder, pictures, config, model, accelerator)
    preparation = features or Preparation(model, config, cache)
    return HyperIQASolver(
        model=preparation.network,
        config=config,
        train_loader=train_loader(preparation.dataset(pictures, training=True), config),
        val_loader=test_loader(CropDataset(pictures, config), config),  # asked for, never read
        to_images=preparation.to_images,
        run_dir=folder,
        accelerator=accelerator,
        made={},
    )


def bare_epoch(model: SmartIQA, images: Tensor, steps: int) -> Callable[[], None]:
    """Forward and backward of the timm backbone alone, `steps` times on the same images (B, 3, H, W)."""
    body = model.backbone.body
    if model.backbone.is_convolutional:
        images = images.contiguous(memory_format=torch.channels_last)

    def epoch() -> None:
        for _ in range(steps):
            sum(stage.mean() for stage in body(images)).backward()
            body.zero_grad(set_to_none=True)

    return epoch


def measure_training(backbone: str, pictures: pd.DataFrame, cache: PixelCache, folder: Path, sizes: Sizes) -> dict:
    """Images/s of the bare backbone, of training end to end, and of head training on cached features."""
    pictures = pictures.head(sizes.steps * BATCH)
    name = TRAINED[backbone]
    whole = make_solver(pictures, folder, name, settings(sizes, batch_size=BATCH, train_patch_num=1), cache)
    frozen = settings(sizes, batch_size=BATCH, train_patch_num=sizes.head_crops, freeze_backbone=True)
    head = make_solver(pictures, folder, name, frozen, cache=None)
    epoch = TimedEpoch(whole)
    works = {
        "bare": bare_epoch(whole.model, torch.randn(BATCH, 3, sizes.side, sizes.side), sizes.steps),
        "whole": epoch,
        "head": lambda: head.train_one_epoch(1),
    }
    seconds = interleaved(works, sizes.turns[backbone])
    images = {"bare": sizes.steps * BATCH, "whole": len(pictures), "head": len(pictures) * sizes.head_crops}
    per_s = {work: [images[work] / s for s in values] for work, values in seconds.items()}
    return {
        "backbone": name,
        "batch": BATCH,
        "side": sizes.side,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in whole.model.parameters()),
        "images_per_s": {work: spread(values) for work, values in per_s.items()},
        "ratio": spread(ratios(per_s["whole"], per_s["bare"])),
        "overhead_share": spread(epoch.overhead_shares[1:]),  # the first epoch warmed up
        "frozen_epoch_gain": spread(ratios(per_s["head"], per_s["whole"])),
    }


def measure_compiled(backbone: str, pictures: pd.DataFrame, cache: PixelCache, folder: Path, sizes: Sizes) -> dict:
    """Images/s of training end to end, eager and compiled, and the seconds that the first compiled epoch takes."""
    pictures, name = pictures.head(sizes.steps * BATCH), TRAINED[backbone]
    config = settings(sizes, batch_size=BATCH, train_patch_num=1)
    eager, compiled = (make_solver(pictures, folder, name, config, cache) for _ in range(2))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")  # what was compiled before would be taken over
    compile_network(compiled.model)
    first = seconds_of(lambda: compiled.train_one_epoch(1))
    works = {"eager": lambda: eager.train_one_epoch(1), "compiled": lambda: compiled.train_one_epoch(1)}
    seconds = interleaved(works, sizes.turns[backbone])
    return {
        "backbone": name,
        "batch": BATCH,
        "first_epoch_seconds": first,
        "images_per_s": {work: spread([len(pictures) / s for s in values]) for work, values in seconds.items()},
        "gain": spread(ratios(seconds["eager"], seconds["compiled"])),
    }


@torch.inference_mode()
def score_one_crop_at_a_time(scorer: Scorer, table: pd.DataFrame) -> np.ndarray:
    """What `Scorer.score_table` computes, a crop at a time: scores (n,)."""
    dataset, scores = scorer.preparation.dataset(table), []
    for row in range(len(dataset)):
        item = dataset[row]
        images = (
            scorer.to_images(crop[None, None], augment[None, None])
            for crop, augment in zip(item.crops, item.augment, strict=True)
        )
        scores.append(torch.cat([scorer.model(image) for image in images]).mean().item())
    return np.array(scores)


def measure_evaluation(backbone: str, pictures: pd.DataFrame, cache: PixelCache, sizes: Sizes) -> dict:
    """Crops/s of scoring in batches and of scoring a crop at a time."""
    config = settings(sizes)
    model = SmartIQA(TRAINED[backbone], config.fusion)
    scorer = Scorer(model, config, make_accelerator("cpu"), Preparation(model, config, cache))
    pictures = pictures.head(sizes.scored)
    works = {
        "batched": lambda: scorer.score_table(pictures),
        "one_at_a_time": lambda: score_one_crop_at_a_time(scorer, pictures),
    }
    seconds = interleaved(works, sizes.eval_turns)
    crops = len(pictures) * sizes.scored_crops
    return {
        "backbone": TRAINED[backbone],
        "batch": config.batch_size,
        "crops": crops,
        "threads": torch.get_num_threads(),
        "crops_per_s": {work: spread([crops / s for s in values]) for work, values in seconds.items()},
        "gain": spread(ratios(seconds["one_at_a_time"], seconds["batched"])),
    }


def measure(sizes: Sizes, compiled: bool = False) -> dict:
    """All measurements, those of torch.compile if asked for, and the numbers that have targets."""
    make_accelerator("cpu")  # sets how memory is kept, as every run does: before the loader is measured
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = made_up_pictures(folder, sizes.pictures, WIDTH, HEIGHT)
        cache = PixelCache(folder, pictures, settings(sizes))
        for path in pictures["path"]:
            cache.read(path)
        loader = measure_loader(pictures, cache, sizes)
        evaluation, training = {}, {}
        for backbone in SCORED:
            print(f"measuring evaluation with {backbone}", file=sys.stderr)
            evaluation[backbone] = measure_evaluation(backbone, pictures, cache, sizes)
        for backbone in TRAINED:
            print(f"measuring training of {backbone}", file=sys.stderr)
            training[backbone] = measure_training(backbone, pictures, cache, folder, sizes)
        gains = {b: measure_compiled(b, pictures, cache, folder, sizes) for b in COMPILED if compiled}
    numbers = headline(loader, training, evaluation)
    numbers |= {f"compile_gain_{backbone}": measured["gain"]["median"] for backbone, measured in gains.items()}
    return {
        "kind": "throughput",
        **numbers,
        "targets": {name: against_target(numbers[name], **asked) for name, asked in TARGETS.items()},
        "measurements": {"loader": loader, "training": training, "evaluation": evaluation, "compiled": gains},
    }


def headline(loader: dict, training: dict[str, dict], evaluation: dict[str, dict]) -> dict[str, float]:
    """The medians by the names of this script's docstring."""
    numbers = {
        "loader_crops_per_s": loader["crops_per_s"]["fetch"]["median"],
        "loader_jitter_cost": loader["jitter_cost"]["median"],
        "overhead_share": training["nano"]["overhead_share"]["median"],
        "eval_batch_gain": evaluation["lite0"]["gain"]["median"],
    }
    for backbone, measured in training.items():
        numbers[f"train_ratio_{backbone}"] = measured["ratio"]["median"]
        numbers[f"overhead_share_{backbone}"] = measured["overhead_share"]["median"]
        numbers[f"frozen_epoch_gain_{backbone}"] = measured["frozen_epoch_gain"]["median"]
    return numbers | {f"eval_batch_gain_{backbone}": m["gain"]["median"] for backbone, m in evaluation.items()}


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Speed of loading, training, evaluation and head training, as ratios on one machine.")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, in seconds: shows that it runs, says nothing")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too (some minutes)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the numbers beside their targets, write everything."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    if arguments.compile:
        require_compiler()
    result = measure(QUICK if arguments.quick else FULL, arguments.compile)
    write_result(arguments.json, {**result, "quick": arguments.quick})
    print_targets(result["targets"])


if __name__ == "__main__":
    exit_on_user_error(main)
