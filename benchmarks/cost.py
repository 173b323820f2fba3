"""Time and memory as the number of images grows, and the memory of a run of KonIQ-10k's size.

    python benchmarks/cost.py --json cost.json

Less than 10 minutes on two cores. For 1,000, 10,000 and 100,000 images, each in a process of its own: *loading* (read
and check a table, reserve the cache, decode every image into it), *training* (an epoch of the solver from the
cache), *evaluation* (scores of all) and *statistics* (all that a results file says of the scores, with a bootstrap of
100). A stub stands for the network, and the images are small and hard links of a few: what is measured is everything
around the network. `slopes` is the exponent of growth between the last two sizes: 1 is linear, and a sort is 1.1 here.

`koniq_size` is a table of 10,073 images of 512x384 with its cache and the default two workers: Swin-nano trains two
short epochs, validates after each and scores some images of 20 crops, since further ones take the same memory again,
and statistics run over all; once with the default batch of 32, once with 16. Memory is the largest sum, over the
process and its workers, of anonymous and shared memory (`Pss_Anon` and `Pss_Shmem` of /proc/PID/smaps_rollup: pages
that several share are counted once), looked up every 20 ms; pages of mapped files are not counted.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.common import (
    against_target,
    made_up_pictures,
    print_targets,
    require_writable,
    seconds_of,
    write_result,
)
from data_loader import PixelCache, Preparation, test_loader, train_loader
from folders import Database, read_run_database
from HyperIQASolver_swin import HyperIQASolver
from iqa.config import Config
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.metrics import krcc, plcc, rmse, srcc, summarize
from iqa.runtime import make_accelerator, seed_everything
from models_swin import SmartIQA
from smart_iqa.scorer import Scorer

KONIQ = 10_073
MOST_MEMORY = 3e9  # bytes
MOST_SECONDS = 10  # for SRCC, PLCC, KRCC and RMSE of a million rows
STEEPEST = 1.2  # n log n between the last two sizes is 1.1; the rest is noise
RESAMPLES = 100
ORIGINALS = 50  # a file system allows some 65,000 links to a file
_SUM = re.compile(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `QUICK` only shows that everything runs."""

    images: tuple[int, ...] = (1_000, 10_000, 100_000)
    koniq: int = KONIQ
    koniq_side: int = 224
    koniq_batches: tuple[int, ...] = (32, 16)  # the default comes first: it has the target
    koniq_steps: int = 3
    koniq_scored: int = 4  # images, of 20 crops
    rows: int = 1_000_000


FULL = Sizes()
QUICK = Sizes(images=(60, 120), koniq=60, koniq_side=32, koniq_batches=(8,), koniq_steps=2, koniq_scored=2, rows=1_000)


class StubNetwork(nn.Module):
    """Stand in the network's place: weigh the mean colour."""

    backbone = SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)

    def __init__(self):
        super().__init__()
        self.weigh = nn.Linear(3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> scores (B,)."""
        return self.weigh(images.mean(dim=(2, 3)))[:, 0]

    def parameter_groups(self, lr: float, *rates: object) -> list[dict]:
        """One group."""
        return [{"name": "head", "params": list(self.parameters()), "lr": lr}]


class PeakMemory:
    """The largest memory of this process and its workers within a `with` block, in `bytes`."""

    def __enter__(self) -> PeakMemory:
        self.bytes, self._done = resident_bytes(), threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, resident_bytes())


def resident_bytes() -> int:
    """Anonymous and shared memory of this process and its children, without pages of mapped files.

    Raises:
        UserError: not on Linux.
    """
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        raise UserError("memory is read from /proc, which only Linux has: run this there")
    total = 0
    for pid in [str(os.getpid()), *children.read_text().split()]:
        try:
            total += 1024 * sum(map(int, _SUM.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())))
        except OSError:
            continue  # a worker that has just ended
    return total


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of a work and the peak of memory meanwhile."""
    with PeakMemory() as peak:
        seconds = seconds_of(work)
    return {"seconds": seconds, "peak_bytes": peak.bytes}


def linked_pictures(folder: Path, count: int, width: int, height: int) -> Path:
    """A table of so many images, hard links of a few; its path."""
    originals = made_up_pictures(folder, min(count, ORIGINALS), width, height)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"image": [f"image_{row:06d}.jpg" for row in range(count)], "mos": rng.uniform(0, 100, count)})
    for row, name in enumerate(table["image"]):
        os.link(originals["path"][row % len(originals)], folder / name)
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def settings(table: Path, **changes) -> Config:
    """A run's settings on a table of linked images."""
    common = {"dataset": "csv", "data_path": str(table), "resize": "none", "pretrained": False, "device": "cpu"}
    return Config(**common, train_patch_num=1, **changes)


def load(config: Config, folder: Path, decode: int | None = None) -> tuple[Database, PixelCache]:
    """Read and check the table, reserve the cache, decode images (`decode` of them, or all) into it."""
    database = read_run_database(config)
    cache = PixelCache(folder / "cache", database.table, config)
    for path in database.table["path"][:decode]:
        cache.read(path)
    return database, cache


def make_solver(
    preparation: Preparation, table: pd.DataFrame, folder: Path, accelerator: Accelerator
) -> HyperIQASolver:
    """The solver of a run that trains on a table and validates on it."""
    dataset, config = preparation.dataset(table, training=True), preparation.config
    loaders = train_loader(dataset, config), test_loader(dataset, config)
    return HyperIQASolver(preparation.network, config, *loaders, preparation.to_images, folder, accelerator, made={})


def made_up_scores(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and mos (n,) of a correlation about 0.9."""
    rng = np.random.default_rng(0)
    mos = rng.uniform(0, 100, count)
    return mos + rng.normal(0, 15, count), mos


def measure_size(images: int) -> dict[str, dict]:
    """Seconds and memory of each part of the work on so many images; run in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = temporary  # checks of former runs would spare this one's
        config = settings(
            linked_pictures(folder, images, 40, 36), patch_size=32, num_workers=0, batch_size=64, test_patch_num=1
        )
        kept: list = []
        found = {"loading": measured(lambda: kept.extend(load(config, folder)))}
        database, cache = kept
        preparation = Preparation(StubNetwork(), config, cache)
        solver = make_solver(preparation, database.table, folder, make_accelerator("cpu"))
        found["training"] = measured(lambda: solver.train_one_epoch(1))
        found["evaluation"] = measured(lambda: solver.evaluate(solver.val_loader))
        scores, mos = made_up_scores(images)
        found["statistics"] = measured(lambda: summarize(scores, mos, resamples=RESAMPLES))
    return found


def measure_koniq_size(sizes: Sizes, batch: int) -> dict:
    """Peak memory of a run of KonIQ-10k's size with Swin-nano; run in a process of its own."""
    multiprocessing.set_start_method(None, force=True)  # as a run starts its workers, not as this process was started
    trained = batch * sizes.koniq_steps
    with tempfile.TemporaryDirectory() as temporary, PeakMemory() as peak:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = temporary
        config = settings(
            linked_pictures(folder, sizes.koniq, 512, 384), patch_size=sizes.koniq_side, batch_size=batch,
            backbone="nano", fusion="channel",
        )  # fmt: skip
        database, cache = load(config, folder, decode=trained)
        seed_everything(0)
        preparation = Preparation(SmartIQA("nano", config.fusion), config, cache)
        scorer = Scorer(preparation.network, config, make_accelerator("cpu"), preparation)
        solver = make_solver(preparation, database.table.head(trained), folder, scorer.accelerator)
        for epoch in (1, 2):  # workers that validate start when training has filled the memory once
            solver.train_one_epoch(epoch)
            solver.evaluate(solver.val_loader)
        scorer.score_table(database.table.head(sizes.koniq_scored).reset_index(drop=True))
        summarize(*made_up_scores(sizes.koniq), resamples=RESAMPLES)
    setting = {"images": sizes.koniq, "batch": batch, "workers": config.num_workers, "steps": sizes.koniq_steps}
    return setting | {"peak_bytes": peak.bytes}


def in_own_process(work: Callable[..., dict], *arguments: object) -> dict:
    """The result of `work(*arguments)`, computed in a fresh process."""
    # Not a pool, whose processes are daemons: the loader's workers would have to be their children.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(work, *arguments).result()


def growth(sizes: tuple[int, ...], costs: list[dict[str, dict]]) -> dict[str, float]:
    """Exponent of the growth of each part's seconds between the last two sizes."""
    step = math.log(sizes[-1] / sizes[-2])
    return {part: math.log(costs[-1][part]["seconds"] / costs[-2][part]["seconds"]) / step for part in costs[-1]}


def measure(sizes: Sizes) -> dict:
    """All measurements, and the numbers that have targets."""
    costs = []
    for images in sizes.images:
        print(f"measuring {images} images", file=sys.stderr)
        costs.append(in_own_process(measure_size, images))
    print("measuring a run of KonIQ's size", file=sys.stderr)
    koniq = [in_own_process(measure_koniq_size, sizes, batch) for batch in sizes.koniq_batches]
    scores, mos = made_up_scores(sizes.rows)
    seconds = {name.__name__: seconds_of(lambda name=name: name(scores, mos)) for name in (srcc, plcc, krcc, rmse)}
    slopes = growth(sizes.images, costs)
    targets = {f"slope_{part}": against_target(slope, below=STEEPEST) for part, slope in slopes.items()}
    targets["koniq_size_peak_bytes"] = against_target(koniq[0]["peak_bytes"], below=MOST_MEMORY)
    targets["metrics_seconds"] = against_target(sum(seconds.values()), below=MOST_SECONDS)
    return {
        "kind": "cost",
        "images": {str(n): cost for n, cost in zip(sizes.images, costs, strict=True)},
        "slopes": slopes,
        "koniq_size": koniq,
        "metrics_of_rows": {"rows": sizes.rows, "seconds": seconds},
        "sizes": dataclasses.asdict(sizes),
        "threads": torch.get_num_threads(),
        "targets": targets,
    }


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Time and memory as the number of images grows.")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, in seconds: shows that it runs, says nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the numbers beside their targets, write everything."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    resident_bytes()  # stops here where there is no /proc
    result = measure(QUICK if arguments.quick else FULL)
    write_result(arguments.json, {**result, "quick": arguments.quick})
    print_targets(result["targets"])


if __name__ == "__main__":
    exit_on_user_error(main)
