"""Image files: decoding to upright 8-bit RGB, and the check that every image of a database opens. Needs no torch.

An image file -> `open_rgb` -> pixels; image files -> `check_images` -> the hash of each file's bytes, its size in
pixels, and the reason where it cannot be read. What the check calls whole `open_rgb` reads: both open files in one
place. A database is checked whole at every start, so good results are kept in the user's cache folder, under path,
size and time of last change.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from iqa.data.cache import cache_folder, read_records, take_known, write_records
from iqa.errors import UserError
from iqa.system import in_threads

# Pillow warns of an image over its limit of pixels, also of one inside another, and decodes it; here it is refused.
warnings.simplefilter("error", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of damaged tags; the image is read or refused
_REFUSED_FORMATS = {"EPS": "PostScript is a program, and none is run"}
_REFUSED_MODES = {"F": "floating-point pixels", "I": "32-bit pixels"}
_16_BITS_AS_32 = ("PNG", "PPM")  # formats that end at 16 bits, which Pillow opens as mode I
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap width and height
_DRAFT = 2  # JPEG is decoded at no less than this times the wanted size: what is left to resize hides the shortcut
# A line of the check's cache. Text in hexadecimal has no zero byte at its end, which numpy would cut off.
_RECORD = np.dtype([("key", "S32"), ("file_hash", "S32"), ("width", "<u4"), ("height", "<u4")])


class ImageFile(NamedTuple):
    """One checked file: `file_hash` (hex, "" if unreadable), `problem` ("" if whole), upright size in pixels."""

    file_hash: str
    problem: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Many checked files, in columns.

    Attributes:
        file_hash: (n,) hex as bytes, b"" if unreadable.
        size: (n, 2) upright width and height in pixels, 0 if unreadable.
        problems: reasons by row, of the unreadable ones only.
    """

    file_hash: np.ndarray
    size: np.ndarray
    problems: dict[int, str]

    def __len__(self) -> int:
        return len(self.file_hash)

    def __getitem__(self, row: int) -> ImageFile:
        return ImageFile(self.file_hash[row].decode(), self.problems.get(row, ""), *self.size[row].tolist())


class NamedBytes(BytesIO):
    """An image file in memory; its text is its name, which messages about it say.

    Attributes:
        label: the name.
    """

    def __init__(self, name: str, content: bytes = b""):
        super().__init__(content)
        self.label = name

    def __str__(self) -> str:
        return self.label


class ImageFileError(Exception):
    """A file that is not taken as an image; its text is the reason, in one line."""


@contextmanager
def opened(path: str | Path | NamedBytes) -> Iterator[Image.Image]:
    """An image file, its header read and found to be of a kind that is taken; errors of Pillow are `ImageFileError`.

    Refused are what is no image, more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, PostScript, and pixels without a
    known black and white (32-bit integers, floating point, 12 bits).
    """
    with pillow():
        image = Image.open(path)
    with image:
        if reason := _refusal(image):
            raise ImageFileError(reason)
        yield image


@contextmanager
def pillow() -> Iterator[None]:
    """Make an `ImageFileError` of whatever Pillow raises; only its calls stand inside, so that our mistakes surface."""
    try:
        yield
    except Exception as error:
        raise ImageFileError(_one_line(error)) from error


def _refusal(image: Image.Image) -> str:
    """Why an image whose header opens is not taken, "" if it is."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:  # where a filter of warnings has let it pass
        return f"its {image.width} x {image.height} pixels exceed the limit of {limit}; scale it down"
    if image.format in _REFUSED_FORMATS:
        return f"{image.format}: {_REFUSED_FORMATS[image.format]}"
    twelve_bits = image.format == "TIFF" and 12 in image.tag_v2.get(258, ())
    scale = "12-bit pixels" if twelve_bits else _REFUSED_MODES.get(image.mode)
    if scale and not (image.mode == "I" and image.format in _16_BITS_AS_32):
        return f"{scale} have no known black and white; save it with 8 or 16 bits"
    return ""


def check_image(path: str | Path) -> ImageFile:
    """Decode a file to the last row and hash its bytes.

    Args:
        path: an image file.

    Returns:
        hash, problem and size; a truncated file is a problem even where its header opens.
    """
    try:
        with opened(path) as image, pillow():
            width, height = upright_size(image)
            # JPEG only: reads every coded byte but computes 1/64 of the pixels.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
        return ImageFile(file_hash(path), "", width, height)
    except (ImageFileError, OSError) as error:
        return ImageFile("", f"does not open as an image ({_one_line(error)})")


def file_hash(path: str | Path) -> str:
    """Hash of a file's bytes (BLAKE2b, 128 bits, hex), without decoding it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_images(paths: Sequence[str | Path], cache_key: str, cache_dir: str | None = None) -> ImageFiles:
    """Check many images with a few threads, trusting the cache for files that have not changed.

    Args:
        paths: image files.
        cache_key: names the cache file; the root of the database, so that databases do not share one.
        cache_dir: where the cache file lies; None takes the user's cache folder.
    """
    name = f"checked_{Path(cache_key).name[:60]}_{_digest(cache_key.encode())[:12]}.npy"
    cache_path = cache_folder(cache_dir) / name
    cached = read_records(cache_path, _RECORD)
    found, problems = np.zeros(len(paths), _RECORD), {}
    for row, path in enumerate(paths):
        found["key"][row] = _key(path)
    unknown = take_known(found, cached)
    checked = in_threads(check_image, [paths[row] for row in unknown], "check images")
    for row, file in zip(unknown.tolist(), checked, strict=True):
        found[["file_hash", "width", "height"]][row] = file.file_hash.encode(), file.width, file.height
        if file.problem:
            problems[row] = file.problem
    if len(unknown):
        write_records(cache_path, np.concatenate([cached, found[unknown][found["file_hash"][unknown] != b""]]))
    return ImageFiles(found["file_hash"], np.stack([found["width"], found["height"]], axis=1).astype(int), problems)


def image_sizes(paths: Sequence[str]) -> np.ndarray:
    """Upright width and height (n, 2) of image files; reads headers only, with a few threads.

    Raises:
        UserError: a file is missing or is not taken as an image.
    """
    return np.array(list(in_threads(_size, paths, "image sizes")), dtype=int).reshape(-1, 2)


def _size(path: str) -> tuple[int, int]:
    try:
        with opened(path) as image, pillow():
            return upright_size(image)
    except ImageFileError as error:
        raise UserError(f"image {path} cannot be read: {error}") from error


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _one_line(error: BaseException) -> str:
    """Write an error in one line, without the file object that Pillow names at its end."""
    return str(error).splitlines()[0].split(" <_io.")[0] if str(error) else type(error).__name__


def _key(path: str | Path) -> bytes:
    """Make the key of a file as it is now; b"" where there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path takes ten times as long)
    except (OSError, ValueError):
        return b""
    return _digest(f"{path}|{status.st_size}|{status.st_mtime_ns}".encode(errors="surrogateescape")).encode()


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once its orientation tag is applied; reads the header only."""
    # Pillow turns a TIFF by itself, its size already when it is opened.
    turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED
    return (image.height, image.width) if turned else image.size


def open_rgb(
    path: str | Path | NamedBytes | Image.Image, wanted: Callable[[int, int], tuple[int, int]] | None = None
) -> Image.Image:
    """An image file as 8-bit RGB, upright; of an animation or of several pages the first.

    16-bit greyscale is scaled to 8 bits, transparency is laid over white (as a viewer shows it), palette,
    grey and CMYK are converted, and a camera's orientation tag is applied.

    Args:
        path: the file, its bytes, or an image that Pillow has opened, which is left as it is.
        wanted: the size (width, height) it will be brought to, from the upright size: the image is resized to it,
            and a JPEG file far larger is decoded at a fraction of its size.

    Raises:
        UserError: the file is missing, truncated, too large or not taken as an image, see `opened`.
    """
    if isinstance(path, Image.Image):
        return _given_rgb(path, wanted)
    try:
        with opened(path) as image:
            with pillow():
                upright = upright_size(image)
            size = wanted(*upright) if wanted else None
            with pillow():
                if size:
                    image.draft(None, (_DRAFT * max(size), _DRAFT * max(size)))
                image = _rgb(ImageOps.exif_transpose(image))
            return image if size in (None, image.size) else image.resize(size, Image.Resampling.BICUBIC)
    except ImageFileError as error:
        raise UserError(f"image {path} cannot be read: {error}") from error


def _given_rgb(given: Image.Image, wanted: Callable[[int, int], tuple[int, int]] | None) -> Image.Image:
    try:
        if reason := _refusal(given):
            raise ImageFileError(reason)
        with pillow():
            image = _rgb(ImageOps.exif_transpose(given))
    except ImageFileError as error:
        described = f"{given.mode} image of {given.width} x {given.height} pixels"
        raise UserError(f"this {described} cannot be used: {error}") from error
    size = wanted(*image.size) if wanted else image.size
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a decoded image."""
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255
        wide = np.asarray(image, dtype=np.float64)
        if "transparency" in image.info:
            wide = np.where(wide == image.info["transparency"], 65535, wide)
        image = Image.fromarray(np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
