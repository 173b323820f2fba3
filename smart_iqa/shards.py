"""A collection of images -> shards, each scored by one worker and written to one file. Needs no torch.

    files, folders, patterns, lists -[shards_of]-> shards -[images_of]-> images, those of tables and tars as bytes

A shard is some hundred image files, up to 1,024 rows of a Parquet file, or one tar, as WebDataset has them. Its name is
a hash of what it is made of: paths with the files' sizes and times. Where a run of image files ends follows from their
paths, so that one more image changes one shard, not all after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from iqa.data import IMAGE_SUFFIXES, Found, NamedBytes, find_images

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

PARQUET = (".parquet",)
TARS = (".tar", ".tar.gz", ".tgz")
ENDINGS = (*IMAGE_SUFFIXES, *PARQUET, *TARS)
FEWEST, MOST = 256, 1024  # image files of a shard; no more rows either
_READ_AT_ONCE, _BUFFER = 32, 1 << 20  # rows, and bytes of a column
_BYTES, _NAMES = ("bytes", "image.bytes", "image"), ("path", "image.path", "image")  # columns, the first that is there


class Shard(NamedTuple):
    """A part of a collection.

    Attributes:
        name: a hash of what it is made of.
        folder: that paths are relative to.
        file: Parquet or tar, as it was named; "" where the shard is of image files.
        rows: of a Parquet file: the first, and the one after the last.
        images: path and problem of image files.
    """

    name: str
    folder: str
    file: str = ""
    rows: Sequence[int] = (0, 0)
    images: Sequence[Sequence[str]] = ()

    @property
    def text(self) -> str:
        """The shard as `shard_from` reads it; bytes of a path that are not UTF-8 are kept."""
        return json.dumps(self)


def shard_from(text: str) -> Shard:
    """The shard that `Shard.text` is of."""
    return Shard(*json.loads(text))


def shards_of(names: Sequence[str], listed: BinaryIO | None = None) -> Iterator[Shard]:
    """The shards of everything that is named; a name that leads to nothing is an image with a problem.

    Args:
        names: as `iqa.data.find_images` takes them, of images, Parquet files and tars.
        listed: what `-` means.
    """
    here, files = str(Path.cwd()), list[Found]()
    for found in find_images(names, listed, ENDINGS):
        ending = "" if found.problem else found.path.lower()
        if ending.endswith(TARS):
            yield _shard(here, found.path)
        elif ending.endswith(PARQUET) and not (problem := _table_problem(found.path)):
            yield from _of_table(here, found.path)
        else:
            files.append(found._replace(problem=problem) if ending.endswith(PARQUET) else found)
            if len(files) == MOST or (len(files) >= FEWEST and _ends_a_shard(found.path)):
                yield _of_files(here, files)
                files = []
    if files:
        yield _of_files(here, files)


def _ends_a_shard(path: str) -> bool:
    return zlib.crc32(os.fsencode(path)) % FEWEST == 0


def _of_files(folder: str, files: Sequence[Found]) -> Shard:
    images = [(found.path, found.problem) for found in files]
    return Shard(_hash([(*image, _stamp(image[0])) for image in images]), folder, images=images)


def _of_table(folder: str, file: str) -> Iterator[Shard]:
    from pyarrow.parquet import read_metadata

    count = read_metadata(file).num_rows
    for first in range(0, count, MOST):
        yield _shard(folder, file, (first, min(count, first + MOST)))


def _shard(folder: str, file: str, rows: tuple[int, int] = (0, 0)) -> Shard:
    return Shard(_hash([file, rows, _stamp(file)]), folder, file, rows)


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=12).hexdigest()


def _stamp(file: str) -> list[int]:
    """Size and time of the last change of a file, nothing where there is none."""
    try:
        status = os.stat(file)  # noqa: PTH116 (a Path takes ten times as long)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def images_of(shard: Shard) -> Iterator[Found]:
    """The images of a shard, always in the same order; what cannot be read is there with its problem."""
    if not shard.file:
        for path, problem in shard.images:
            yield Found(path, problem, os.path.join(shard.folder, path))  # noqa: PTH118 (keeps what bytes it has)
    elif shard.file.lower().endswith(PARQUET):
        yield from _rows_of(shard)
    else:
        yield from _members_of(shard)


def _members_of(shard: Shard) -> Iterator[Found]:
    """The images of a tar, called TAR/MEMBER."""
    count = 0
    try:
        with tarfile.open(Path(shard.folder, shard.file), "r|*") as tar:
            for member in tar:
                if member.name.lower().endswith(IMAGE_SUFFIXES) and (content := tar.extractfile(member)) is not None:
                    name = f"{shard.file}/{member.name}"
                    yield Found(name, source=NamedBytes(name, content.read()))
                    count += 1
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        yield Found(shard.file, f"{shard.file} cannot be read beyond {count} images: {_first_line(error)}")
        return
    if not count:
        yield Found(shard.file, f"no image in {shard.file}: known endings are {' '.join(IMAGE_SUFFIXES)}")


def _rows_of(shard: Shard) -> Iterator[Found]:
    """The images of a Parquet file's rows; of a row group that is broken what follows the last whole row is lost."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    first, end = shard.rows
    try:
        table = ParquetFile(Path(shard.folder, shard.file), buffer_size=_BUFFER)
    except (OSError, ArrowException) as error:
        yield from _lost(shard, first, end, error)
        return
    with table:
        following = 0
        for group in range(table.num_row_groups):
            start, following = following, following + table.metadata.row_group(group).num_rows
            number, last = max(first, start), min(end, following)
            try:
                for cells in islice(_cells(table, group), number - start, last - start) if number < last else ():
                    yield _of_row(shard, number, *cells)
                    number += 1
            except (OSError, ArrowException) as error:
                yield from _lost(shard, number, last, error)


def _lost(shard: Shard, first: int, end: int, error: Exception) -> Iterator[Found]:
    problem = f"{shard.file} cannot be read: {_first_line(error)}"
    return (Found(f"{shard.file}#{row}", problem) for row in range(first, end))


def _of_row(shard: Shard, number: int, content: bytes | None, name: str | None) -> Found:
    """A row's image, called as its column says, else FILE#ROW."""
    called = f"{shard.file}#{number}" if name is None else name
    if content is not None:
        return Found(called, source=NamedBytes(called, content))
    if name is not None:
        return Found(called, source=str(Path(shard.folder, shard.file).parent / name))
    return Found(called, f"row {number} of {shard.file} has no image")


def _cells(table: ParquetFile, group: int) -> Iterator[tuple[bytes | None, str | None]]:
    """Bytes and name of the rows of a row group."""
    import pyarrow

    columns = _columns(table.schema_arrow)
    for batch in table.iter_batches(_READ_AT_ONCE, [group], [name for name in columns if name]):
        flat = pyarrow.Table.from_batches([batch]).flatten()
        yield from zip(*(flat[name].to_pylist() if name else [None] * len(flat) for name in columns), strict=True)


def _columns(schema: pyarrow.Schema) -> tuple[str | None, str | None]:
    """The columns of images' bytes and of their names."""
    from pyarrow import types

    kinds = {field.name: field.type for field in schema.empty_table().flatten().schema}
    kinds = {name: kind.value_type if types.is_dictionary(kind) else kind for name, kind in kinds.items()}
    binary = [name for name in _BYTES if name in kinds and _is(kinds[name], "binary")]
    text = [name for name in _NAMES if name in kinds and _is(kinds[name], "string")]
    return next(iter(binary), None), next(iter(text), None)


def _is(kind: pyarrow.DataType, name: str) -> bool:
    return str(kind) in (name, f"large_{name}", f"{name}_view")


def _table_problem(file: str) -> str:
    """Why a Parquet file holds no images, "" if it does."""
    import pyarrow
    from pyarrow.parquet import read_schema

    try:
        schema = read_schema(file)
    except (OSError, pyarrow.ArrowException) as error:
        return f"{file} cannot be read: {_first_line(error)}"
    if any(_columns(schema)):
        return ""
    return f"{file}: expected a column bytes, or path or image with paths; it has {', '.join(schema.names)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
