"""Score images with the model that comes with the package, or with a finished run.

    smart-iqa predict photo.jpg holiday/ --output scores.csv
    smart-iqa predict photo.jpg holiday/ --sheet best_to_worst.png
    smart-iqa predict photo.jpg --checkpoint results/demo

From Python:

    from smart_iqa import load_model
    load_model().score("photo.jpg")

A model -> `Scorer` -> scores, as a table and as CSV. A model that says what its scores mean adds the interval that
holds the mos of nine images in ten, and the quality level.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from iqa.choices import DEVICES
from iqa.errors import Parser, UserError
from iqa.system import is_first_process, spreadsheet_safe, start_logging, write_atomically

if TYPE_CHECKING:
    from smart_iqa.shipped import Meaning

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


def scores_table(paths: Sequence[Path], scores: np.ndarray, meaning: Meaning | None) -> pd.DataFrame:
    """Columns image and score, and of a model that says what its scores mean, low, high and level."""
    table = pd.DataFrame({"image": [str(path) for path in paths], "score": np.round(scores, 3)})
    if meaning is None:
        return table
    intervals = np.array([meaning.interval(score) for score in scores]).reshape(-1, 2)
    low, high = np.round(intervals, 1).T
    return table.assign(low=low, high=high, level=[meaning.level(score) for score in scores])


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Score images (0..100, higher is better).")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files and folders")
    parser.add_argument(
        "--checkpoint",
        default="default",
        metavar="RUN",
        help="a model of the package, folder of a run, file of `pack`, or a published file (.pth, .pkl) [default]",
    )
    parser.add_argument("--output", metavar="FILE.csv", help="also write the scores as CSV (image,score,...)")
    parser.add_argument("--sheet", metavar="FILE.png", help="also draw the images with their scores, best first")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Score what the command line names; unreadable files are listed at the end (exit code 2)."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    from smart_iqa.scorer import load_model

    output, sheet = (Path(file) if file else None for file in (arguments.output, arguments.sheet))
    for flag, file in {"--output": output, "--sheet": sheet}.items():
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{flag}: no folder {file.parent}")
    scorer = load_model(arguments.checkpoint, arguments.device)
    paths = find_images(arguments.paths)
    scores, problems = scorer.score_readable(paths)
    if not is_first_process():
        return
    table = scores_table(paths, scores, scorer.meaning).drop(index=list(problems))
    if len(table):
        print(table.to_string(index=False))
    if output is not None:
        write_atomically(output, lambda temporary: spreadsheet_safe(table).to_csv(temporary, index=False))
    if sheet is not None and len(table):
        _write_sheet(sheet, table)
    if problems:
        for problem in problems.values():
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def _write_sheet(file: Path, table: pd.DataFrame) -> None:
    from iqa.figures import draw_sheet

    figure = draw_sheet(table["image"].tolist(), table["score"].tolist())
    write_atomically(file, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
