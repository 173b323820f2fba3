"""What the choice of test crops does to SRCC and to the time of a test.

    python benchmarks/test_modes.py --checkpoint results/agiqa3k/split_* --json test_modes.json

Every run is tested on the test part of its own database with each of `MODES`; images are decoded once, before. The
JSON holds SRCC, PLCC and seconds by mode and run, and by mode the mean over the runs of the difference in SRCC to 20
random crops, with a 95 % interval (Student's t over runs: splits of one database overlap, so it is somewhat narrow).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.common import require_writable, write_result
from data_loader import PixelCache, Preparation
from iqa.config import Config
from iqa.errors import Parser, exit_on_user_error
from smart_iqa.scorer import load_model, load_run_config, run_folder
from smart_iqa.testing import test_part, unseen_images

# Name -> settings; the first one is what the others are compared with.
MODES = {
    "random, 20 crops": {"test_mode": "random", "test_patch_num": 20},
    "random, 4 crops": {"test_mode": "random", "test_patch_num": 4},
    "grid, 4 crops": {"test_mode": "grid", "test_patch_num": 4},
    "center": {"test_mode": "center", "test_patch_num": 1},
    "full": {"test_mode": "full", "test_patch_num": 1},
}


def measure_run(run: Path) -> dict[str, dict]:
    """SRCC, PLCC and seconds of every mode on the run's test part."""
    found = {}
    database, table = unseen_images(load_model(run), run_folder(run), load_run_config(run).dataset, data_root=None)
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in MODES.items():
            scorer = load_model(run, **changes)
            cache = PixelCache(Path(folder), table, scorer.config)  # all modes fill and read the same file
            for path in table["path"]:
                cache.read(path)
            scorer.preparation = Preparation(scorer.model, scorer.config, cache)
            tested = test_part(scorer, database, table)
            found[name] = {key: tested.metrics[key] for key in ("n", "srcc", "plcc")}
            found[name]["seconds"] = tested.timings["seconds"]
            print(f"{run}: {name}: {found[name]}", file=sys.stderr)
    return found


def compared(runs: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """By mode: mean SRCC over runs, mean difference to the first mode and its interval, and relative time."""
    first, table = next(iter(MODES)), {}
    for name in MODES:
        srcc, base = (np.array([run[mode]["srcc"] for run in runs.values()]) for mode in (name, first))
        seconds, base_seconds = ([run[mode]["seconds"] for run in runs.values()] for mode in (name, first))
        table[name] = {
            "srcc": float(srcc.mean()),
            "difference": float((srcc - base).mean()),
            "interval": _interval(srcc - base) if name != first else None,
            "relative_time": float(np.median(np.divide(seconds, base_seconds))),
        }
    return table


def _interval(differences: np.ndarray) -> list[float] | None:
    if len(differences) < 2:
        return None
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    return [float(interval.low), float(interval.high)]


def described(config: Config) -> dict:
    """What of a run's settings bears on the comparison."""
    return {key: getattr(config, key) for key in ("dataset", "backbone", "fusion", "freeze_backbone", "patch_size")}


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Effect of test_mode on SRCC and time, on the test parts of finished runs.")
    parser.add_argument("--checkpoint", nargs="+", required=True, type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Test every run in every mode and write what came out."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    runs = {str(run): measure_run(run) for run in arguments.checkpoint}
    settings = described(load_run_config(arguments.checkpoint[0]))
    result = {"kind": "test_modes", "settings": settings, "modes": compared(runs), "runs": runs}
    write_result(arguments.json, result)
    for name, row in result["modes"].items():
        print(f"{name:18} SRCC {row['srcc']:.4f}  difference {row['difference']:+.4f}  time {row['relative_time']:.2f}")


if __name__ == "__main__":
    exit_on_user_error(main)
