"""Tables that grow row by row: three formats, never written over unasked, whole or recognisably partial."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from iqa.errors import UserError, WriteError
from iqa.results import ROW_FILES, RowFile

KINDS = {"image": str, "score": float, "error": str}
ROWS = [
    {"image": "a.png", "score": 12.5, "error": None},
    {"image": "ü,\n.png", "score": None, "error": "torn"},
    {"image": "=1+1.png", "score": 99.0, "error": None},
]


def write(file, rows, begun="model", stop: BaseException | None = None, **options) -> None:
    with RowFile(file, KINDS, {"checkpoint": begun}, **options) as table:
        for row in rows:
            table.append(row)
        if stop:
            raise stop


def read(file) -> list[dict]:
    readers = {
        ".csv": pd.read_csv,
        ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
        ".parquet": pd.read_parquet,
    }
    table = readers[file.suffix](file).astype(object)
    return table.where(table.notna(), None).to_dict("records")


@pytest.mark.parametrize("ending", ROW_FILES)
def test_rows_come_back_as_they_were_and_nothing_else_is_left(tmp_path, ending):
    file = tmp_path / f"scores{ending}"
    write(file, ROWS)
    expected = [row | {"image": row["image"].replace("=", "'=")} for row in ROWS] if ending == ".csv" else ROWS
    assert read(file) == expected
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("ending", ROW_FILES)
def test_a_table_without_rows_has_its_columns(tmp_path, ending):
    file = tmp_path / f"scores{ending}"
    write(file, [])
    assert file.exists() and (ending == ".jsonl" or list(read_columns(file)) == list(KINDS))


def read_columns(file):
    return (pd.read_csv if file.suffix == ".csv" else pd.read_parquet)(file).columns


def test_parquet_has_the_kinds_of_its_columns_whatever_the_rows(tmp_path):
    from pyarrow.parquet import read_schema

    write(tmp_path / "scores.parquet", [ROWS[1]])
    assert [str(kind) for kind in read_schema(tmp_path / "scores.parquet").types] == ["string", "double", "string"]


def test_what_is_stopped_lies_in_a_partial_file_and_goes_on_where_it_ended(tmp_path):
    file = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        write(file, ROWS[:2], stop=KeyboardInterrupt())
    assert [each.name for each in tmp_path.iterdir()] == ["scores.csv.partial"]
    table = RowFile(file, KINDS, {"checkpoint": "model"})
    assert list(table.rows()) == ROWS[:2]
    with table:
        table.append(ROWS[2])
    assert [row["score"] for row in read(file)] == [12.5, None, 99.0]


@pytest.mark.parametrize("kept", range(0, 200, 7))
def test_a_partial_file_cut_anywhere_goes_on_with_its_whole_rows(tmp_path, kept):
    file = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write(file, ROWS, stop=KeyboardInterrupt())
    partial = tmp_path / "scores.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:kept])
    table = RowFile(file, KINDS, {"checkpoint": "model"})
    done = [row["image"] for row in table.rows()]
    with table:
        for row in ROWS[len(done) :]:
            table.append(row)
    assert read(file) == ROWS


def test_what_is_there_is_not_written_over_unasked(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("mine")
    with pytest.raises(UserError, match="is there already: give --overwrite"):
        write(file, ROWS)
    assert file.read_text() == "mine"
    write(file, ROWS[:1], overwrite=True)
    assert len(read(file)) == 1


def test_a_partial_file_of_another_model_is_refused_and_begun_anew_where_asked(tmp_path):
    file = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        write(file, ROWS[:2], stop=KeyboardInterrupt())
    with pytest.raises(UserError, match="begun with another model"):
        write(file, ROWS, begun="another")
    write(file, ROWS[2:], begun="another", overwrite=True)
    assert len(read(file)) == 1 and not (tmp_path / "scores.csv.partial").exists()


def test_of_two_processes_the_second_is_refused(tmp_path):
    file = tmp_path / "scores.csv"
    with RowFile(file, KINDS, {}) as table:
        table.append(ROWS[0])
        with pytest.raises(UserError, match="being written by another process"), RowFile(file, KINDS, {}):
            pass
        table.append(ROWS[2])
    assert len(read(file)) == 2


def test_other_endings_and_folders_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"expected a name that ends in \.csv, \.jsonl, \.parquet"):
        RowFile(tmp_path / "scores.txt", KINDS, {})
    with pytest.raises(UserError, match="no folder"):
        RowFile(tmp_path / "no" / "scores.csv", KINDS, {})
    with pytest.raises(WriteError, match="File name too long"):
        RowFile(tmp_path / f"{'n' * 300}.csv", KINDS, {})


def test_where_pyarrow_is_missing_parquet_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'smart-iqa\[parquet\]'"):
        RowFile(tmp_path / "scores.parquet", KINDS, {})


def append_to_full_disk(file) -> None:
    with RowFile(file, KINDS, {}) as table:
        table.append(ROWS[0])
        table._stream.close()
        table._stream = Path("/dev/full").open("wb")  # noqa: SIM115
        table.append(ROWS[1])


def test_a_full_disk_keeps_the_rows_before_it(tmp_path):
    with pytest.raises(WriteError, match="No space left on device; its rows are kept"):
        append_to_full_disk(tmp_path / "scores.csv")
    assert [json.loads(line) for line in (tmp_path / "scores.csv.partial").read_text().splitlines()][1:] == ROWS[:1]


def test_a_name_that_is_not_utf_8_keeps_its_bytes_in_csv_and_is_escaped_elsewhere(tmp_path):
    row = {"image": os.fsdecode(b"\xff.png"), "score": 1.0, "error": None}
    for ending in ROW_FILES:
        write(tmp_path / f"scores{ending}", [row])
    assert b"\xff.png" in (tmp_path / "scores.csv").read_bytes()
    assert json.loads((tmp_path / "scores.jsonl").read_text())["image"] == row["image"]
    assert read(tmp_path / "scores.parquet")[0]["image"] == "\\xff.png"
