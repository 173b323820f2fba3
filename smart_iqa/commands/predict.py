"""Score images with a finished run.

    smart-iqa predict photo.jpg holiday/ --checkpoint results/demo --output scores.csv

From Python:

    from smart_iqa import load_model
    load_model("results/demo").score("photo.jpg")

A run's folder -> `Scorer` -> scores, as a table and as CSV.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iqa.choices import DEVICES
from iqa.errors import Parser, UserError
from iqa.system import is_first_process, spreadsheet_safe, start_logging

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".ppm", ".pgm")


def find_images(paths: Sequence[str]) -> list[Path]:
    """Files as given, and every image file below the folders given, sorted.

    Raises:
        UserError: a path is not there, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"no image in {path}: known endings are {' '.join(IMAGE_SUFFIXES)}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"no file or folder at {path}")
    return list(dict.fromkeys(found))


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Score images with a finished run (0..100, higher is better).")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files and folders")
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="folder of a run, or a published file (.pth, .pkl)"
    )
    parser.add_argument("--output", metavar="FILE.csv", help="also write the scores as CSV (image,score)")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Score what the command line names; unreadable files are listed at the end (exit code 2)."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    from smart_iqa.scorer import load_model

    output = Path(arguments.output) if arguments.output else None
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output: no folder {output.parent}")
    scorer = load_model(arguments.checkpoint, arguments.device)
    paths = find_images(arguments.paths)
    scores, problems = scorer.score_readable(paths)
    if not is_first_process():
        return
    table = pd.DataFrame({"image": [str(path) for path in paths], "score": np.round(scores, 3)}).drop(
        index=list(problems)
    )
    if len(table):
        print(table.to_string(index=False))
    if output is not None:
        spreadsheet_safe(table).to_csv(output, index=False)
    if problems:
        for problem in problems.values():
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
