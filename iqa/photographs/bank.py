"""A folder of photographs without scores -> batches of random crops, cut on the device where they are used.

The photographs lie decoded in that device's memory, so that a step copies nothing. What a crop shows follows from
its seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from iqa.data import open_rgb
from iqa.errors import UserError
from iqa.system import to_device

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
LONGEST = 352  # side of a stored photograph, in pixels: 0.37 MB each
SMALLEST_AREA = 0.15  # of a photograph that a crop shows; but no less than the crop's own pixels
SMALLEST_SOFT = 0.7  # of a soft crop's side
CLEAN = 1.5  # times fewer pixels a side hide what a codec left
AS_IT_IS = 1.25  # a crop of less than this times its own size is cut without resampling


def list_photographs(folder: str | Path) -> list[Path]:
    """The image files below a folder, by name.

    Raises:
        UserError: no such folder, or none in it.
    """
    if not Path(folder).is_dir():
        raise UserError(f"photos: no folder at {folder}")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"photos: no image files below {folder} ({', '.join(sorted(SUFFIXES))})")
    return files


def held_out(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Photographs to learn from, and those that neither training nor pretraining ever sees: one in twenty, by name."""
    aside = [int(hashlib.sha256(file.name.encode()).hexdigest(), 16) % 20 == 0 for file in files]
    if all(aside) or not any(aside):  # a folder of few
        aside = [file == files[0] for file in files]
    return tuple(
        [file for file, is_aside in zip(files, aside, strict=True) if is_aside == part] for part in (False, True)
    )


class Photographs:
    """Decoded photographs on a device.

    Args:
        files: image files; one that does not open ends with an error that names it.
        device: where they lie.
        longest: larger ones are made smaller until their longer side is this.

    Raises:
        UserError: a file that is no image.
    """

    def __init__(self, files: Sequence[Path], device: torch.device, longest: int = LONGEST):
        self.files = list(files)
        canvas = np.zeros((len(files), 3, longest, longest), dtype=np.uint8)
        sizes = np.zeros((len(files), 2), dtype=np.float32)
        with ThreadPoolExecutor() as pool:
            for row, pixels in enumerate(pool.map(lambda file: _decode(file, longest), files)):
                sizes[row] = pixels.shape[1:]
                canvas[row, :, : pixels.shape[1], : pixels.shape[2]] = pixels
        self.pixels, self.sizes = torch.from_numpy(canvas).to(device), torch.from_numpy(sizes)  # sizes: height, width

    def __len__(self) -> int:
        return len(self.files)

    def soft_crops(self, rows: Tensor, side: int, generator: torch.Generator) -> Tensor:
        """Cut smaller crops and enlarge them: as soft as large photographs, and without what a codec left.

        Arguments and result are those of `crops`. How much smaller is drawn once for all of them. A model that has
        seen nothing but small JPEG files as originals takes a lossless photograph's weakly coded copy for better.
        """
        smaller = round(side * (SMALLEST_SOFT + (1 - SMALLEST_SOFT) * torch.rand((), generator=generator).item()))
        crops = self.crops(rows, smaller, generator, least=CLEAN)
        return F.interpolate(crops, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)

    def crops(self, rows: Tensor, side: int, generator: torch.Generator, least: float = 1.0) -> Tensor:
        """Random square crops.

        Each shows a random part of its photograph of at least `SMALLEST_AREA`. A crop is never enlarged where the
        photograph has the pixels, and one of about its own size is cut as it is: what is called undistorted is sharp.
        Half are mirrored.

        Args:
            rows: (B,) numbers of photographs, on the CPU.
            side: of the crops, in pixels.
            generator: on the CPU.
            least: a crop shows at least this times its own pixels a side, where the photograph has them.

        Returns:
            (B, 3, side, side) in 0..1.
        """
        height, width = self.sizes[rows].unbind(dim=1)
        shorter = torch.minimum(height, width)
        area, down, across, flip = torch.rand(4, len(rows), generator=generator)
        extent = ((SMALLEST_AREA + area * (1 - SMALLEST_AREA)) * height * width).sqrt()
        extent = torch.where(extent < AS_IT_IS * side, side, extent).clamp(min=least * side)
        extent = torch.minimum(extent, shorter)
        top, left = down * (height - extent), across * (width - extent)
        return self._cut(rows, top, left, extent, flip < 0.5, side)

    def _cut(self, rows: Tensor, top: Tensor, left: Tensor, extent: Tensor, flip: Tensor, side: int) -> Tensor:
        """Squares of `extent` pixels at (top, left): whole pixels where that is `side`, else resampled."""
        canvas, device = self.pixels.shape[-1], self.pixels.device
        native = extent == side
        top, left = (torch.where(native, start.round(), start) for start in (top, left))
        scale, sign = extent / canvas, 1 - 2 * flip.float()
        zero = torch.zeros_like(scale)
        x, y = ((2 * start + extent) / canvas - 1 for start in (left, top))
        maps = torch.stack([torch.stack([scale * sign, zero, x], 1), torch.stack([zero, scale, y], 1)], 1)
        maps, images = to_device(maps, device), self.pixels[to_device(rows, device)].float()
        # What is made smaller is sampled twice as densely and averaged, against aliasing.
        as_it_is, averaged = (F.avg_pool2d(_sample(images, maps, density * side), density) for density in (1, 2))
        chosen = torch.where(to_device(extent <= side, device)[:, None, None, None], as_it_is, averaged)
        return (chosen / 255).clamp(0, 1)


def _sample(images: Tensor, maps: Tensor, side: int) -> Tensor:
    grid = F.affine_grid(maps, [len(images), 3, side, side], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _decode(file: Path, longest: int) -> np.ndarray:
    """Pixels (3, H, W) uint8 of a file, made smaller to fit."""
    image = open_rgb(file)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)
