"""Try what should not work, and count: broken images, and runs that are killed.

    python benchmarks/reliability.py inputs --json benchmarks/results/reliability_inputs.json
    python benchmarks/reliability.py kills --json benchmarks/results/reliability_kills.json

*inputs*: every file of `broken_images.cases` is read as training and scoring read it, and checked as a database is.
What is read must have the right pixels, what is refused must be refused by one line that names the file, and the check
must say the same. *kills*: see `benchmarks/kills.py`. `benchmarks/page.py` writes the counts into docs/reliability.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from benchmarks.broken_images import Case, cases
from benchmarks.common import against_target, print_targets, require_writable, write_result
from iqa.data import check_image, open_rgb
from iqa.errors import Parser, UserError, exit_on_user_error


class Tried(NamedTuple):
    """What became of a file: read or refused, what was wrong with that ("" if nothing), and how long it took."""

    read: bool
    wrong: str
    seconds: float


def try_image(case: Case, folder: Path) -> Tried:
    """Read one file in every way that images are read."""
    path = folder / case.name
    path.write_bytes(case.content)
    started = time.perf_counter()
    try:
        image, refusal = open_rgb(path), ""
    except UserError as error:
        image, refusal = None, str(error)
    problem = check_image(path).problem
    seconds = time.perf_counter() - started
    path.unlink()
    wrong = _wrong_refusal(case, path, refusal) if image is None else _wrong_pixels(case, image)
    if (image is None) != bool(problem):
        wrong = wrong or f"the check says {problem or 'whole'!r}"
    return Tried(image is not None, wrong, seconds)


def _wrong_refusal(case: Case, path: Path, refusal: str) -> str:
    if case.outcome == "read":
        return f"refused: {refusal}"
    one_line = str(path) in refusal and len(refusal.splitlines()) == 1
    return "" if one_line else f"not one line with the name: {refusal!r}"


def _wrong_pixels(case: Case, image: PIL.Image.Image) -> str:
    if case.outcome == "refused":
        return "read"
    if image.mode != "RGB":
        return f"read as {image.mode}"
    pixels = np.asarray(image, dtype=float)
    if case.pixels is None:
        return ""
    if pixels.shape != case.pixels.shape:
        return f"read as {pixels.shape}, not {case.pixels.shape}"
    difference = np.abs(pixels - case.pixels).mean()
    return "" if difference <= case.tolerance else f"pixels differ by {difference:.1f}"


def try_inputs() -> dict:
    """Counts by kind of damage, the slowest file, and what went wrong by name."""
    kinds: dict[str, dict[str, int]] = {}
    wrong: dict[str, str] = {}
    slowest = ("", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            tried = try_image(case, Path(folder))
            counts = kinds.setdefault(case.kind, {"tried": 0, "read": 0, "refused": 0, "wrong": 0})
            for key in ("tried", "read" if tried.read else "refused", *(["wrong"] if tried.wrong else [])):
                counts[key] += 1
            if tried.wrong:
                wrong[f"{case.kind}: {case.name}"] = tried.wrong
            slowest = max(slowest, (case.name, tried.seconds), key=lambda pair: pair[1])
    total = {key: sum(counts[key] for counts in kinds.values()) for key in ("tried", "read", "refused", "wrong")}
    targets = {
        "files_tried": against_target(total["tried"], at_least=200),
        "files_wrong": against_target(total["wrong"], below=1),
        "slowest_seconds": against_target(slowest[1], below=2),
    }
    return {
        "kind": "reliability_inputs", "pillow": PIL.__version__, "kinds": kinds, "total": total, "wrong": wrong,
        "slowest_file": slowest[0], "targets": targets,
    }  # fmt: skip


def try_kills() -> dict:
    """See `benchmarks.kills`; it needs torch, which the broken images do not."""
    from benchmarks import kills

    return kills.try_kills()


TRIALS = {"inputs": try_inputs, "kills": try_kills}


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Try what should not work, and count what becomes of it.")
    parser.add_argument("what", choices=tuple(TRIALS), help="what to try")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the counts")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Try, print the targets, write the result."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    result = TRIALS[arguments.what]()
    print_targets(result["targets"])
    for name, what in result["wrong"].items():
        print(f"{name}: {what}")
    write_result(arguments.json, result)


if __name__ == "__main__":
    exit_on_user_error(main)
