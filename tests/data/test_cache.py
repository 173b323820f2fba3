"""Rows on disk: what is read is what was written, whatever stopped, changed or ran at the same time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from iqa.data import RowCache, cache_folder, caches_on_disk
from iqa.errors import UserError

SIZES = [5, 0, 300, 17]
ROWS = [np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8) for i, size in enumerate(SIZES)]


def make(folder: Path, key: str = "a", sizes=SIZES) -> RowCache:
    return RowCache(folder / "cache", {"made_of": key}, sizes, "test rows")


def test_a_row_reads_as_none_until_it_is_written_and_as_itself_ever_after(tmp_path):
    cache = make(tmp_path)
    assert [cache.read(row) for row in range(4)] == [None] * 4
    for row, content in enumerate(ROWS):
        cache.write(row, content)
    for reader in (cache, make(tmp_path), pickle.loads(pickle.dumps(cache))):
        assert all(np.array_equal(reader.read(row), content) for row, content in enumerate(ROWS))
        assert reader.missing(range(4)).tolist() == []


def test_only_what_is_missing_is_named(tmp_path):
    cache = make(tmp_path)
    cache.write(2, ROWS[2])
    assert cache.missing([0, 2, 3]).tolist() == [0, 3]


def test_a_row_that_was_damaged_on_disk_is_missing_again(tmp_path):
    cache = make(tmp_path)
    for row, content in enumerate(ROWS):
        cache.write(row, content)
    (file,) = tmp_path.glob("cache_*/rows.bin")
    content = bytearray(file.read_bytes())
    content[100] ^= 1  # in row 2
    file.write_bytes(content)
    assert make(tmp_path).missing(range(4)).tolist() == [2]


@pytest.mark.parametrize("change", [{"key": "b"}, {"sizes": [5, 0, 301, 17]}])
def test_a_cache_of_something_else_lies_beside_it(tmp_path, change):
    first = make(tmp_path)
    first.write(0, ROWS[0])
    other = make(tmp_path, **change)
    assert other.read(0) is None
    other.write(0, ROWS[0][::-1])
    for reader in (first, make(tmp_path), pickle.loads(pickle.dumps(first))):
        assert np.array_equal(reader.read(0), ROWS[0])


def test_what_a_folder_holds_is_looked_at_again_by_who_opens_it_later(tmp_path, caplog):
    caplog.set_level("INFO")
    unopened = pickle.dumps(make(tmp_path))
    make(tmp_path).write(0, ROWS[0])
    (file,) = tmp_path.glob("cache_*/cache.json")
    file.write_text("{}")  # as if another cache had been put there
    assert pickle.loads(unopened).read(0) is None
    assert "renewing the stale cache of test rows" in caplog.text
    shutil.rmtree(file.parent)  # by `smart-iqa cache --remove`
    assert pickle.loads(unopened).read(0) is None


def test_its_size_is_said_before_it_is_written(tmp_path, caplog):
    caplog.set_level("INFO")
    RowCache(tmp_path / "cache", {}, [10**7], "test rows")
    assert "caching test rows (0.01 GB)" in caplog.text and "--no_cache" in caplog.text
    assert next(tmp_path.glob("cache_*/rows.bin")).stat().st_size == 10**7


def test_a_disk_without_room_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(UserError, match=r"needs 0.00 GB in .*: only 0.00 GB are free there; .*--cache_dir.*--no_cache"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache_dir"):
        make(tmp_path / "file")


def _fill(folder: Path) -> None:
    cache = make(folder, "new")
    for row, content in enumerate(ROWS):
        cache.write(row, content)


def test_processes_that_start_at_once_on_a_stale_cache_agree(tmp_path):
    make(tmp_path, "new").write(0, ROWS[0][::-1])
    next(tmp_path.glob("cache_*/cache.json")).write_text("{}")
    context = multiprocessing.get_context("fork")  # to start anew takes seconds
    workers = [context.Process(target=_fill, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    cache = make(tmp_path, "new")
    assert all(np.array_equal(cache.read(row), content) for row, content in enumerate(ROWS))


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_rows_of_any_bytes_come_back(tmp_path_factory, rows):
    cache = make(tmp_path_factory.mktemp("any"), sizes=[len(row) for row in rows])
    for i, row in enumerate(rows):
        cache.write(i, np.frombuffer(row, dtype=np.uint8))
    assert [bytes(cache.read(i)) for i in range(len(rows))] == rows


def test_the_folder_is_the_users_unless_given(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder(None) == Path("/somewhere/smart_iqa")
    assert cache_folder("here") == Path("here")


GB = 1e-9  # of one byte, as limits are given


def lying(root: Path, name: str, size: int, used: int, **how) -> RowCache:
    """A cache of one row, last used at a time."""
    cache = RowCache(root / "db" / name, {}, [size], "test rows", **how)
    for file in cache.folder.iterdir():
        os.utime(file, (used, used))
    return cache


def left(root: Path) -> list[str]:
    return sorted(path.name.rpartition("_")[0] for path in (root / "db").iterdir() if path.is_dir())


def test_a_limit_removes_the_caches_that_were_used_longest_ago_and_none_in_use(tmp_path):
    for used, name in enumerate(["new", "older", "oldest"][::-1], start=1):
        lying(tmp_path, name, 1_000_000, used)
    held = lying(tmp_path, "held", 1_000_000, 0)
    RowCache(tmp_path / "db" / "made", {}, [1_000_000], "test rows", limit=3_100_000 * GB)
    assert left(tmp_path) == ["held", "made", "new"]
    with pytest.raises(UserError, match=r"cache_limit is 0\.0015 GB, and test rows need 0\.00 GB beside 0\.00 in use"):
        RowCache(tmp_path / "db" / "more", {}, [1_000_000], "test rows", limit=1_500_000 * GB)
    assert left(tmp_path) == ["held"] and held.folder.is_dir()


def test_opening_a_cache_is_using_it(tmp_path):
    for used, name in enumerate(["first", "second"], start=1):
        lying(tmp_path, name, 1_000_000, used)
    RowCache(tmp_path / "db" / "first", {}, [1_000_000], "test rows")
    RowCache(tmp_path / "db" / "made", {}, [1_000_000], "test rows", limit=2_100_000 * GB)
    assert left(tmp_path) == ["first", "made"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no blocks")
def test_rows_that_nobody_will_write_take_no_disk(tmp_path, caplog):
    caplog.set_level("INFO")
    cache = RowCache(tmp_path / "db" / "cache", {}, [1_000_000] * 10, "test rows", piecewise=True)
    (on_disk,) = caches_on_disk(tmp_path)
    assert on_disk.size < 100_000 and not caplog.records
    cache.reserve([7, 2, 2])
    cache.write(7, np.ones(1_000_000, np.uint8))
    cache.reserve([2, 7, 9])
    (on_disk,) = caches_on_disk(tmp_path)
    assert 3_000_000 <= on_disk.size < 3_200_000
    assert [r.message.split(" in ")[0] for r in caplog.records] == ["caching test rows (0.00 GB)"] * 2
    assert cache.read(7).all() and cache.read(2) is None
    with pytest.raises(UserError, match="cache_limit is 0.005 GB, and test rows need 0.01 GB"):
        RowCache(tmp_path / "db" / "other", {}, [1_000_000] * 9, "test rows", 5e-3, piecewise=True).reserve(range(9))
