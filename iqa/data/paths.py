"""What a user names on a command line -> image files: files, folders, patterns, lists. Needs no torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from iqa.data.images import NamedBytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".ppm", ".pgm")
LIST = "-"  # in the place of a path: standard input has a list of them
_READ_AT_ONCE = 1 << 16  # bytes of a list


class Found(NamedTuple):
    """One image, or a name that leads to none: then `problem` says why.

    `source` is what is opened where that is not `path`: another path to the file, or the image's bytes.
    """

    path: str
    problem: str = ""
    source: str | NamedBytes | None = None


def find_images(
    names: Sequence[str], listed: BinaryIO | None = None, endings: tuple[str, ...] = IMAGE_SUFFIXES
) -> Iterator[Found]:
    """Every image that is named, once, as they are found; a name that leads to none is found with its problem.

    Args:
        names: files, which are taken as given; folders, of which every file with an image's ending is taken, those
            of inner folders too, sorted; patterns (`*`, `?`, `[...]`, and `**` for any folders), sorted; `-`.
        listed: what `-` means: names as above, one a line, or each ended by a zero byte (as `find -print0` does).
        endings: of the files that a folder is searched for.
    """
    seen: set[str] = set()
    for name in names:
        for inner in _listed(listed) if name == LIST and listed is not None else [name]:
            for found in _leads_to(inner, endings):
                if found.path not in seen:
                    seen.add(found.path)
                    yield found


def _leads_to(name: str, endings: tuple[str, ...]) -> Iterator[Found]:
    path = Path(name)
    try:
        if path.is_dir():
            nothing = f"no image in {path}: known endings are {' '.join(endings)}"
            yield from _or_problem(_inside(path, endings), name, nothing)
        elif not path.exists() and glob.has_magic(name):
            yield from _or_problem(_matches(name, endings), name, f"no file matches {name}")
        else:
            yield Found(str(path), "" if path.is_file() else f"no file or folder at {path}")
    except OSError as error:  # a name too long, a folder closed to us
        yield Found(name, f"{name} cannot be looked at: {error.strerror}")


def _matches(pattern: str, endings: tuple[str, ...]) -> Iterator[Found]:
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    for match in map(Path, sorted(matches)):
        yield from _inside(match, endings) if match.is_dir() else [Found(str(match))]


def _or_problem(all_found: Iterator[Found], name: str, problem: str) -> Iterator[Found]:
    """What is found, or the problem where that is nothing."""
    yield next(all_found, Found(name, problem))
    yield from all_found


def _inside(folder: Path, endings: tuple[str, ...]) -> Iterator[Found]:
    """The files of a folder with one of the endings, and of those inside it, sorted by their parts.

    Links to folders are not followed.
    """
    try:
        with os.scandir(folder) as entries:
            inner = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Found(str(folder), f"folder {folder} cannot be read: {error.strerror}")
        return
    for entry in inner:
        if entry.is_dir(follow_symlinks=False):
            yield from _inside(Path(entry.path), endings)
        elif entry.name.lower().endswith(endings) and entry.is_file():
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
