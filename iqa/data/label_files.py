"""Label files as databases ship them (CSV, Excel, MATLAB, JSON, plain text) -> rows; for `folders.py`.

Values stay as they stand in the file, so that a bad one can be shown, and every table has a column `row`: the
line in the file (a workbook's row; a record's position in JSON), for messages.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from iqa.data.mat_files import read_mat
from iqa.errors import UserError

# How split columns and JSON keys name the parts; "" is an image in no part.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "": "",
}

_LARGEST_WORKBOOK = 1 << 28  # bytes when unpacked; SPAQ's has 2 MB


def read_csv_rows(file: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV as text.

    Args:
        file: the file, UTF-8, with a header line.
        columns: names that must be there.

    Returns:
        all its columns, and `row`.

    Raises:
        UserError: the file is no CSV, or a column is absent.
    """
    options = {"dtype": str, "keep_default_na": False, "skipinitialspace": True, "index_col": False}
    with _reading(file, "CSV"), warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # of cells beyond the last column, which it drops
        rows = pd.read_csv(file, skip_blank_lines=False, **options).fillna("")
    return _numbered(rows[(rows != "").any(axis=1)], file, columns)


def read_workbook(file: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The first sheet of an Excel workbook; arguments, result and errors as `read_csv_rows`."""
    with _reading(file, "an Excel workbook"):
        with zipfile.ZipFile(file) as parts:
            if sum(part.file_size for part in parts.infolist()) > _LARGEST_WORKBOOK:
                raise ValueError(f"it unpacks to more than {_LARGEST_WORKBOOK} bytes")
        rows = pd.read_excel(file, engine="openpyxl")
    return _numbered(rows.dropna(how="all"), file, columns)


def read_pairs(file: Path, image_position: int) -> pd.DataFrame:
    """Lines of an image name and a score, split by blanks.

    Args:
        file: a text file.
        image_position: 0 if the name stands first, 1 if the score does.

    Returns:
        columns row, image, score.

    Raises:
        UserError: a line has not two words, or there is none.
    """
    with _reading(file, "text"):
        lines = file.read_text(errors="replace").splitlines()
    words_of = {row: line.split() for row, line in enumerate(lines, 1) if line.strip()}
    for row, words in words_of.items():
        if len(words) != 2:
            raise UserError(f"{file} row {row}: expected an image name and a score, got {' '.join(words)!r}")
    if not words_of:
        raise UserError(f"{file}: no labels in it")
    pairs = [(row, words[image_position], words[1 - image_position]) for row, words in words_of.items()]
    return pd.DataFrame(pairs, columns=["row", "image", "score"])


def read_records(file: Path) -> pd.DataFrame:
    """JSON records: a list of objects, or an object of such lists under train, val and test.

    Args:
        file: the file.

    Returns:
        a column for each key, `row` (position from 1), and `split` where the file has parts.

    Raises:
        UserError: the file is no JSON, or holds something else.
    """
    with _reading(file, "JSON"):
        content = json.loads(file.read_text(encoding="utf-8"), parse_int=_whole_number)
    records = content
    if isinstance(content, dict):
        parts = {part: content[part] for part in SPLIT_NAMES if isinstance(content.get(part), list)}
        records = [_with_split(record, part) for part, of_part in parts.items() for record in of_part]
    whole = isinstance(records, list) and records and all(isinstance(record, dict) for record in records)
    if not whole:
        expected = '[{"image": ..., "score": ...}, ...]'
        raise UserError(f"{file}: expected a list {expected}, alone or under train, val and test")
    rows = pd.DataFrame(records).drop(columns="row", errors="ignore")
    rows = rows.astype(object).where(rows.notna(), "")
    rows.insert(0, "row", range(1, len(rows) + 1))
    return rows


def read_numbers(file: Path, count: int) -> np.ndarray:
    """A text file of one number a line.

    Args:
        file: the file.
        count: how many numbers it must have.

    Returns:
        the numbers, in order.

    Raises:
        UserError: a line is no number, or there are more or fewer of them.
    """
    with _reading(file, "text"):
        words = file.read_text(errors="replace").split()
    numbers = pd.to_numeric(pd.Series(words, dtype=object), errors="coerce").to_numpy(dtype=float)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UserError(
            f"{file}: expected {count} numbers, got {int(np.isfinite(numbers).sum())} in {len(words)} words"
        )
    return numbers


def read_mat_numbers(file: Path, key: str, count: int | None = None) -> np.ndarray:
    """One variable of a MATLAB file that holds numbers.

    Args:
        file: a .mat file (version 7 or older; the databases of this field are).
        key: the variable.
        count: how many values it must have.

    Returns:
        the values, flat.

    Raises:
        UserError: the file is no MATLAB file, or the variable is absent, of another kind or of another length.
    """
    values = _mat_variable(file, key, count)
    if values.dtype.kind not in "biuf":
        raise UserError(f"{file}: {key} holds no plain numbers; is it the file of this database?")
    return values


def has_mat_variable(file: Path, key: str) -> bool:
    """Whether a MATLAB file, already known to be one, has a variable."""
    return key in read_mat(file)


def read_mat_names(file: Path, key: str, count: int | None = None) -> list[str]:
    """One variable of a MATLAB file that holds names; arguments and errors as `read_mat_numbers`.

    They stand in cells, or in rows of a character matrix, whose blanks at the end are no part of a name.
    """
    values = _mat_variable(file, key, count)
    if values.dtype.kind not in "OU":
        raise UserError(f"{file}: {key} holds no names; is it the file of this database?")
    return [_cell_text(cell).rstrip() for cell in values]


def _mat_variable(file: Path, key: str, count: int | None) -> np.ndarray:
    with _reading(file, "a MATLAB file"):
        content = read_mat(file)
    if key not in content:
        has = ", ".join(content) or "none"
        raise UserError(f"{file}: no variable {key}; it has {has}; is it the file of this database?")
    values = content[key]
    if values is None:
        raise UserError(f"{file}: {key} holds neither numbers nor names; is it the file of this database?")
    if count is not None and len(values) != count:
        raise UserError(f"{file}: {key} has {len(values)} values, expected {count}")
    return values


def _cell_text(cell: object) -> str:
    """The text in a MATLAB cell, which scipy gives wrapped in arrays."""
    return "".join(str(part) for part in np.asarray(cell).ravel())


def _numbered(rows: pd.DataFrame, file: Path, columns: Sequence[str]) -> pd.DataFrame:
    absent = [name for name in columns if name not in rows]
    if absent:
        has = ", ".join(map(str, rows.columns))
        raise UserError(f"{file}: no column {', '.join(absent)}; it has {has}")
    if rows.empty:
        raise UserError(f"{file}: no labels in it")
    lines = rows.index + 2  # line 1 is the header
    rows = rows.drop(columns="row", errors="ignore").reset_index(drop=True)
    rows.insert(0, "row", lines)
    return rows


def _with_split(record: object, part: str) -> object:
    return record | {"split": part} if isinstance(record, dict) else record


def _whole_number(digits: str) -> int | float:
    """A number that pandas can hold; one beyond all floats is infinite."""
    return int(digits) if len(digits) < 19 else float(digits)


@contextmanager
def _reading(file: Path, kind: str) -> Iterator[None]:
    """Make one line of whatever a library's reader raises on a damaged file."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{file}: cannot be read as {kind} ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
