"""What a user names on a command line -> image files: files, folders, patterns, lists. Needs no torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".ppm", ".pgm")
LIST = "-"  # in the place of a path: standard input has a list of them
_READ_AT_ONCE = 1 << 16  # bytes of a list


class Found(NamedTuple):
    """One image file, or a name that leads to none: then `problem` says why."""

    path: str
    problem: str = ""


def find_images(names: Sequence[str], listed: BinaryIO | None = None) -> Iterator[Found]:
    """Every image that is named, once, as they are found; a name that leads to none is found with its problem.

    Args:
        names: files, which are taken as given; folders, of which every file with an image's ending is taken, those
            of inner folders too, sorted; patterns (`*`, `?`, `[...]`, and `**` for any folders), sorted; `-`.
        listed: what `-` means: names as above, one a line, or each ended by a zero byte (as `find -print0` does).
    """
    seen: set[str] = set()
    for name in names:
        for inner in _listed(listed) if name == LIST and listed is not None else [name]:
            for found in _leads_to(inner):
                if found.path not in seen:
                    seen.add(found.path)
                    yield found


def _leads_to(name: str) -> Iterator[Found]:
    path = Path(name)
    try:
        if path.is_dir():
            nothing = f"no image in {path}: known endings are {' '.join(IMAGE_SUFFIXES)}"
            yield from _or_problem(_inside(path), name, nothing)
        elif not path.exists() and glob.has_magic(name):
            yield from _or_problem(_matches(name), name, f"no file matches {name}")
        else:
            yield Found(str(path), "" if path.is_file() else f"no file or folder at {path}")
    except OSError as error:  # a name too long, a folder closed to us
        yield Found(name, f"{name} cannot be looked at: {error.strerror}")


def _matches(pattern: str) -> Iterator[Found]:
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    for match in map(Path, sorted(matches)):
        yield from _inside(match) if match.is_dir() else [Found(str(match))]


def _or_problem(all_found: Iterator[Found], name: str, problem: str) -> Iterator[Found]:
    """What is found, or the problem where that is nothing."""
    yield next(all_found, Found(name, problem))
    yield from all_found


def _inside(folder: Path) -> Iterator[Found]:
    """The image files of a folder and of those inside it, sorted by their parts; links to folders are not followed."""
    try:
        with os.scandir(folder) as entries:
            inner = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Found(str(folder), f"folder {folder} cannot be read: {error.strerror}")
        return
    for entry in inner:
        if entry.is_dir(follow_symlinks=False):
            yield from _inside(Path(entry.path))
        elif entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
            yield Found(entry.path)


def _listed(stream: BinaryIO) -> Iterator[str]:
    """The names of a list, as they come."""
    rest, end = b"", b""
    while some := stream.read1(_READ_AT_ONCE):
        rest += some
        end = end or next((mark for mark in (b"\0", b"\n") if mark in rest), b"")
        if end:
            *names, rest = rest.split(end)
            yield from map(os.fsdecode, filter(None, (_trimmed(name, end) for name in names)))
    if name := _trimmed(rest, end):
        yield os.fsdecode(name)


def _trimmed(name: bytes, end: bytes) -> bytes:
    return name if end == b"\0" else name.rstrip(b"\r\n")
