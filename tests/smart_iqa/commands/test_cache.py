"""Caches on disk are listed by size, and those that are named are removed; nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import trees
from helpers import command

from iqa.data import RowCache, check_images


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two caches of rows, one of checks, and things of others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "smart_iqa"
    RowCache(folder / "live" / "pixels_none_32", {"a": 1}, [100_000], "test rows").write(0, np.zeros(100_000, np.uint8))
    RowCache(folder / "live" / "features_ab", {"a": 2}, [3_000_000], "test rows")
    trees.image_file(tmp_path / "a.png")
    check_images([tmp_path / "a.png"], "/data/live")
    (folder / "notes.txt").write_text("mine")
    (folder / "live" / "own").mkdir()
    (folder / "live" / "own" / "b.png").write_text("mine")
    return folder


def test_they_are_listed_largest_first_with_their_sizes(caches: Path, capsys) -> None:
    assert command("cache") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    names = [line.split()[-1].rpartition("_")[0] for line in lines]  # each ends in a hash
    assert names == ["live/features_ab", "live/pixels_none_32", "checked_live"]
    assert lines[0].startswith("    0.003 GB") and str(caches) in last


def test_one_is_removed_by_its_name_and_the_rest_stays(caches: Path, capsys) -> None:
    (features,) = (caches / "live").glob("features_ab_*")
    assert command("cache", "--remove", f"live/{features.name}") == 0
    assert f"removed live/{features.name} (0.003 GB)" in capsys.readouterr().out
    assert not features.exists()
    assert RowCache(caches / "live" / "pixels_none_32", {"a": 1}, [100_000], "test rows").read(0) is not None
    assert command("cache", "--all") == 0 and command("cache") == 0
    assert capsys.readouterr().out.endswith(f"no caches in {caches}\n")
    assert (caches / "notes.txt").exists() and (caches / "live" / "own" / "b.png").exists()


def test_a_limit_removes_what_was_used_longest_ago_and_leaves_what_is_known_of_images(caches: Path, capsys) -> None:
    (pixels,) = (caches / "live").glob("pixels_*")
    for file in pixels.iterdir():
        os.utime(file, (1, 1))
    assert command("cache", "--cache_limit", 0.003_06) == 0
    assert f"removed live/{pixels.name} " in capsys.readouterr().out
    assert command("cache", "--cache_limit", 0) == 0
    assert [path.name for path in (caches / "live").iterdir() if path.is_dir()] == ["own"]
    assert list(caches.glob("checked_*"))


@pytest.mark.parametrize("name", ["live", "live/own", "notes.txt", "../a.png", "/", "live/absent"])
def test_what_is_not_a_cache_is_not_removed(name: str, caches: Path, capsys) -> None:
    assert command("cache", "--remove", name) == 2
    assert "no such cache" in capsys.readouterr().err
    assert len(list(caches.rglob("*.*"))) >= 6


def test_another_folder_is_named_and_has_to_be_there(caches: Path, tmp_path: Path, capsys) -> None:
    assert command("cache", "--cache_dir", caches / "live") == 0
    assert "features_ab" in capsys.readouterr().out
    assert command("cache", "--cache_dir", tmp_path / "absent") == 2
    assert command("cache", "--all", "--remove", "a") == 2
