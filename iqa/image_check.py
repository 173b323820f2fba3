"""Does every image of a database open, and what are its bytes? Used by `folders.py` only.

Image files -> one `ImageFile` each: the hash of its bytes and, where it cannot be decoded to the end, the
reason. A database is checked whole at every start, so good results are kept in a cache in the user's cache
folder, under path, size and time of last change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from iqa.files import write_json
from iqa.progress import progress

_log = logging.getLogger(__name__)
# What Pillow's decoders raise on damaged files; anything else is a mistake of ours and must surface.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class ImageFile(NamedTuple):
    """What the check found: `file_hash` (hex, "" if unreadable) and `problem` ("" if the image is whole)."""

    file_hash: str
    problem: str


def check_image(path: Path) -> ImageFile:
    """Read a file, hash its bytes and decode it to the last row.

    Args:
        path: an image file.

    Returns:
        hash and problem; a truncated file is a problem even where its header opens.
    """
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)) as image:
            # JPEG only: reads every coded byte but computes 1/64 of the pixels.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except DECODE_ERRORS as error:
        return ImageFile("", f"does not open as an image ({_one_line(error)})")
    return ImageFile(_digest(content), "")


def file_hash(path: Path) -> str:
    """Hash of a file's bytes (BLAKE2b, 128 bits, hex), without decoding it."""
    return _digest(path.read_bytes())


def check_images(paths: Sequence[Path], cache_key: str) -> list[ImageFile]:
    """Check many images with a few threads, trusting the cache for files that have not changed.

    Args:
        paths: image files that exist.
        cache_key: names the cache file; the root of the database, so that databases do not share one.

    Returns:
        one `ImageFile` per path, in order.
    """
    cache_path = _cache_folder() / f"{_digest(cache_key.encode())}.json"
    cached = _read_cache(cache_path)
    keys = [_key(path) for path in paths]
    unknown = [path for path, key in zip(paths, keys, strict=True) if key not in cached]
    checked = dict(zip(unknown, _check_in_threads(unknown), strict=True))
    files = [
        checked[path] if path in checked else ImageFile(cached[key], "") for path, key in zip(paths, keys, strict=True)
    ]
    if unknown:
        found = {key: file.file_hash for key, file in zip(keys, files, strict=True) if not file.problem}
        _write_cache(cache_path, cached | found)
    return files


def _check_in_threads(paths: Sequence[Path]) -> list[ImageFile]:
    workers = min(8, max(2, os.cpu_count() or 2))
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(check_image, paths)
        return list(progress(results, "check images", total=len(paths)))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _one_line(error: BaseException) -> str:
    """Pillow names the BytesIO object in its text, which helps nobody: keep what stands before it."""
    return str(error).splitlines()[0].split(" <_io.BytesIO")[0] if str(error) else type(error).__name__


def _key(path: Path) -> str:
    status = path.stat()
    return f"{path}|{status.st_size}|{status.st_mtime_ns}"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smart_iqa"


def _read_cache(path: Path) -> dict[str, str]:
    """The cache, or an empty one where there is none that can be read: it only saves time."""
    try:
        cached = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return cached if isinstance(cached, dict) else {}


def _write_cache(path: Path, cached: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, cached)
    except OSError as error:
        _log.warning("image check not cached, the next start checks again: %s", error)
