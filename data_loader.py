"""Tables -> crops -> normalised batches: the only home of decoding, resizing, cropping and normalising.

    table (path, mos, ...) -[CropDataset]-> crops (B, K, 3, H, W) uint8 -[to_images]-> images (B*K, 3, H, W)

Crops leave the loader as bytes; `to_images` flips, jitters and normalises a whole batch on its device.
Every random choice is drawn from (seed, epoch, image, crop), so neither the number of workers nor the
order of the images changes a crop.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from iqa.config import Config, parse_resize
from iqa.errors import UserError
from iqa.image_check import DECODE_ERRORS

log = logging.getLogger(__name__)

# Largest change of brightness, contrast, saturation (factors) and hue (turns): mild, because a strong
# one would change the quality that the label speaks of.
JITTER = (0.1, 0.1, 0.1, 0.02)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


class Batch(NamedTuple):
    """Some images with their crops and labels."""

    crops: Tensor  # (B, K, 3, H, W) uint8
    augment: Tensor  # (B, K, 5): flip, and factors of brightness, contrast, saturation, turns of hue
    mos: Tensor  # (B,)
    mos_std: Tensor  # (B,), NaN where unknown
    index: Tensor  # (B,), row of the table


def open_rgb(path: str | Path) -> Image.Image:
    """An image file as 8-bit RGB, upright.

    16-bit greyscale is scaled to 8 bits, transparency is laid over white (as a viewer shows it), palette,
    grey and CMYK are converted, and a camera's orientation tag is applied.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255
                wide = np.asarray(image, dtype=np.float64)
                image = Image.fromarray(np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except DECODE_ERRORS as error:
        raise UserError(f"image {path} cannot be read: {error}") from error


def resized_size(width: int, height: int, resize: int | tuple[int, int] | None, least: int) -> tuple[int, int]:
    """Width and height after resizing, with no side below `least` pixels.

    Args:
        width: of the stored image.
        height: of the stored image.
        resize: longest allowed shorter side (aspect ratio kept, never enlarged), (height, width), or None.
        least: side of the crop; a smaller image is scaled up to it, aspect ratio kept.
    """
    if isinstance(resize, tuple):
        height, width = resize
    elif resize is not None and min(width, height) > resize:
        scale = resize / min(width, height)
        width, height = round(width * scale), round(height * scale)
    if min(width, height) < least:
        scale = least / min(width, height)
        width, height = max(least, round(width * scale)), max(least, round(height * scale))
    return width, height


def load_image(path: str | Path, resize: int | tuple[int, int] | None, least: int) -> Tensor:
    """An image file as uint8 (3, H, W), resized by `resized_size`."""
    image = open_rgb(path)
    size = resized_size(*image.size, resize, least)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def grid_shape(crops: int) -> tuple[int, int]:
    """The most square (few, many) with few * many = crops; 20 -> (4, 5)."""
    few = next(n for n in range(math.isqrt(crops), 0, -1) if crops % n == 0)
    return few, crops // few


def crop_corners(
    height: int, width: int, size: int, mode: str, crops: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Top-left corners (top, left) of the crops of one image; `rng` serves the mode `random`."""
    free_y, free_x = height - size, width - size
    if mode == "center":
        return [(free_y // 2, free_x // 2)]
    if mode == "random":
        return [(int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1))) for _ in range(crops)]
    few, many = grid_shape(crops)
    rows, columns = (few, many) if width >= height else (many, few)
    tops = np.linspace(0, free_y, rows) if rows > 1 else np.array([free_y / 2])
    lefts = np.linspace(0, free_x, columns) if columns > 1 else np.array([free_x / 2])
    return [(round(top), round(left)) for top in tops for left in lefts]


def _generator(*key: object) -> np.random.Generator:
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _augmentation(rng: np.random.Generator, jitter: bool) -> list[float]:
    """Flip (0 or 1), then factors of brightness, contrast and saturation, and turns of hue."""
    flip = float(rng.random() < 0.5)
    if not jitter:
        return [flip, 1.0, 1.0, 1.0, 0.0]
    change = [float(rng.uniform(-most, most)) for most in JITTER]
    return [flip, 1 + change[0], 1 + change[1], 1 + change[2], change[3]]


class CropDataset(Dataset):
    """Images of a table, each with its crops.

    An index is a row for testing (all crops of the image, chosen by `mode` and the image alone) or
    (row, epoch, crop) for training (one random crop with its flip and jitter).

    Args:
        table: columns image, path, mos, mos_std.
        config: gives patch_size, resize, test_mode, test_patch_num, seed, color_jitter.
    """

    def __init__(self, table: pd.DataFrame, config: Config):
        self.images = list(table["image"])
        self.paths = list(table["path"])
        self.mos = torch.tensor(table["mos"].to_numpy(dtype=np.float32))
        self.mos_std = torch.tensor(table["mos_std"].to_numpy(dtype=np.float32))
        self.resize = parse_resize(config.resize)
        self.config = config

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | tuple[int, int, int]) -> Batch:
        """One image as a Batch without its first dimension."""
        row, *training = index if isinstance(index, tuple) else (index,)
        pixels = load_image(self.paths[row], self.resize, self.config.patch_size)  # (3, H, W)
        if training:
            crops, augment = self._training_crop(pixels, row, *training)
        else:
            crops = self._test_crops(pixels, row)
            augment = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]]).expand(len(crops), -1)
        return Batch(crops, augment, self.mos[row], self.mos_std[row], torch.tensor(row))

    def _training_crop(self, pixels: Tensor, row: int, epoch: int, crop: int) -> tuple[Tensor, Tensor]:
        rng = _generator("train", self.config.seed, self.images[row], epoch, crop)
        corners = crop_corners(*pixels.shape[1:], self.config.patch_size, "random", 1, rng)
        augment = torch.tensor([_augmentation(rng, self.config.color_jitter)])
        return _cut(pixels, corners, self.config.patch_size), augment

    def _test_crops(self, pixels: Tensor, row: int) -> Tensor:
        if self.config.test_mode == "full":
            return pixels[None]
        rng = _generator("test", self.config.seed, self.images[row])
        size, crops = self.config.patch_size, self.config.test_patch_num
        corners = crop_corners(*pixels.shape[1:], size, self.config.test_mode, crops, rng)
        return _cut(pixels, corners, size)


def _cut(pixels: Tensor, corners: Sequence[tuple[int, int]], size: int) -> Tensor:
    return torch.stack([pixels[:, top : top + size, left : left + size] for top, left in corners])


class EpochSampler(Sampler):
    """(row, epoch, crop) for every crop of an epoch, shuffled by (seed, epoch) alone."""

    def __init__(self, images: int, crops: int, seed: int):
        self.images, self.crops, self.seed = images, crops, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images * self.crops

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        order = _generator("order", self.seed, self.epoch).permutation(len(self))
        return ((int(i) // self.crops, self.epoch, int(i) % self.crops) for i in order)


def train_loader(table: pd.DataFrame, config: Config) -> DataLoader:
    """Shuffled single crops, `train_patch_num` per image and epoch; its `sampler` takes the epoch."""
    sampler = EpochSampler(len(table), config.train_patch_num, config.seed)
    return _loader(CropDataset(table, config), config, batch_size=config.batch_size, sampler=sampler)


def test_loader(table: pd.DataFrame, config: Config) -> DataLoader:
    """Every image once, in order, with all its crops; about `batch_size` crops a batch."""
    crops = 1 if config.test_mode in ("center", "full") else config.test_patch_num
    images = 1 if config.test_mode == "full" else max(1, config.batch_size // crops)  # whole pictures differ in size
    return _loader(CropDataset(table, config), config, batch_size=images)


def _loader(dataset: CropDataset, config: Config, **options) -> DataLoader:
    workers = config.num_workers
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


def warn_of_small_images(table: pd.DataFrame, config: Config, database: str) -> None:
    """Say once how many images are smaller than the crop and will be scaled up (reads headers only)."""
    resize, small = parse_resize(config.resize), 0
    for path in table["path"]:
        with Image.open(path) as image:
            small += min(resized_size(*image.size, resize, least=1)) < config.patch_size
    if small:
        log.warning(
            "%s: %d of %d images are smaller than the %d-pixel crop and are scaled up to it",
            database, small, len(table), config.patch_size,
        )  # fmt: skip


def _colour_maps(augment: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Jitter as one affine map of RGB per crop: matrix (N, 3, 3) and offset (N, 3).

    Brightness, contrast (about the crop's mean luma), saturation (about each pixel's luma) and a rotation
    of hue about the grey axis are each affine, so their composition is.
    """
    brightness, contrast, saturation, hue = augment[:, 1:].unbind(1)  # (N,) each
    luma = torch.tensor(_LUMA, device=augment.device)
    grey = luma.expand(3, 3)  # maps RGB to its luma in every channel
    eye = torch.eye(3, device=augment.device)
    saturate = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * grey  # (N, 3, 3)
    angle = 2 * math.pi * hue[:, None, None]
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=augment.device) / math.sqrt(3)
    axis = torch.full((3, 3), 1 / 3, device=augment.device)
    rotate = angle.cos() * eye + angle.sin() * cross + (1 - angle.cos()) * axis  # Rodrigues' formula
    matrix = rotate @ saturate * (contrast * brightness)[:, None, None]
    mean_luma = (means * luma).sum(dim=1) * brightness  # (N,)
    return matrix, ((1 - contrast) * mean_luma)[:, None].expand(-1, 3)  # grey passes through both maps


def to_images(
    crops: Tensor, augment: Tensor, mean: Sequence[float], std: Sequence[float], jitter: bool = False
) -> Tensor:
    """Crops (B, K, 3, H, W) uint8 -> flipped, jittered, normalised images (B*K, 3, H, W) float32.

    Args:
        crops: pixels 0..255.
        augment: (B, K, 5) as in `Batch`; (0, 1, 1, 1, 0) changes nothing.
        mean: of the backbone's input, per channel, for pixels 0..1.
        std: of the backbone's input, per channel.
        jitter: apply the colour part of `augment`; known beforehand, so that no device is asked.
    """
    images = crops.flatten(0, 1).float() / 255  # (N, 3, H, W)
    augment = augment.flatten(0, 1)  # (N, 5)
    mean_t, std_t = images.new_tensor(mean)[:, None, None], images.new_tensor(std)[:, None, None]
    if jitter:
        matrix, offset = _colour_maps(augment, images.mean(dim=(2, 3)))
        images = torch.baddbmm(offset[:, :, None], matrix, images.flatten(2)).view_as(images).clamp(0, 1)
    flip = augment[:, 0].bool()[:, None, None, None]
    return (torch.where(flip, images.flip(-1), images) - mean_t) / std_t
