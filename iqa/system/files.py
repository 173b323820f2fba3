"""Files that are written whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from iqa.errors import UserError, WriteError

if TYPE_CHECKING:
    import pandas as pd


class FolderBusyError(UserError):
    """Another process writes to the folder."""


_FORMULA = re.compile(r"(?![-+][\d.e\s±%\[\],+-]*$)[=+\-@\t\r]")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, push it to disk and only then put it in its place.

    Raises:
        WriteError: a UserError; what lay at `path` still does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # the reason is told already
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep a folder, made if it is not there, from other processes; one that was killed holds it no more.

    What killed processes have left of `write_atomically` is removed.

    Raises:
        FolderBusyError: a UserError: another process has it.
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)  # this process may take it again
        lock.acquire()
    except Timeout:
        raise FolderBusyError(f"{folder} is being written by another process: wait for its end, or stop it") from None
    except OSError as error:
        raise WriteError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def write_json(path: Path, content: Any) -> None:
    """Write JSON; NaN and infinities become null, since JSON has neither."""
    text = json.dumps(_json_ready(content), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def spreadsheet_safe(table: pd.DataFrame) -> pd.DataFrame:
    """A table for a CSV whose texts no spreadsheet takes for a formula: a quote stands before = + - @, tab and CR.

    Numbers, and texts of digits and signs alone, stay as they are.
    """
    return table.map(lambda cell: f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell)


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
