"""Rows of bytes on disk, made once and read from memory-mapped files: pixels of images, features of crops.

Stands beside `data_loader` and `frozen_features`, which make the rows. Each row has a checksum, written after
the row itself, so whatever was stopped half-way (a kill, a power cut, another process) is made again and never
read. Processes may fill one cache at the same time: what they write is the same.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from iqa.errors import UserError, WriteError
from iqa.system import write_atomically

_log = logging.getLogger(__name__)
_CHECKS = (
    "checked_*.npy",
    "network_*.onnx",
    "perceptual_hashes.npy",
    "[0-9a-f]" * 32 + ".json",
)  # of images; the last is how 0.1.0 wrote them at first
_MADE = 1 << 32  # set in the mark of a row that is there; the low half is its CRC-32


def cache_folder(given: str | None) -> Path:
    """Where caches lie: as given, else `smart_iqa` in the user's cache folder."""
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smart_iqa"


def read_records(path: Path, kind: np.dtype) -> np.ndarray:
    """Read what is kept of files, sorted by `key`; nothing where that cannot be read, since it only saves time."""
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.zeros(0, kind)
    return kept if kept.dtype == kind and kept.ndim == 1 else np.zeros(0, kind)


def take_known(records: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Fill in the records (n,) whose key is kept; returns the rows of the others."""
    if not len(kept):
        return np.arange(len(records))
    places = np.searchsorted(kept["key"], records["key"]).clip(max=len(kept) - 1)
    known = kept["key"][places] == records["key"]
    records[known] = kept[places[known]]
    return np.flatnonzero(~known)


def write_records(path: Path, records: np.ndarray) -> None:
    """Keep what is known of files; a folder that cannot be written is a warning."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would add an ending
            np.save(file, np.sort(records, order="key"), allow_pickle=False)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except (OSError, WriteError) as error:
        _log.warning("not kept for the next start: %s", error)


class CacheOnDisk(NamedTuple):
    """A cache on disk: its name within the cache folder, its bytes, and when it was last used."""

    name: str
    size: int
    changed: float


def caches_on_disk(folder: Path) -> list[CacheOnDisk]:
    """List the caches in a cache folder, largest first; other files there are passed over."""
    caches = [file.parent for pattern in ("*/cache.json", "*/*/cache.json") for file in folder.glob(pattern)]
    caches += [file for pattern in _CHECKS for file in folder.glob(pattern) if file.is_file()]
    found = []
    for cache in caches:
        files = list(cache.iterdir()) if cache.is_dir() else [cache]
        status = [file.stat() for file in files]
        size = sum(getattr(s, "st_blocks", s.st_size / 512) * 512 for s in status)
        found.append(CacheOnDisk(cache.relative_to(folder).as_posix(), int(size), max(s.st_mtime for s in status)))
    return sorted(found, key=lambda cache: (-cache.size, cache.name))


def remove_cache(folder: Path, cache: CacheOnDisk) -> None:
    """Remove a cache; a process that reads it keeps its open files.

    Raises:
        UserError: it cannot be removed.
    """
    path = folder / cache.name
    try:
        if path.is_dir():
            with FileLock(path.parent / f".{path.name}.lock"):
                shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise UserError(f"{path} cannot be removed: {error.strerror}") from error


def beyond_limit(caches: Sequence[CacheOnDisk], limit: float, keep: Iterable[str] = ()) -> list[CacheOnDisk]:
    """The caches of rows that have to go so that all others take at most `limit` bytes: those used longest ago.

    Args:
        caches: all of them.
        limit: in bytes.
        keep: names of those that stay.
    """
    total, gone, kept = sum(cache.size for cache in caches), [], set(keep)
    for cache in sorted(caches, key=lambda cache: cache.changed):
        if total > limit and "/" in cache.name and cache.name not in kept:  # without: what is known of images
            gone.append(cache)
            total -= cache.size
    return gone


class RowCache:
    """Numbered rows of bytes in one memory-mapped file; a row not made yet reads as None.

    The folder's name ends in a hash of `key` and sizes, so that caches of other things lie beside it. What the folder
    holds is compared with the key by each process that opens it.

    Args:
        folder: where the files lie, without that ending: cache folder, database, kind.
        key: JSON-ready; everything that the rows depend on.
        sizes: bytes of each row, (n,).
        what: names the content in messages.
        limit: gigabytes that all caches of the cache folder may take: others are removed for it. None: no limit.
        piecewise: takes disk space for those rows alone that `reserve` is told of, else for all of them at once.

    Raises:
        UserError: the disk has no room for it, or the limit, or the folder cannot be written.
    """

    _open_here: weakref.WeakSet[RowCache] = weakref.WeakSet()  # of this process: not to be removed

    def __init__(
        self,
        folder: Path,
        key: dict,
        sizes: Sequence[int],
        what: str,
        limit: float | None = None,
        piecewise: bool = False,
    ):
        self.what, self.limit, self.piecewise = what, limit, piecewise
        self.offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._key = json.dumps({"key": key, "bytes": int(self.offsets[-1]), "rows": len(sizes)}, sort_keys=True)
        self.folder = Path(f"{folder}_{hashlib.sha256(self._key.encode()).hexdigest()[:12]}")
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self._checked = np.zeros(len(sizes), dtype=bool)
        self._open_here.add(self)
        self._open()

    def __len__(self) -> int:
        return len(self._checked)

    def __getstate__(self) -> dict:
        """Leave out the maps: each worker process opens its own."""
        return {**self.__dict__, "_maps": None}

    def read(self, row: int) -> np.ndarray | None:
        """The bytes of a row (uint8), or None where it is not made or was damaged.

        The checksum is compared the first time that a process reads a row.
        """
        data, marks = self._open()
        mark = int(marks[row])
        if not mark:
            return None
        content = data[self.offsets[row] : self.offsets[row + 1]]
        if not self._checked[row]:
            if mark != _MADE | zlib.crc32(content):
                return None
            self._checked[row] = True
        return content

    def write(self, row: int, content: np.ndarray) -> None:
        """Store the bytes of a row: first the content, then its mark."""
        data, marks = self._open()
        flat = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        assert len(flat) == self.offsets[row + 1] - self.offsets[row], f"row {row} of {self.what} has another size"
        data[self.offsets[row] : self.offsets[row + 1]] = flat
        marks[row] = _MADE | zlib.crc32(flat)

    def reserve(self, rows: Iterable[int]) -> None:
        """Take the disk space of rows that will be written, so that a full disk shows now and not in a later write.

        Raises:
            UserError: the disk has no room for them, or the limit.
        """
        _, marks = self._open()
        wanted = [row for row in sorted(set(rows)) if not marks[row]]
        size = int(sum(self.offsets[row + 1] - self.offsets[row] for row in wanted))
        if not size:
            return
        self._say("caching", size)
        self._evict(size)
        with self._explaining(size), (self.folder / "rows.bin").open("r+b") as file:
            for row in wanted:
                _take_blocks(file.fileno(), int(self.offsets[row]), int(self.offsets[row + 1] - self.offsets[row]))

    def missing(self, rows: Iterable[int]) -> np.ndarray:
        """Find the rows that `read` would give None for."""
        return np.array([row for row in rows if self.read(row) is None], dtype=np.int64)

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        if self._maps is None:
            self._maps = self._current_maps()
        return self._maps

    def _is_current(self) -> bool:
        try:
            return (self.folder / "cache.json").read_text() == self._key
        except OSError:
            return False

    def _current_maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Open the files, and make them first if they are not there."""
        size = 0 if self.piecewise else int(self.offsets[-1])
        with self._explaining(size):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if not self._is_current():
                self._evict(size)  # takes other caches' locks, so before this one's
            with FileLock(self.folder.parent / f".{self.folder.name}.lock"):  # one of several processes makes it
                if not self._is_current():
                    self._create(size)
                os.utime(self.folder / "cache.json")  # for `evict`
                data = np.memmap(self.folder / "rows.bin", dtype=np.uint8, mode="r+")
                marks = np.memmap(self.folder / "marks.bin", dtype=np.uint64, mode="r+")
        return np.asarray(data), np.asarray(marks)  # plain views: numpy's memmap slices cost 10 us each

    def _evict(self, size: int) -> None:
        """Make room below the limit for so many bytes more."""
        if self.limit is None:
            return
        folder, limit = self.folder.parents[1], self.limit * 1e9 - size
        keep = {
            cache.folder.relative_to(folder).as_posix() for cache in self._open_here if folder in cache.folder.parents
        }
        for cache in beyond_limit(caches_on_disk(folder), limit, keep):
            _log.info("cache_limit: removing %s (%.2f GB)", folder / cache.name, cache.size / 1e9)
            remove_cache(folder, cache)
        if (left := sum(cache.size for cache in caches_on_disk(folder))) > limit:
            raise UserError(
                f"cache_limit is {self.limit:g} GB, and {self.what} need {size / 1e9:.2f} GB beside {left / 1e9:.2f} "
                f"in use in {folder}: raise it, or give --no_cache"
            )

    @contextlib.contextmanager
    def _explaining(self, size: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the cache of {self.what} needs {size / 1e9:.2f} GB in {self.folder.parent}: {error.strerror}; "
                "give another place (--cache_dir) or none (--no_cache), or remove old ones with `smart-iqa cache`"
            ) from error

    def _say(self, does: str, size: int) -> None:
        _log.info(
            "%s %s (%.2f GB) in %s; --cache_dir puts it elsewhere, --no_cache goes without",
            does, self.what, size / 1e9, self.folder,
        )  # fmt: skip

    def _create(self, size: int) -> None:
        """Reserve the files in a folder of another name, then put it in its place."""
        stale = self.folder.exists()
        if size or stale:
            self._say("renewing the stale cache of" if stale else "caching", size)
        if stale:  # its room is needed; a process that reads it keeps its open files
            shutil.rmtree(self.folder)
        with tempfile.TemporaryDirectory(dir=self.folder.parent, ignore_cleanup_errors=True) as temporary:
            new = Path(temporary) / "cache"
            new.mkdir()
            _reserve(new / "rows.bin", max(1, int(self.offsets[-1])), at_once=not self.piecewise)
            _reserve(new / "marks.bin", 8 * max(1, len(self.offsets) - 1))
            (new / "cache.json").write_text(self._key)
            new.rename(self.folder)


def _reserve(path: Path, size: int, at_once: bool = True) -> None:
    """Write zeros whose blocks are taken at once, so that a full disk shows here and not in a later write."""
    free = shutil.disk_usage(path.parent).free
    if at_once and size > free:
        raise OSError(errno.ENOSPC, f"only {free / 1e9:.2f} GB are free there")
    with path.open("wb") as file:
        file.truncate(size)
        if at_once:
            _take_blocks(file.fileno(), 0, size)


def _take_blocks(file: int, start: int, size: int) -> None:
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, start, size)
