"""The epochs of a run, checked: `history.jsonl` -> rows of numbers for figures and pages. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from iqa.errors import UserError
from iqa.results.schema import read_history

REQUIRED = ("epoch", "train_loss", "val_srcc")
NUMBERS = (*REQUIRED, "val_plcc", "lr", "train_seconds")  # or null


def read_epochs(file: Path) -> list[dict]:
    """The lines of a run's history; none where there is no such file.

    Raises:
        UserError: a field is missing or not a number; the message names line and field.
    """
    epochs = read_history(file) if file.is_file() else []
    for number, line in enumerate(epochs, start=1):
        if not isinstance(line, dict):
            raise UserError(f"{file}, line {number}: expected the fields of an epoch, got {line!r}")
        for field in REQUIRED:
            if field not in line:
                raise UserError(f"{file}, line {number}: no field {field!r}")
        for field in NUMBERS:
            value = line.get(field)
            if not (isinstance(value, int | float) or (value is None and field != "epoch")):
                raise UserError(f"{file}, line {number}: field {field!r} is {value!r}, expected a number")
    return epochs
