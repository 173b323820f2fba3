"""A collection -> shards: what is found in folders, tables and tars, and that the same images are the same shard."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from smart_iqa import shards
from smart_iqa.shards import images_of, shard_from, shards_of


def content(number: int) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), number % 256, np.uint8)).save(file, format="png")
    return file.getvalue()


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Five images in a folder."""
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(content(number))
    return list(map(str, paths))


def write_tar(file: Path, members: dict[str, bytes], mode: str = "w") -> str:
    with tarfile.open(file, mode) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return str(file)


def write_table(file: Path, columns: dict, **options) -> str:
    parquet.write_table(pa.table(columns), file, **options)
    return str(file)


def found_in(*names) -> list[tuple[str, bytes | str]]:
    """What the images of a collection are called, with their bytes, or their problem."""
    found = [found for shard in shards_of(list(map(str, names))) for found in images_of(shard_from(shard.text))]
    return [(f.path, f.problem or (Path(f.source).read_bytes() if isinstance(f.source, str) else f.source.read()))
            for f in found]  # fmt: skip


def names_of(*names) -> list[str]:
    return [shard.name for shard in shards_of(list(map(str, names)))]


def test_image_files_of_folders_patterns_and_lists_are_found_under_the_names_they_have(files, tmp_path, monkeypatch):
    expected = [(path, Path(path).read_bytes()) for path in files]
    assert found_in(tmp_path) == found_in(tmp_path / "images" / "*.png") == expected
    listed = list(shards_of(["-"], io.BytesIO("\n".join(files).encode())))
    assert [found.path for found in images_of(listed[0])] == files
    monkeypatch.chdir(tmp_path)
    there = list(shards_of(["images"]))[0]
    monkeypatch.chdir("/")  # as a worker may stand elsewhere
    assert [(f.path, Path(f.source).read_bytes()) for f in images_of(there)] == [
        (f"images/{n}.png", data) for n, (_, data) in enumerate(expected)
    ]


def test_a_name_that_leads_to_nothing_is_an_image_with_a_problem(files):
    (called, data), (missing, problem) = found_in(files[0], "nowhere.png")
    assert (called, missing) == (files[0], "nowhere.png") and "no file or folder at nowhere.png" in problem


@pytest.mark.parametrize("column", ["path", "image"])
def test_a_table_of_paths_names_files_from_the_place_where_it_lies(files, tmp_path, column):
    table = write_table(tmp_path / "paths.parquet", {column: ["images/3.png", files[1], None], "mos": [1.0, 2.0, 3.0]})
    (first, second), (absolute, other), (called, problem) = found_in(table)
    assert (first, absolute, called) == ("images/3.png", files[1], f"{table}#2")
    assert (second, other) == (content(3), content(1)) and problem == f"row 2 of {table} has no image"


@pytest.mark.parametrize(
    "columns, called",
    [
        ({"bytes": [content(0), content(1)]}, ["{table}#0", "{table}#1"]),
        ({"bytes": [content(0), content(1)], "path": ["a", "b"]}, ["a", "b"]),
        ({"bytes": [content(0), content(1)], "image": ["a", "b"]}, ["a", "b"]),
        ({"bytes": [content(0), content(1)], "image": ["a", "b"], "path": ["c", None]}, ["c", "{table}#1"]),
        ({"image": [content(0), content(1)]}, ["{table}#0", "{table}#1"]),
        ({"image": [{"bytes": content(0), "path": "a"}, {"bytes": content(1), "path": None}]}, ["a", "{table}#1"]),
    ],
)
def test_a_table_of_bytes_names_them_by_path_else_image_else_row(tmp_path, columns, called):
    table = write_table(tmp_path / "bytes.parquet", columns)
    assert found_in(table) == [(name.format(table=table), content(n)) for n, name in enumerate(called)]


def test_rows_of_a_table_are_shards_whatever_its_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST", 10)
    monkeypatch.setattr(shards, "_READ_AT_ONCE", 4)
    for size in (1, 3, 7, 64):
        table = write_table(tmp_path / "many.parquet", {"bytes": [bytes([n]) for n in range(25)]}, row_group_size=size)
        assert [tuple(shard.rows) for shard in shards_of([table])] == [(0, 10), (10, 20), (20, 25)]
        assert found_in(table) == [(f"{table}#{n}", bytes([n])) for n in range(25)]


def test_a_table_without_images_is_a_problem_that_says_its_columns(tmp_path):
    table = write_table(tmp_path / "other.parquet", {"mos": [1.0], "image": [3]})
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    (_, columns), (torn, reason) = found_in(table, tmp_path / "torn.parquet")
    assert columns == f"{table}: expected a column bytes, or path or image with paths; it has mos, image"
    assert torn == str(tmp_path / "torn.parquet") and "cannot be read" in reason


def test_rows_that_cannot_be_read_are_images_with_a_problem(tmp_path):
    table = write_table(
        tmp_path / "bytes.parquet",
        {"bytes": [os.urandom(5000) for _ in range(6)]},
        row_group_size=3,
        compression="gzip",
    )
    shard = list(shards_of([table]))[0]
    data = bytearray(Path(table).read_bytes())
    half = len(data) // 2
    data[half : half + 9000] = bytes(9000)
    Path(table).write_bytes(data)
    found = list(images_of(shard))
    assert [each.path for each in found] == [f"{table}#{n}" for n in range(6)]
    assert [bool(each.problem) for each in found] == [False] * 3 + [True] * 3
    Path(table).unlink()
    assert all("cannot be read" in each.problem for each in images_of(shard)) and len(list(images_of(shard))) == 6


@pytest.mark.parametrize("ending, mode", [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
def test_a_tar_is_a_shard_of_the_images_in_it(tmp_path, ending, mode):
    members = {"000.jpg": content(0), "000.json": b"{}", "inner/001.PNG": content(1), "001.cls": b"3"}
    tar = write_tar(tmp_path / f"part.{ending}", members, mode)
    assert found_in(tmp_path) == [(f"{tar}/000.jpg", content(0)), (f"{tar}/inner/001.PNG", content(1))]


def test_what_a_torn_tar_still_has_is_there_and_the_rest_is_a_problem(tmp_path):
    tar = write_tar(tmp_path / "part.tar", {f"{n}.png": content(n) for n in range(4)})
    Path(tar).write_bytes(Path(tar).read_bytes()[: 2 * 1024 + 530])
    *whole, (called, problem) = found_in(tar)
    assert whole == [(f"{tar}/{n}.png", content(n)) for n in range(2)]
    assert called == tar and f"{tar} cannot be read beyond 2 images" in problem
    empty = write_tar(tmp_path / "empty.tar", {"a.json": b"{}"})
    assert f"no image in {empty}" in found_in(empty)[0][1]


def touch(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    paths = [folder / f"{number:05}.png" for number in range(count)]
    for path in paths:
        path.touch()
    return list(map(str, paths))


def test_one_more_image_changes_one_shard_or_two_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FEWEST", 8)
    monkeypatch.setattr(shards, "MOST", 64)
    touch(tmp_path / "many", 1000)
    before = names_of(tmp_path)
    assert len(before) > 20 and before == names_of(tmp_path)
    (tmp_path / "many" / "00100a.png").touch()
    after = names_of(tmp_path)
    assert len(set(before) - set(after)) <= 2 and len(set(after) - set(before)) <= 2


def test_shards_of_files_hold_them_all_in_order_and_not_too_many(tmp_path):
    paths = touch(tmp_path / "many", 3000)
    found = list(shards_of([str(tmp_path)]))
    sizes = [len(shard.images) for shard in found]
    assert [path for shard in found for path, _ in shard.images] == paths
    assert min(sizes[:-1]) >= shards.FEWEST and max(sizes) <= shards.MOST


def test_a_changed_file_is_another_shard(files, tmp_path):
    table = write_table(tmp_path / "paths.parquet", {"path": files})
    tar = write_tar(tmp_path / "part.tar", {"0.png": content(0)})
    before = [names_of(name) for name in (*files[:1], table, tar)]
    for name in (files[0], table, tar):
        os.utime(name, (1, 1))
    assert not any(a == b for a, b in zip(before, [names_of(name) for name in (*files[:1], table, tar)], strict=True))


def test_a_name_that_is_not_utf_8_comes_through(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(path).write_bytes(content(1))
    assert found_in(tmp_path) == [(path, content(1))]
