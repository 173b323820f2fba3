"""What a row of `smart-iqa predict` says, and how it looks on the screen. Needs no torch."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iqa.data import Found
from iqa.errors import printable
from smart_iqa.shipped import Meaning

# Columns by name, with the kind of their cells; any but `image` may be None.
COLUMNS: dict[str, type] = {"image": str, "score": float, "low": float, "high": float, "level": str, "error": str}
STAGE_COLUMNS = tuple(f"stage_{number}" for number in range(4))
EXPLAINED: dict[str, type] = {**dict.fromkeys(STAGE_COLUMNS, float), "map": str}


def score_row(found: Found, values: Sequence[float] | None, meaning: Meaning | None = None) -> dict[str, Any]:
    """The row of an image: its score is set into 0..100 and rounded to four decimals.

    Args:
        found: the image, or why there is none.
        values: raw score and, where the fusion has them, four stage weights; None where it could not be read.
        meaning: gives interval and level; without it they are None.
    """
    row = dict.fromkeys([*COLUMNS, *EXPLAINED]) | {"image": found.path, "error": found.problem or None}
    if values is None:
        return row
    if not math.isfinite(values[0]):
        return row | {"error": f"image {found.path}: the model gives {values[0]} as its score"}
    score = min(100.0, max(0.0, values[0]))
    weights = (round(weight, 6) for weight in values[1:])
    row |= {"score": round(score, 4)} | dict(zip(STAGE_COLUMNS, weights, strict=False))
    if meaning is not None:
        low, high = meaning.interval(score)
        row |= {"low": round(low, 1), "high": round(high, 1), "level": meaning.level(score)}
    return row


def table_head(explained: bool = False) -> str:
    """The names over the columns of `table_line`."""
    stages = " ".join(STAGE_COLUMNS) + "  " if explained else ""
    return f"{'score':>7} {'low':>6} {'high':>6}  {'level':<9}  {stages}image"


def table_line(row: dict[str, Any], explained: bool = False) -> str:
    """A row as a line of a table, with a dash for what is not known; the image comes last, for names have any length.

    Args:
        row: as `score_row` gives it.
        explained: with the stage weights.
    """
    score, low, high = (_number(row[name], decimals) for name, decimals in (("score", 2), ("low", 1), ("high", 1)))
    level = "error" if row["error"] else row["level"] or "-"
    stages = " ".join(f"{_number(row[name], 3):>7}" for name in STAGE_COLUMNS) + "  " if explained else ""
    return f"{score:>7} {low:>6} {high:>6}  {level:<9}  {stages}{printable(row['image'])}"


def map_name(image: str) -> str:
    """The file's name of an image's map: the image's, and a hash of its path, since folders may share names."""
    return f"{Path(image).stem[:50]}_{hashlib.blake2b(os.fsencode(image), digest_size=4).hexdigest()}.png"


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
