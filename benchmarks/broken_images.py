"""Image files as they should not be, made in memory: each with what reading it has to give.

    cases() -> Case(kind, name, content, outcome, pixels): hundreds of them, the same ones every time

Cut short at every 5 %, single bits flipped, wrong endings, empty, not images at all, headers that promise
gigapixels; and whole files that are easily read wrongly: turned by a camera, animated, 16 bits, CMYK, palettes,
transparency. In every format that Pillow writes here, and some that it only reads.
"""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 40
FLIPS = 12  # of each format
# Pillow's name for each format -> ending, the richest mode it stores, options.
_LOSSLESS = {
    "BMP": ("bmp", "RGB", {}), "DDS": ("dds", "RGB", {}), "DIB": ("dib", "RGB", {}), "ICNS": ("icns", "RGB", {}),
    "ICO": ("ico", "RGB", {"sizes": [(WIDTH, HEIGHT)]}), "IM": ("im", "RGB", {}), "PCX": ("pcx", "RGB", {}),
    "PNG": ("png", "RGB", {}), "PPM": ("ppm", "RGB", {}), "QOI": ("qoi", "RGB", {}), "SGI": ("sgi", "RGB", {}),
    "TGA": ("tga", "RGB", {"compression": "tga_rle"}), "TIFF": ("tif", "RGB", {"compression": "tiff_lzw"}),
    "WEBP": ("webp", "RGB", {"lossless": True}), "JPEG2000": ("jp2", "RGB", {}), "GIF": ("gif", "P", {}),
    "BLP": ("blp", "P", {}), "MSP": ("msp", "1", {}), "XBM": ("xbm", "1", {}),
}  # fmt: skip
_LOSSY = {"JPEG": ("jpg", "RGB", {"quality": 95}), "MPO": ("mpo", "RGB", {"quality": 95}), "AVIF": ("avif", "RGB", {})}
_ORIENTATION = 0x0112
_UPRIGHT = {  # what the tag says about the stored rows and columns (Exif 2.3)
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}  # fmt: skip


class Case(NamedTuple):
    """A file and what reading it has to give.

    Attributes:
        kind: what is the matter with it.
        name: of the file; its ending may lie.
        content: its bytes.
        outcome: "read", "refused", or "either".
        pixels: uint8 (H, W, 3) wherever it is read; None where damage may have changed them.
        tolerance: mean difference to `pixels` that is allowed: what a lossy format loses.
    """

    kind: str
    name: str
    content: bytes
    outcome: str
    pixels: np.ndarray | None = None
    tolerance: float = 0.0


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth made-up colours, no two corners alike."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def whole_files() -> dict[str, tuple[str, bytes, np.ndarray, float]]:
    """By format: ending, bytes, pixels and tolerance of one sound file."""
    files = {}
    for format, (ending, mode, options) in (_LOSSLESS | _LOSSY).items():
        image = scene(1024, 1024) if format == "ICNS" else scene()
        image = image.convert(mode)
        rgb = np.asarray(image.convert("RGB"))
        if format == "ICNS":  # holds every size
            options = {"append_images": [image.resize((s, s)) for s in (16, 32, 64, 128, 256, 512)]}
        files[format] = (ending, saved(image, format, **options), rgb, 6.0 if format in _LOSSY else 0.0)
    return files | _only_read()


def _only_read() -> dict[str, tuple[str, bytes, np.ndarray, float]]:
    """Sound files of formats that Pillow reads and does not write, put together by hand."""
    rgb, grey = np.asarray(scene()), np.asarray(scene().convert("L"))
    grey_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    sun = struct.pack(">8I", 0x59A66A95, WIDTH, HEIGHT, 24, rgb.size, 1, 0, 0) + rgb[:, :, ::-1].tobytes()
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, HEIGHT, WIDTH, 8, 3) + bytes(12) + bytes(2)
    psd += rgb.transpose(2, 0, 1).tobytes()
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2",
             f"NAXIS1  = {WIDTH:20d}", f"NAXIS2  = {HEIGHT:20d}", "END"]  # fmt: skip
    fits = "".join(card.ljust(80) for card in cards).ljust(2880).encode() + grey[::-1].tobytes().ljust(2880, b"\0")
    gbr = struct.pack(">5I", 28, 2, WIDTH, HEIGHT, 1) + b"GIMP" + struct.pack(">I", 10) + grey.tobytes()
    pcx = saved(scene(), "PCX")
    dcx = struct.pack("<3I", 987654321, 12, 0) + pcx
    return {
        "SUN": ("ras", sun, rgb, 0.0), "PSD": ("psd", psd, rgb, 0.0), "FITS": ("fits", fits, grey_rgb, 0.0),
        "GBR": ("gbr", gbr, grey_rgb, 0.0), "DCX": ("dcx", dcx, rgb, 0.0),
    }  # fmt: skip


def cases() -> Iterator[Case]:
    """All of them."""
    for format, (ending, content, pixels, tolerance) in whole_files().items():
        yield Case("whole", f"{format}.{ending}", content, "read", pixels, tolerance)
        yield from _damaged(format, ending, content, pixels, tolerance)
        lying = "jpg" if ending == "png" else "png"
        yield Case("wrong ending", f"{format}_as.{lying}", content, "read", pixels, tolerance)
    yield from _not_images()
    yield from _huge_headers()
    yield from _turned()
    yield from _animated()
    yield from _rich()
    yield from _unknown_scales()


def _damaged(format: str, ending: str, content: bytes, pixels: np.ndarray, tolerance: float) -> Iterator[Case]:
    """Cut at every 5 %, and with one bit flipped, half of them in the first 200 bytes, where the header is."""
    for share in range(5, 100, 5):
        cut = content[: len(content) * share // 100]
        yield Case("cut short", f"{format}_{share}.{ending}", cut, "either", pixels, tolerance)
    draw = random.Random(format)
    for number in range(FLIPS):
        flipped = bytearray(content)
        place = draw.randrange(min(len(content), 200) if number % 2 else len(content))
        flipped[place] ^= 1 << draw.randrange(8)
        yield Case("bit flipped", f"{format}_bit{number}.{ending}", bytes(flipped), "either")


def _not_images() -> Iterator[Case]:
    for ending in ("png", "jpg", "bmp", "gif", "tif", "webp", "jp2", "ppm"):
        yield Case("zero bytes", f"empty.{ending}", b"", "refused")
        yield Case("zero bytes", f"zeros.{ending}", bytes(4096), "refused")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("a.png"), saved(scene(), "PNG"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n(hello) print showpage\n%%EOF\n"
    contents = {
        "text": b"image,mos\na.png,50\n", "html": b"<html><img src=x onerror=alert(1)></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "pickle": pickle.dumps({"a": 1}),
        "zip": archive.getvalue(), "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "postscript": postscript,
        "noise": random.Random(0).randbytes(5000), "exe": b"\x7fELF" + bytes(500), "shell": b"#!/bin/sh\nexit 1\n",
        "wmf": struct.pack("<IH4hHIH", 0x9AC6CDD7, 0, 0, 0, 40, 40, 72, 0, 0) + bytes(100),
        "mpeg": b"\0\0\1\xb3" + bytes(100), "grib": b"GRIB\0\0\0\1" + bytes(100),
        "hdf": b"\x89HDF\r\n\x1a\n" + bytes(99), "bufr": b"BUFR" + bytes(100),
    }  # fmt: skip
    for name, content in contents.items():
        for ending in ("png", "jpg"):
            yield Case("not an image", f"{name}.{ending}", content, "refused")


def _huge_headers() -> Iterator[Case]:
    """Small files that promise 60,000 x 60,000 pixels, and some just over Pillow's limit (89,478,485)."""
    for side in (60_000, 9_500):
        yield Case("huge header", f"{side}.ppm", f"P6 {side} {side} 255\n".encode(), "refused")
        yield Case("huge header", f"{side}.png", png(side, side, 8, 2, bytes(100)), "refused")
        bmp = bytearray(saved(scene(), "BMP"))
        bmp[18:26] = struct.pack("<ii", side, side)
        yield Case("huge header", f"{side}.bmp", bytes(bmp), "refused")
        gif = bytearray(saved(scene(), "GIF"))
        gif[6:10] = struct.pack("<HH", side, side)
        yield Case("huge header", f"{side}.gif", bytes(gif), "refused")
        jpeg = bytearray(saved(scene(), "JPEG"))
        start = jpeg.index(b"\xff\xc0")
        jpeg[start + 5 : start + 9] = struct.pack(">HH", side, side)
        yield Case("huge header", f"{side}.jpg", bytes(jpeg), "refused")
        qoi = b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + bytes(8)
        yield Case("huge header", f"{side}.qoi", qoi, "refused")
        tiff = saved(scene(), "TIFF").replace(
            struct.pack("<HHII", 256, 4, 1, WIDTH), struct.pack("<HHII", 256, 4, 1, side)
        )
        tiff = tiff.replace(struct.pack("<HHII", 257, 4, 1, HEIGHT), struct.pack("<HHII", 257, 4, 1, side))
        yield Case("huge header", f"{side}.tif", tiff, "refused")
    text = zlib.compress(bytes(70_000_000))  # 70 MB of comment in 70 kB
    bomb = png(WIDTH, HEIGHT, 8, 2, np.asarray(scene()), chunks=[(b"zTXt", b"Comment\0\0" + text)])
    yield Case("huge header", "comment.png", bomb, "refused")
    yield Case("huge header", "pixels.png", png(8_000, 12_000, 1, 0, bytes(12_000 * 1_000)), "refused")


def _turned() -> Iterator[Case]:
    stored = np.asarray(scene())
    for tag, upright in _UPRIGHT.items():
        exif = Image.Exif()
        exif[_ORIENTATION] = tag
        for format, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.items():
            name, tolerance = f"{format}_{tag}.{(_LOSSLESS | _LOSSY)[format][0]}", 6.0 if format == "JPEG" else 0.0
            content = saved(scene(), format, exif=exif, **options)
            yield Case("turned by a camera", name, content, "read", upright(stored), tolerance)


def _animated() -> Iterator[Case]:
    """The first frame is the image."""
    second = Image.new("RGB", (WIDTH, HEIGHT), "red")
    for format, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "GIF": {}, "AVIF": {}}.items():
        content = saved(scene(), format, save_all=True, append_images=[second], **options)
        tolerance = {"GIF": 8.0, "AVIF": 6.0}.get(format, 0.0)
        yield Case("animated", f"{format}_frames.{format.lower()}", content, "read", np.asarray(scene()), tolerance)


def _rich() -> Iterator[Case]:
    """16 bits, CMYK and LAB, transparency over white, palettes, one bit, and sizes of one pixel."""
    rgb, grey = np.asarray(scene()), np.asarray(scene().convert("L"))
    grey_rgb, wide = np.repeat(grey[:, :, None], 3, axis=2), grey.astype(np.uint16) * 257
    for format, ending in {"PNG": "png", "TIFF": "tif", "JPEG2000": "jp2", "PPM": "pgm"}.items():
        yield Case("16 bits", f"grey.{ending}", saved(Image.fromarray(wide), format), "read", grey_rgb)
    wide_rgb = (rgb.astype(">u2") * 257).tobytes()
    yield Case("16 bits", "rgb.png", png(WIDTH, HEIGHT, 16, 2, wide_rgb), "read", rgb)
    keyed = np.where(grey == grey[0, 0], 255, grey)
    key = [(b"tRNS", struct.pack(">H", int(wide[0, 0])))]
    content = png(WIDTH, HEIGHT, 16, 0, wide.astype(">u2").tobytes(), chunks=key)
    yield Case("16 bits", "transparent.png", content, "read", np.repeat(keyed[:, :, None], 3, axis=2))
    cmyk = scene().convert("CMYK")
    yield Case("other colours", "cmyk.tif", saved(cmyk, "TIFF"), "read", rgb)
    yield Case("other colours", "cmyk.jpg", saved(cmyk, "JPEG", quality=95), "read", rgb, 6.0)
    black = Image.new("LAB", (WIDTH, HEIGHT), (0, 128, 128))
    yield Case("other colours", "lab.tif", saved(black, "TIFF"), "read", np.zeros_like(rgb), 2.0)
    alpha = np.linspace(0, 255, WIDTH).round().astype(np.uint8)[None].repeat(HEIGHT, axis=0)
    over_white = np.rint(255 + (rgb - 255.0) * alpha[:, :, None] / 255).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    for format, ending in {"PNG": "png", "TIFF": "tif", "WEBP": "webp", "TGA": "tga", "QOI": "qoi"}.items():
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        yield Case("alpha", f"rgba.{ending}", saved(rgba, format, **options), "read", over_white, 1.0)
    grey_white = np.rint(255 + (grey_rgb - 255.0) * alpha[:, :, None] / 255).astype(np.uint8)
    content = saved(Image.fromarray(np.dstack([grey, alpha])), "PNG")
    yield Case("alpha", "la.png", content, "read", grey_white, 1.0)
    few = scene().quantize(16)
    few_rgb = np.asarray(few.convert("RGB"))
    for ending in ("png", "gif", "bmp", "tif", "pcx", "tga"):
        format = {"tif": "TIFF"}.get(ending, ending.upper())
        yield Case("palette", f"few.{ending}", saved(few, format), "read", few_rgb)
    clear = np.where((np.asarray(few) == 3)[:, :, None], 255, few_rgb).astype(np.uint8)
    for ending in ("png", "gif"):
        yield Case("palette", f"clear.{ending}", saved(few, ending.upper(), transparency=3), "read", clear)
    for ending in ("png", "bmp", "tif", "pbm"):
        format = {"tif": "TIFF", "pbm": "PPM"}.get(ending, ending.upper())
        bits = scene().convert("1")
        yield Case("one bit", f"bits.{ending}", saved(bits, format), "read", np.asarray(bits.convert("RGB")))
    for width, height in ((1, 1), (1, 3000), (3000, 1)):
        image = scene(width, height)
        yield Case("thin", f"{width}x{height}.png", saved(image, "PNG"), "read", np.asarray(image))


def _unknown_scales() -> Iterator[Case]:
    """Pixels whose black and white no header names: guessing would give an image, a wrong one."""
    grey = np.asarray(scene().convert("L"))
    yield Case("no known scale", "float.tif", saved(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"), "refused")
    yield Case("no known scale", "int32.tif", saved(Image.fromarray(grey.astype(np.int32)), "TIFF"), "refused")
    yield Case("no known scale", "spider.spi", saved(Image.fromarray(grey.astype(np.float32)), "SPIDER"), "refused")


def png(
    width: int, height: int, bits: int, colour: int, pixels: bytes | np.ndarray, chunks: list[tuple] | None = None
) -> bytes:
    """A PNG file of any header; `pixels` are its rows (of one another, without filter bytes)."""
    data = pixels.tobytes() if isinstance(pixels, np.ndarray) else pixels
    stride = (width * bits * {0: 1, 2: 3}[colour] + 7) // 8
    rows = b"".join(b"\0" + data[start : start + stride] for start in range(0, len(data), stride))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *(chunks or []), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts
    )
