"""A table that grows row by row and survives a kill: CSV, JSON lines or Parquet. Needs neither torch nor pandas.

Rows are written beside the file as they come, to `NAME.partial`, as JSON lines. When the last one is there, the file is
made of them and put in its place at once. A partial file that a kill has left goes on where it ends: its first line
says what it was begun with, and a last line that is torn is left out.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from filelock import FileLock, Timeout

from iqa.errors import UserError, WriteError
from iqa.system import safe_cell, write_atomically

Row = Mapping[str, Any]
Kinds = Mapping[str, type]  # of the columns: str or float; a cell may be None
_SYNC_SECONDS = 2.0  # what a power cut may take; a kill takes nothing
_AT_ONCE = 4096  # rows of Parquet that are held in memory


class RowFile:
    """As a context, takes rows; left without an error it is whole, and lies at `path`.

    Args:
        path: of the file, which ends in .csv, .jsonl or .parquet.
        kinds: of the columns, by name.
        begun: JSON-ready: what the rows depend on. A partial file that was begun with something else is refused.
        overwrite: replace a file that is there, and begin a partial one anew.

    Raises:
        UserError: the ending is another one, a package that it needs is missing, the file is there already, or its
            partial file is not of these columns and this beginning.
    """

    def __init__(self, path: Path, kinds: Kinds, begun: Mapping[str, Any], overwrite: bool = False):
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        self._kinds, self._convert = kinds, _converter(path)
        self._header = {"begun": dict(begun), "columns": list(kinds)}
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        self._anew = overwrite
        try:
            self._check()
        except OSError as error:
            raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error

    def _check(self) -> None:
        if not self.path.parent.is_dir():
            raise UserError(f"{self.path}: no folder {self.path.parent}")
        if not self._anew:
            if self.path.exists():
                raise UserError(f"{self.path} is there already: give --overwrite to replace it, or another name")
            self._whole_bytes()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that the partial file holds."""
        if self._anew or not self.partial.exists():
            return
        with self.partial.open("rb") as stream:
            stream.readline()
            for line in stream:
                if (row := _parsed(line)) is None:
                    return
                yield row

    def __enter__(self) -> RowFile:
        try:
            self._lock.acquire()
            whole = 0 if self._anew else self._whole_bytes()
            self._stream = self.partial.open("r+b" if whole else "wb")
            self._stream.truncate(whole)
            self._stream.seek(whole)
        except Timeout:
            raise UserError(f"{self.path} is being written by another process: wait for its end, or stop it") from None
        except OSError as error:
            raise WriteError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._anew, self._synced = False, time.monotonic()
        if not whole:
            self._write(self._header)
        return self

    def append(self, row: Row) -> None:
        """Write one row.

        Raises:
            WriteError: the disk is full, or the file closed to us.
        """
        self._write({name: row.get(name) for name in self._kinds})
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        try:
            with contextlib.suppress(OSError):  # told by `append` already, which flushes each row
                self._stream.close()
            if kind is None:
                write_atomically(self.path, lambda temporary: self._convert(temporary, self._kinds, self.rows()))
                self.partial.unlink()
        finally:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def _write(self, content: Row) -> None:
        try:
            self._stream.write(json.dumps(content, allow_nan=False).encode() + b"\n")
            self._stream.flush()
        except OSError as error:
            kept = "its rows are kept, and the same command goes on from them"
            raise WriteError(f"{self.partial} cannot be written: {error.strerror or error}; {kept}") from error

    def _whole_bytes(self) -> int:
        """How many bytes of the partial file are whole lines of this table; 0 where there is none."""
        if not self.partial.exists():
            return 0
        with self.partial.open("rb") as stream:
            first = stream.readline()
            if (header := _parsed(first)) is None:
                return 0
            if header != self._header:
                raise UserError(
                    f"{self.partial} was begun with another model or other settings: give --overwrite to begin anew, "
                    "or another name"
                )
            return len(first) + _whole_lines(stream)


def _whole_lines(stream: BinaryIO) -> int:
    whole = 0
    for line in stream:
        if _parsed(line) is None:
            break
        whole += len(line)
    return whole


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line of JSON, None where the line is torn."""
    try:
        content = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def csv_writer(stream: TextIO, kinds: Kinds) -> Callable[[Row], None]:
    """Write the columns' names to a stream; returns what writes a row as CSV, safe for spreadsheets."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(kinds)

    def write(row: Row) -> None:
        writer.writerow([safe_cell(row[name]) for name in kinds])
        stream.flush()

    return write


def _to_csv(file: Path, kinds: Kinds, rows: Iterator[Row]) -> None:
    # A file's name need not be UTF-8: its bytes come out as they are.
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        write = csv_writer(stream, kinds)
        for row in rows:
            write(row)


def _to_jsonl(file: Path, kinds: Kinds, rows: Iterator[Row]) -> None:
    with file.open("w", encoding="ascii") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def _to_parquet(file: Path, kinds: Kinds, rows: Iterator[Row]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    types = {str: pyarrow.string(), float: pyarrow.float64()}
    schema = pyarrow.schema({name: types[kind] for name, kind in kinds.items()})
    with ParquetWriter(file, schema) as writer:
        while some := list(islice(rows, _AT_ONCE)):
            columns = {name: [_utf8(row[name]) for row in some] for name in kinds}
            writer.write_table(pyarrow.table(columns, schema))


def _utf8(cell: Any) -> Any:
    """A cell that Parquet takes: bytes of a file's name that are not UTF-8 are escaped."""
    return os.fsencode(cell).decode("utf-8", "backslashreplace") if isinstance(cell, str) else cell


_CONVERTERS: dict[str, Callable[[Path, Kinds, Iterator[Row]], None]] = {
    ".csv": _to_csv,
    ".jsonl": _to_jsonl,
    ".parquet": _to_parquet,
}
ROW_FILES = tuple(_CONVERTERS)


def _converter(path: Path) -> Callable[[Path, Kinds, Iterator[Row]], None]:
    ending = path.suffix.lower()
    if ending not in _CONVERTERS:
        raise UserError(f"{path}: expected a name that ends in {', '.join(_CONVERTERS)}")
    if ending == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path}: Parquet needs pyarrow: pip install 'smart-iqa[parquet]', or name a .csv or .jsonl")
    return _CONVERTERS[ending]
