"""Label files that are damaged in any place: read, or refused in one line that names them; never a traceback."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import trees
from helpers import few
from hypothesis import HealthCheck, example, given, settings, strategies as st
from test_folders import OFFICIAL

from folders import read_database
from iqa.data import read_csv_rows, read_mat_numbers, read_numbers, read_pairs, read_records, read_workbook
from iqa.errors import UserError

MANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
# One change of a file: where (a share of its length), how many bytes go, and what comes in their place.
CHANGES = st.tuples(st.floats(0, 1), st.integers(0, 30), st.binary(max_size=8))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["nan", "inf", "-1e400", "1,5", "=1+1", "../a.png", "/etc/passwd", "a\0b.png", "x" * 300 + ".png", "NULL", "1_0"]
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
KEYS = st.sampled_from(["image", "mos", "train", "content", "split", "mos_std", "row", "path"])
JSON = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | TEXTS, inner), max_leaves=12
)
RECORDS = st.lists(st.dictionaries(KEYS, VALUES | st.lists(VALUES, max_size=2), min_size=5), min_size=1, max_size=4)


def changed(content: bytes, change: tuple[float, int, bytes]) -> bytes:
    where, gone, new = change
    start = int(where * len(content))
    return content[:start] + new + content[start + gone :]


def reads_or_refuses(read: Callable[[], object], *named: object) -> bool:
    """Whether it was read; a refusal is one line that has the names in it."""
    try:
        read()
    except UserError as error:
        text = str(error)
        assert len(text.splitlines()) == 1, text
        assert all(str(name) in text for name in named), text
        return False
    return True


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("official")
    for name, (build, rows) in OFFICIAL.items():
        build(parent / name, rows)
    return parent


def label_files(root: Path) -> list[Path]:
    return sorted(file for file in root.rglob("*") if file.suffix in {".csv", ".xlsx", ".mat", ".txt"})


@pytest.mark.parametrize("name", OFFICIAL)
@few(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES, st.integers(0, 9))
def test_a_label_file_changed_anywhere_is_read_or_refused_in_one_line(name, official, change, which) -> None:
    files = label_files(official / name)
    file = files[which % len(files)]
    content = file.read_bytes()
    try:
        file.write_bytes(changed(content, change))
        reads_or_refuses(lambda: read_database(name, data_root=official, check_images=False), name)
    finally:
        file.write_bytes(content)


def cut_xml(content: bytes) -> bytes:
    """A workbook in whose archive the sheet ends in the middle of a tag."""
    source, target = Path("book.xlsx"), Path("cut.xlsx")
    source.write_bytes(content)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for part in old.namelist():
            inside = old.read(part)
            new.writestr(part, inside[: len(inside) // 2] if part.endswith("sheet1.xml") else inside)
    return target.read_bytes()


def test_a_workbook_with_cut_xml_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trees.workbook(tmp_path / "a.xlsx", [["image", "mos"], ["a.png", 50], ["b.png", 60]])
    (tmp_path / "a.xlsx").write_bytes(cut_xml((tmp_path / "a.xlsx").read_bytes()))
    with pytest.raises(UserError, match=r"a\.xlsx: cannot be read as an Excel workbook"):
        read_workbook(tmp_path / "a.xlsx")


def test_a_flipped_byte_in_a_compressed_mat_file_is_refused_by_name_or_read(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    scipy.io.savemat(file, {"mos": np.arange(50.0)}, do_compression=True)
    content, refused = file.read_bytes(), 0
    for place in range(0, len(content), 3):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        refused += not reads_or_refuses(lambda: read_mat_numbers(file, "mos"), file)
    assert refused > 10


@pytest.mark.long
@MANY
@given(st.lists(st.fixed_dictionaries({"image": TEXTS, "mos": TEXTS | st.floats()}, optional={"split": TEXTS})))
@example([{"image": "x" * 300 + ".png", "mos": 50.0}])
@example([{"image": "a\0b.png", "mos": 50.0}])
def test_a_table_of_any_cells_is_refused_with_its_row(tmp_path: Path, rows: list[dict]) -> None:
    pd.DataFrame(rows, columns=["image", "mos"]).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for kind in ("csv", "json"):
        file = tmp_path / f"a.{kind}"
        for skip in (False, True):  # there is no image, so nothing is read
            assert not reads_or_refuses(lambda: read_database(kind, data_path=file, skip_bad_images=skip), file)  # noqa: B023


@MANY
@given(JSON | RECORDS)
@example([[]])
@example([{"image": "a.png", "mos": 1, "split": 1, "content": None, "mos_std": "x"}])
@example({"train": [{"image": ["a"], "mos": {}}]})
@example([{"image": "a.png", "mos": 10**400}])
def test_any_json_is_a_table_or_refused_by_name(tmp_path: Path, content: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    reads_or_refuses(lambda: read_database("json", data_path=tmp_path / "a.json"), tmp_path / "a.json")


READERS = (read_csv_rows, read_workbook, read_records, lambda file: read_pairs(file, 0), lambda f: read_numbers(f, 2))


@pytest.mark.parametrize("read", [*READERS, lambda file: read_mat_numbers(file, "mos")])
@MANY
@given(st.binary(max_size=400))
@example(b"[" * 2000)
@example(b'{"a":' * 2000)
@example(b"9" * 5000)
@example(b"\xff\xfe\x00")
@example(b"")
def test_any_bytes_are_a_label_file_or_refused_by_name(read, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels").write_bytes(content)
    reads_or_refuses(lambda: read(tmp_path / "labels"), tmp_path / "labels")
    assert not reads_or_refuses(lambda: read(tmp_path / "absent"), tmp_path / "absent")
