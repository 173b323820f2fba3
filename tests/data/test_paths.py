"""What a user names -> image files: folders, patterns, lists, and names that lead to nothing."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from iqa.data import Found, find_images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", "in/c.webp", "in/deep/d.tif", "empty/readme.md"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    return tmp_path


def paths(*names: object, listed: bytes | None = None) -> list[str]:
    found = list(find_images([str(name) for name in names], listed and io.BytesIO(listed)))
    assert not any(each.problem for each in found)
    return [each.path for each in found]


def test_a_folder_gives_its_images_and_those_of_inner_folders_sorted(tree):
    inside = ["a.JPG", "b.png", "in/c.webp", "in/deep/d.tif"]
    assert paths(tree) == [str(tree / name) for name in inside]


def test_a_file_is_taken_as_given_whatever_its_ending_and_once(tree):
    assert paths(tree / "notes.txt", tree / "b.png", tree)[:3] == [
        str(tree / name) for name in ("notes.txt", "b.png", "a.JPG")
    ]
    assert len(paths(tree, tree)) == 4


def test_a_quoted_pattern_gives_what_the_shell_would_have_given(tree):
    assert paths(tree / "*.[pJ]*") == [str(tree / "a.JPG"), str(tree / "b.png")]
    assert paths(tree / "**" / "*.tif") == [str(tree / "in/deep/d.tif")]
    assert paths(tree / "i*") == [str(tree / "in/c.webp"), str(tree / "in/deep/d.tif")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree):
    (tree / "x[1].png").write_bytes(b"")
    assert paths(tree / "x[1].png") == [str(tree / "x[1].png")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_a_list_has_names_by_lines_or_by_zero_bytes_and_its_last_end_may_be_left_out(tree, end):
    names = [tree / "b.png", tree / "in"]
    listed = end.join(os.fsencode(name) for name in names)
    expected = [str(tree / name) for name in ("b.png", "in/c.webp", "in/deep/d.tif")]
    assert paths("-", listed=listed) == paths("-", listed=listed + end) == expected


def test_in_a_list_by_zero_bytes_a_name_may_have_a_line_break(tree):
    (tree / "two\nlines.png").write_bytes(b"")
    assert paths("-", listed=os.fsencode(tree / "two\nlines.png") + b"\0") == [str(tree / "two\nlines.png")]


def test_a_long_list_is_read_as_it_comes(tree):
    listed = b"".join(os.fsencode(tree / f"{n}.png") + b"\n" for n in range(5000))
    stream = io.BytesIO(listed)
    first = next(find_images(["-"], stream))
    assert first.path == str(tree / "0.png") and stream.tell() < len(listed)


@pytest.mark.parametrize(
    "name, problem",
    [
        ("nowhere.png", "no file or folder at"),
        ("empty", "no image in"),
        ("*.xyz", "no file matches"),
        ("n" * 300, "cannot be looked at"),
        ("zero\0byte", "no file or folder at"),
    ],
)
def test_a_name_that_leads_to_nothing_is_found_with_its_problem(tree, name, problem):
    (found,) = find_images([str(tree / name)])
    assert found.path == str(tree / name) and problem in found.problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any folder")
def test_a_folder_that_is_closed_to_us_is_a_problem(tree):
    (tree / "in").chmod(0)
    assert Found(str(tree / "in"), f"folder {tree / 'in'} cannot be read: Permission denied") in find_images(
        [str(tree)]
    )
