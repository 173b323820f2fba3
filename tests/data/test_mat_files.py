"""MATLAB files: what scipy writes is read as scipy reads it, and damage anywhere is an error, never a crash."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings, strategies as st

from iqa.data.mat_files import read_mat

KINDS = ["f8", "f4", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_that_scipy_reads(kind: str, compressed: bool, tmp_path: Path) -> None:
    values = {
        "row": np.arange(7, dtype=kind)[None],
        "column": np.arange(40, dtype=kind)[:, None],
        "one": np.ones(1, kind),
    }
    scipy.io.savemat(tmp_path / "a.mat", values, do_compression=compressed)
    theirs, ours = scipy.io.loadmat(tmp_path / "a.mat"), read_mat(tmp_path / "a.mat")
    assert set(ours) == set(values)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and (value == theirs[name].ravel()).all()


@pytest.mark.parametrize("compressed", [False, True])
def test_texts_and_cells_are_those_that_scipy_reads(compressed: bool, tmp_path: Path) -> None:
    cells = np.empty((1, 3), dtype=object)
    cells[0] = ["a.bmp", "ä €.png", np.arange(3.0)]
    values = {
        "cells": cells,
        "rows": np.array(["abc", "de", ""]),
        "text": "one",
        "nothing": "",
        "logical": np.array([True, False]),
    }
    scipy.io.savemat(tmp_path / "a.mat", values, do_compression=compressed)
    ours = read_mat(tmp_path / "a.mat")
    assert [cell.tolist() for cell in ours["cells"]] == [["a.bmp"], ["ä €.png"], [0.0, 1.0, 2.0]]
    assert [row.rstrip() for row in ours["rows"]] == ["abc", "de", ""]
    assert ours["text"].tolist() == ["one"] and ours["nothing"].tolist() in ([], [""])
    assert ours["logical"].tolist() == [1, 0]


def test_what_label_files_do_not_hold_is_none(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"complex": np.array([1j]), "structure": {"a": 1}})
    assert read_mat(tmp_path / "a.mat") == {"complex": None, "structure": None}


def test_other_versions_are_named(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"a": 1.0}, format="4")
    with pytest.raises(ValueError, match="version 5 to 7"):
        read_mat(tmp_path / "a.mat")


def test_a_variable_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    packed = zlib.compress(bytes(300_000_000), 1)
    (tmp_path / "a.mat").write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(ValueError, match="larger than"):
        read_mat(tmp_path / "a.mat")


@settings(max_examples=3 * settings.default.max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12), st.booleans())
def test_a_change_anywhere_is_read_or_a_value_error(
    tmp_path: Path, where: float, gone: int, new: bytes, compressed: bool
) -> None:
    cells = np.empty((1, 3), dtype=object)
    cells[0] = ["a.bmp", "b.png", "c"]
    scipy.io.savemat(
        tmp_path / "a.mat", {"mos": np.arange(9.0), "names": cells, "x": {"a": "b"}}, do_compression=compressed
    )
    content = (tmp_path / "a.mat").read_bytes()
    start = int(where * len(content))
    (tmp_path / "a.mat").write_bytes(content[:start] + new + content[start + gone :])
    with contextlib.suppress(ValueError):
        read_mat(tmp_path / "a.mat")
