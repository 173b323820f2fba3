"""Compare a model with its baselines over several splits, from committed results.

    python benchmarks/controls.py benchmarks/results/agiqa3k/lite0_lite2_residual \
        --json benchmarks/results/agiqa3k_controls.json

The folder has `split_NN.json` of the model and `KIND_split_NN.json` of each baseline. The bootstrap draws contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.metrics import compare_over_splits
from iqa.results import TEST_PART, paired_scores, provenance, read_results
from iqa.system import start_logging, write_json
from smart_iqa.commands.baseline import KINDS


def read_splits(folder: Path, prefix: str = "") -> list[dict]:
    """Results of each split, in order; none where there is no such file."""
    return [read_results(file) for file in sorted(folder.glob(f"{prefix}split_*.json"))]


def compared(folder: Path) -> dict[str, dict]:
    """Of each baseline in a folder: medians, and the model against it.

    Raises:
        UserError: no splits, or a baseline that lacks some.
    """
    ours = read_splits(folder)
    if not ours:
        raise UserError(f"{folder} has no split_*.json")
    found = {}
    for kind in KINDS:
        theirs = read_splits(folder, f"{kind}_")
        if theirs and len(theirs) != len(ours):
            raise UserError(f"{folder}: {len(theirs)} splits of {kind}, {len(ours)} of the model")
        if theirs:
            paired = compare_over_splits([paired_scores(*pair, TEST_PART) for pair in zip(ours, theirs, strict=True)])
            found[kind] = {"medians": medians(theirs), "model_against_it": paired}
    return found


def medians(of_splits: Sequence[dict]) -> dict[str, float]:
    """SRCC and PLCC."""
    return {
        key: float(np.median([results["metrics"][TEST_PART][key] for results in of_splits])) for key in ("srcc", "plcc")
    }


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="A model against its baselines over several splits, by paired tests over contents.")
    parser.add_argument("folder", type=Path, help="has split_NN.json, and KIND_split_NN.json of baselines")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print a table, and write what was found."""
    flags = make_parser().parse_args(argv)
    start_logging()
    found = compared(flags.folder)
    rows = {
        kind: of["medians"] | {key: of["model_against_it"][key] for key in ("difference", "ahead", "better")}
        for kind, of in found.items()
    }
    print(pd.DataFrame(rows).T.to_string())
    if flags.json:
        model = medians(read_splits(flags.folder))
        write_json(flags.json, {"kind": "controls", "model": model, "baselines": found, "provenance": provenance()})


if __name__ == "__main__":
    exit_on_user_error(main)
