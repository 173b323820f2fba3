"""What a large collection costs: images a second of one core, as a worker of `smart-iqa predict --engine ray` is one.

    python benchmarks/collection.py --json benchmarks/results/collection.json

JPEG files of 512x384 pixels go through `predict` with the model of the package; one thread decodes and one computes.
The backends take turns (A B A B). `images_per_cpu_s` counts the CPU time of all threads, which neighbours on a busy
machine disturb less than the time on the clock, `images_per_s`.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.common import require_writable, spread, write_result
from benchmarks.prediction import write_images
from iqa.data import Found
from iqa.errors import Parser, exit_on_user_error
from smart_iqa.exporting import kept_backend
from smart_iqa.prediction import network_scores, scored_rows
from smart_iqa.scorer import load_model
from smart_iqa.shipped import DEFAULT, checkpoint_file

SIZE = (512, 384)
IMAGES, TURNS = 48, 5


def measure(images: int = IMAGES, turns: int = TURNS) -> dict:
    """Images a second of each backend, of CPU time and of the clock."""
    torch.set_num_threads(1)
    scorer = load_model(device="cpu")
    computed = {
        "torch": network_scores(scorer),
        "onnxruntime": kept_backend(scorer, checkpoint_file(DEFAULT), threads=1).crop_scores,
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in computed}
    with tempfile.TemporaryDirectory() as folder:
        found = [Found(path) for path in write_images(Path(folder), [SIZE], images)]
        for turn in range(turns + 1):
            print(f"turn {turn} of {turns}", file=sys.stderr)
            for name, scores_of in computed.items():
                seconds = clocked(lambda scores_of=scores_of: list(scored_rows(scorer, found, scores_of, 1)))
                if turn:  # the first one warms up
                    taken[name].append(seconds)
    return {
        "kind": "collection",
        "date": datetime.date.today().isoformat(),
        "images": images,
        "size": SIZE,
        "threads": 1,
        "load_average": os.getloadavg()[1],
        "backends": {
            name: {
                "images_per_cpu_s": spread([images / cpu for cpu, _ in of]),
                "images_per_s": spread([images / clock for _, clock in of]),
            }
            for name, of in taken.items()
        },
    }


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU time, of all threads, and of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Images a second of one core, for the cost of a large collection.")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    parser.add_argument("--quick", action="store_true", help="a few images: shows that it runs, says nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line a backend, write everything."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    result = measure(2, 2) if arguments.quick else measure()
    write_result(arguments.json, {**result, "quick": arguments.quick})
    for name, of in result["backends"].items():
        print(f"{name:12} " + ", ".join(f"{unit} {of[unit]['median']:.2f}" for unit in of))


if __name__ == "__main__":
    exit_on_user_error(main)
