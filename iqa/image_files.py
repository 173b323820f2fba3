"""An image file -> upright 8-bit RGB: the only home of decoding. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from iqa.errors import UserError
from iqa.image_check import DECODE_ERRORS

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
