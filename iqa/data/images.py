"""Image files: decoding to upright 8-bit RGB, and the check that every image of a database opens. Needs no torch.

An image file -> `open_rgb` -> pixels; image files -> `check_images` -> one `ImageFile` each: the hash of its bytes
and, where it cannot be decoded to the end, the reason. A database is checked whole at every start, so good results
are kept in a cache, under path, size and time of last change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from iqa.data.cache import cache_folder
from iqa.errors import UserError
from iqa.system import progress, write_json

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


def check_images(paths: Sequence[Path], cache_key: str, cache_dir: str | None = None) -> list[ImageFile]:
    """Check many images with a few threads, trusting the cache for files that have not changed.

    Args:
        paths: image files that exist.
        cache_key: names the cache file; the root of the database, so that databases do not share one.
        cache_dir: where the cache file lies; None takes the user's cache folder.

    Returns:
        one `ImageFile` per path, in order.
    """
    cache_path = cache_folder(cache_dir) / f"{_digest(cache_key.encode())}.json"
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


_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap width and height
_DRAFT = 2  # JPEG is decoded at no less than this times the wanted size: what is left to resize hides the shortcut


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once its orientation tag is applied; reads the header only."""
    turned = image.getexif().get(_ORIENTATION) in _TURNED
    return (image.height, image.width) if turned else image.size


def open_rgb(path: str | Path, wanted: Callable[[int, int], tuple[int, int]] | None = None) -> Image.Image:
    """An image file as 8-bit RGB, upright.

    16-bit greyscale is scaled to 8 bits, transparency is laid over white (as a viewer shows it), palette,
    grey and CMYK are converted, and a camera's orientation tag is applied.

    Args:
        path: the file.
        wanted: the size (width, height) it will be brought to, from the upright size: the picture is resized to it,
            and a JPEG far larger is decoded at a fraction of its size.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            size = wanted(*upright_size(image)) if wanted else None
            if size:
                image.draft(None, (_DRAFT * max(size), _DRAFT * max(size)))
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255
                wide = np.asarray(image, dtype=np.float64)
                image = Image.fromarray(np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            return image if size in (None, image.size) else image.resize(size, Image.Resampling.BICUBIC)
    except DECODE_ERRORS as error:
        raise UserError(f"image {path} cannot be read: {error}") from error
