"""Make one file of a finished run, which scores without the run's folder.

    smart-iqa pack results/default_model --output default.safetensors

The file holds the weights in half precision, the settings, an interval for the scores and the ends of the quality
levels. Half the width of the interval is the 90 % quantile of the distance between score and mos on the validation
images (split conformal prediction: Vovk et al., "Algorithmic Learning in a Random World", 2005); how often it holds the
mos of test images, whose contents were in neither part, is printed and stored.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iqa.errors import Parser, UserError
from iqa.system import start_logging

COVERAGE = 0.9
PLACES = ("data_root", "data_path", "cache_dir", "split_file", "photos", "init_from")  # of the machine it was made on
ANYWHERE = {"data_paths": [], "device": "auto", "results_dir": "results"}


def half_width(scores: np.ndarray, mos: np.ndarray, coverage: float = COVERAGE) -> float:
    """The distance from its score within which a further image's mos lies with probability `coverage`.

    Args:
        scores: of images that were not learned from (n,).
        mos: of the same (n,).
        coverage: between 0 and 1.

    >>> half_width(np.zeros(9), np.arange(1.0, 10.0))
    9.0
    """
    distances = np.sort(np.abs(scores - mos))
    return float(distances[min(math.ceil((len(distances) + 1) * coverage), len(distances)) - 1])


def pack(run: str | Path, output: str | Path, data_root: str | None = None, **changes) -> dict:
    """Write a run's model as one file.

    Args:
        run: folder of a finished run.
        output: a .safetensors file.
        data_root: holds a folder per database.
        **changes: settings to replace, for example `test_mode="full"`.

    Returns:
        The record that the file carries.

    Raises:
        UserError: no finished run, or its database is not there.
    """
    from folders import read_run_database
    from iqa.checkpoint import read_checkpoint, save_checkpoint
    from iqa.data import read_split
    from iqa.metrics import srcc
    from iqa.results import read_results
    from smart_iqa.scorer import load_model
    from smart_iqa.training_data import part_table

    run, output = Path(run), Path(output)
    if not output.parent.is_dir():
        raise UserError(f"--output: no folder {output.parent}")
    scorer = load_model(run, **changes)
    scorer.model.half().float()  # the interval is of the weights that are stored
    database = read_run_database(scorer.config, data_root)
    split = read_split(run / "split.json", database)
    train, val, test = (part_table(database, split, part) for part in ("train", "val", "test"))
    width = half_width(scorer.score_table(val), val["mos"].to_numpy())
    scores, mos = scorer.score_table(test), test["mos"].to_numpy()
    made = dict(read_checkpoint(run / "best.safetensors")[1]["made"])
    made["weights"] = made["weights"].rpartition("/")[2]  # a run that it started from has its name, not its place
    made["config"] = dataclasses.asdict(scorer.config) | dict.fromkeys(PLACES) | ANYWHERE
    made["meaning"] = {
        "half_width": round(width, 2),
        "coverage": COVERAGE,
        "images": len(val),
        "level_ends": [round(end, 2) for end in np.quantile(train["mos"], (0.2, 0.4, 0.6, 0.8))],
    }
    made["measured"] = {
        "images": len(test),
        "contents": int(test["content"].nunique()),
        "srcc": round(srcc(scores, mos), 4),
        "coverage": round(float(np.mean(np.abs(scores - mos) <= width)), 4),
        "command": read_results(run)["provenance"].get("command"),
    }
    save_checkpoint(output, scorer.model.half(), made)
    return made


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Make one file of a finished run, which scores without the run's folder.")
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--output", required=True, metavar="FILE.safetensors", help="what to write")
    parser.add_argument("--data_root", help="holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    parser.add_argument("--test_mode", choices=("random", "center", "grid", "full"), help="instead of the run's")
    parser.add_argument("--resize", help="instead of the run's")
    parser.add_argument("--patch_size", type=int, help="instead of the run's; smaller images are enlarged to it")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Pack the run that the command line names."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    changes = {key: getattr(arguments, key) for key in ("test_mode", "resize", "patch_size")}
    given = {key: value for key, value in changes.items() if value is not None}
    made = pack(arguments.run, arguments.output, arguments.data_root, **given)
    print(json.dumps(made["meaning"] | {"test": made["measured"]}, indent=1))
