"""Tables -> crops -> normalised batches: the only home of decoding, resizing, cropping and normalising.

    table (path, mos, ...) -[CropDataset]-> crops (B, K, 3, H, W) uint8 -[to_images]-> images (B*K, 3, H, W)

An image is decoded and resized once, then read from `PixelCache`. Crops are cut as bytes, straight into the batch's
tensor. `to_images` flips, jitters and normalises a whole batch on its device. Random choices follow from (seed, epoch,
image, crop) alone, so neither the number of workers nor the order of images changes a crop.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from iqa.choices import TEST_MODES
from iqa.config import Config, parse_resize
from iqa.data import NamedBytes, Names, RowCache, file_hash, image_sizes, open_rgb
from iqa.runtime import crops_at_once
from iqa.system import computes_on_cuda, device_constant, give_back_freed_memory, shard_sizes

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

# Largest change of brightness, contrast, saturation (factors) and hue (turns). They are mild, because a strong change
# would alter the quality that the label describes.
JITTER = (0.1, 0.1, 0.1, 0.02)
UNCHANGED = [0.0, 1.0, 1.0, 1.0, 0.0]  # a row of `Batch.augment` that does nothing
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")
# Maps of RGB (rows of 3x3): identity, cross product with the grey axis, projection onto it, luma in every channel.
_COLOUR_BASIS = (
    (1, 0, 0, 0, 1, 0, 0, 0, 1),
    tuple(n / math.sqrt(3) for n in (0, -1, 1, 1, 0, -1, -1, 1, 0)),
    (1 / 3,) * 9,
    _LUMA * 3,
)


class Batch(NamedTuple):
    """Holds some images with their crops and labels."""

    crops: Tensor  # (B, K, 3, H, W) uint8
    augment: Tensor  # (B, K, 5): flip, and factors of brightness, contrast, saturation, turns of hue
    mos: Tensor  # (B,)
    mos_std: Tensor  # (B,), NaN where unknown
    index: Tensor  # (B,), row of the table
    database: Tensor  # (B,), number of the database that the image comes from


def resized_size(width: int, height: int, resize: int | tuple[int, int] | None, least: int) -> tuple[int, int]:
    """Compute width and height after resizing; no side is below `least` pixels.

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


def load_image(
    path: str | Path | NamedBytes | PIL.Image.Image, resize: int | tuple[int, int] | None, least: int
) -> np.ndarray:
    """An image file, its bytes, or an opened image, as uint8 (3, H, W), resized by `resized_size`."""
    image = open_rgb(path, lambda width, height: resized_size(width, height, resize, least))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def resized_sizes(table: pd.DataFrame, resize: int | tuple[int, int] | None, least: int) -> np.ndarray:
    """Compute width and height (n, 2) after resizing; headers are read only where the table has no sizes."""
    if "image_width" in table and (table["image_width"] > 0).all():
        stored = table[["image_width", "image_height"]].to_numpy()
    else:
        stored = image_sizes(table["path"].tolist())
    kinds, kind = np.unique(stored, axis=0, return_inverse=True)  # a database has few sizes
    return np.array([resized_size(*size, resize, least) for size in kinds.tolist()], dtype=int).reshape(-1, 2)[kind]


def image_fingerprint(table: pd.DataFrame) -> str:
    """Compute the SHA-256 of the names and bytes of a table's images, in order."""
    hashes = table["file_hash"] if "file_hash" in table else [""] * len(table)
    digest = hashlib.sha256()
    for image, path, known in zip(table["image"], table["path"], hashes, strict=True):
        digest.update(f"{image}\t{known or file_hash(Path(path))}\n".encode())
    return digest.hexdigest()


class PixelCache:
    """Keeps the decoded and resized images of a table in a `RowCache`, which fills as they are read.

    Args:
        folder: where the caches of this database lie.
        table: columns image, path and file_hash.
        config: gives resize and patch_size.

    Raises:
        UserError: the disk has no room for it.
    """

    def __init__(self, folder: Path, table: pd.DataFrame, config: Config):
        self.config, self.resize, self.least = config, parse_resize(config.resize), config.patch_size
        sizes = resized_sizes(table, self.resize, self.least)
        self.shapes = np.insert(sizes[:, ::-1], 0, 3, axis=1)  # (n, 3): channels, height, width
        self.paths = Names(table["path"])
        name = f"pixels_{config.resize}_{config.patch_size}"
        key = {"images": image_fingerprint(table), "made": name, "pillow": PIL.__version__}
        self.rows = RowCache(folder / name, key, self.shapes.prod(axis=1), "decoded images", config.cache_limit)

    def read(self, path: str) -> np.ndarray:
        """Give an image's pixels, uint8 (3, H, W); the first time it is decoded."""
        row = self.paths.row(path)
        content = self.rows.read(row)
        if content is not None:
            return content.reshape(self.shapes[row])
        pixels = load_image(path, self.resize, self.least)
        self.rows.write(row, pixels)
        return pixels

    def covers(self, table: pd.DataFrame) -> bool:
        """Say whether the cache has a row for every image of a table."""
        return bool((self.paths.find(table["path"]) >= 0).all())


def grid_shape(crops: int) -> tuple[int, int]:
    """Find the most square (few, many) with few * many = crops; 20 -> (4, 5)."""
    few = next(n for n in range(math.isqrt(crops), 0, -1) if crops % n == 0)
    return few, crops // few


def crop_corners(
    height: int, width: int, size: int, mode: str, crops: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Place the crops of one image: their top-left corners (top, left). `rng` serves the mode `random`."""
    free_y, free_x = height - size, width - size
    if mode == "center":
        return [(free_y // 2, free_x // 2)]
    if mode == "random":
        return [(int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1))) for _ in range(crops)]
    assert mode == "grid", f"{mode} places no crops"
    few, many = grid_shape(crops)
    rows, columns = (few, many) if width >= height else (many, few)
    tops = np.linspace(0, free_y, rows) if rows > 1 else np.array([free_y / 2])
    lefts = np.linspace(0, free_x, columns) if columns > 1 else np.array([free_x / 2])
    return [(round(top), round(left)) for top in tops for left in lefts]


def seeded_generator(*key: object) -> np.random.Generator:
    """Make a generator whose numbers depend on `key` alone, whatever else is drawn elsewhere."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def test_places(height: int, width: int, config: Config, image: str) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Place an image's test crops: corners and size (height, width); a test of whole images has one crop, the image.

    Random crops depend on the run's seed and the image's name.
    """
    if TEST_MODES[config.test_mode].whole:
        return [(0, 0)], (height, width)
    rng = seeded_generator("test", "frozen" if config.freeze_backbone else config.seed, image)
    corners = crop_corners(height, width, config.patch_size, config.test_mode, config.test_crops, rng)
    return corners, (config.patch_size, config.patch_size)


def augmentation(rng: np.random.Generator, jitter: bool, flip: bool = True) -> list[float]:
    """Draw a row of `Batch.augment`: flip (0 or 1), factors of brightness, contrast, saturation, turns of hue."""
    flipped = float(flip and rng.random() < 0.5)
    if not jitter:
        return [flipped, *UNCHANGED[1:]]
    draws = rng.random(len(JITTER)).tolist()  # one call: this runs for every crop
    change = [most * (2 * draw - 1) for most, draw in zip(JITTER, draws, strict=True)]
    return [flipped, 1 + change[0], 1 + change[1], 1 + change[2], change[3]]


class CropDataset(Dataset):
    """Gives the images of a table, each with its crops.

    An index is a row for a test (all its crops), or (row, epoch, crop) for training (one crop, its flip and jitter).
    Places depend on the run's seed and the image, and for training on the epoch. Under a frozen backbone they depend on
    the image alone, so that features are computed once for all epochs, splits and seeds.

    Args:
        table: columns image, path, mos and mos_std; with several databases also database.
        config: gives patch_size, resize, test_mode, test_patch_num, seed, color_jitter.
        cache: holds the decoded images; None decodes each time.
        frozen_crops: give, as test crops, the training crops that a frozen backbone sees.
    """

    def __init__(
        self, table: pd.DataFrame, config: Config, cache: PixelCache | None = None, frozen_crops: bool = False
    ):
        self.images, self.paths, self.labels = Names(table["image"]), Names(table["path"]), Labels.of(table)
        self.config, self.cache, self.frozen_crops = config, cache, frozen_crops
        self.resize = parse_resize(config.resize)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | tuple[int, int, int]) -> Batch:
        """Give one image as a Batch without its first dimension."""
        return Batch(*(value[0] for value in self.__getitems__([index])))

    def __getitems__(self, indices: Sequence[int | tuple[int, int, int]]) -> Batch:
        """Give a batch, its crops cut straight into one tensor; whole images must have one size."""
        cuts = [self._train_cut(*i) if isinstance(i, tuple) else self._test_cuts(i) for i in indices]
        rows = [i[0] if isinstance(i, tuple) else i for i in indices]
        height, width = cuts[0].size
        crops = torch.empty((len(cuts), len(cuts[0].corners), 3, height, width), dtype=torch.uint8)
        array = crops.numpy()
        for i, cut in enumerate(cuts):
            for k, (top, left) in enumerate(cut.corners):
                array[i, k] = cut.pixels[:, top : top + height, left : left + width]
        return Batch(crops, torch.tensor([cut.augment for cut in cuts]), *self.labels.rows(rows))

    def _pixels(self, row: int) -> np.ndarray:
        if self.cache is not None:
            return self.cache.read(self.paths[row])
        return load_image(self.paths[row], self.resize, self.config.patch_size)

    def _train_cut(self, row: int, epoch: int, crop: int) -> _Cut:
        pixels, side = self._pixels(row), self.config.patch_size
        rng = seeded_generator("train", self.config.seed, self.images[row], epoch, crop)
        place = self._frozen_generator(row, crop) if self.config.freeze_backbone else rng
        corners = crop_corners(*pixels.shape[1:], side, "random", 1, place)
        return _Cut(pixels, corners, (side, side), [augmentation(rng, self.config.color_jitter, self.config.flip)])

    def _frozen_generator(self, row: int, crop: int) -> np.random.Generator:
        return seeded_generator("frozen", self.images[row], crop % self.config.train_patch_num)

    def _test_cuts(self, row: int) -> _Cut:
        pixels, side = self._pixels(row), self.config.patch_size
        height, width = pixels.shape[1:]
        if self.frozen_crops:
            places = [self._frozen_generator(row, crop) for crop in range(self.config.train_patch_num)]
            corners, size = [crop_corners(height, width, side, "random", 1, p)[0] for p in places], (side, side)
        else:
            corners, size = test_places(height, width, self.config, self.images[row])
        return _Cut(pixels, corners, size, [UNCHANGED] * len(corners))


class _Cut(NamedTuple):
    """Holds an image and the places of its crops, which have one size."""

    pixels: np.ndarray  # (3, H, W)
    corners: list[tuple[int, int]]
    size: tuple[int, int]  # height, width
    augment: list[list[float]]  # a row for each crop


class Labels(NamedTuple):
    """Holds what a dataset knows of its images beside pixels: columns of a table as tensors (n,)."""

    mos: Tensor
    mos_std: Tensor
    database: Tensor

    @classmethod
    def of(cls, table: pd.DataFrame) -> Labels:
        """Take the labels of a table; without a column `database` all images belong to one database."""
        numbers = table["database"].to_numpy() if "database" in table else np.zeros(len(table))
        mos, mos_std = (torch.tensor(table[c].to_numpy(dtype=np.float32)) for c in ("mos", "mos_std"))
        return cls(mos, mos_std, torch.tensor(numbers, dtype=torch.long))

    def rows(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give the last four fields of a `Batch` of these rows: mos, mos_std, index, database."""
        index = torch.tensor(rows)
        return self.mos[index], self.mos_std[index], index, self.database[index]


class Preparation:
    """Does what images need before the network sees them: tables -> crops -> normalised images.

    Args:
        network: takes the images; `network.backbone` gives mean and std of its input.
        config: gives crops and resizing.
        cache: decoded images of the tables that it covers; images of other tables are decoded each time.
    """

    def __init__(self, network: nn.Module, config: Config, cache: PixelCache | None = None):
        self.network, self.config, self.cache = network, config, cache

    def covers(self, table: pd.DataFrame) -> bool:
        """Say whether a table can be prepared: every table can."""
        return True

    def dataset(self, table: pd.DataFrame, training: bool = False) -> CropDataset:
        """Make the dataset of a table; its index says whether a crop is for training or for a test."""
        covered = self.cache is not None and self.cache.covers(table)
        return CropDataset(table, self.config, self.cache if covered else None)

    def to_images(self, crops: Tensor, augment: Tensor, jitter: bool = False) -> Tensor:
        """Turn crops (B, K, 3, H, W) uint8 into images (B*K, 3, H, W) for the network, as `to_images` does."""
        backbone = self.network.backbone
        return to_images(crops, augment, backbone.mean, backbone.std, jitter)


class EpochSampler(Sampler):
    """Yields (row, epoch, crop) for every crop of an epoch; the order depends on (seed, epoch) alone.

    Args:
        database: (n,) number of each image's database.
        crops: how many an image gives in an epoch.
        seed: of the run.
        balanced: take equally many crops of every database; an image of a small one then gives more crops.
    """

    def __init__(self, database: np.ndarray, crops: int, seed: int, balanced: bool = False):
        self.crops, self.seed, self.epoch = crops, seed, 0
        self.members = [np.flatnonzero(database == number) for number in np.unique(database)]
        self.quotas = [len(rows) * crops for rows in self.members]
        if balanced:
            self.quotas = shard_sizes(sum(self.quotas), len(self.members))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.quotas)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        rng = seeded_generator("order", self.seed, self.epoch)
        items = np.concatenate([self._draw(*group, rng) for group in zip(self.members, self.quotas, strict=True)])
        return ((int(row), self.epoch, int(crop)) for row, crop in items[rng.permutation(len(items))])

    def _draw(self, rows: np.ndarray, quota: int, rng: np.random.Generator) -> np.ndarray:
        """Draw rows and crops (quota, 2); how often two images come differs by one at most."""
        whole, rest = divmod(quota, len(rows))
        every = np.stack([np.repeat(rows, whole), np.tile(np.arange(whole), len(rows))], axis=1)
        if not rest:
            return every
        some = rng.permutation(rows)[:rest]
        return np.concatenate([every, np.stack([some, np.full(rest, whole)], axis=1)])


class ShardedBatches(Sampler):
    """Yields the batches of an epoch; each process gets its share of every batch, in order.

    A batch has `batch_size` items whatever the number of processes, which therefore does not change what is learned. A
    process whose share of the last batch is empty gets one item of it, which the solver leaves out of the loss.

    Attributes:
        start: number of the batch that an iteration begins with. It is not 0 where a stopped epoch goes on.
    """

    def __init__(self, sampler: Sampler, batch_size: int, process: int, processes: int):
        self.sampler, self.batch_size, self.process, self.processes = sampler, batch_size, process, processes
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[list]:
        items = itertools.islice(self.sampler, self.start * self.batch_size, None)
        while batch := list(itertools.islice(items, self.batch_size)):
            sizes = shard_sizes(len(batch), self.processes)
            start = sum(sizes[: self.process])
            yield batch[start : start + sizes[self.process]] or batch[:1]


def train_loader(data: pd.DataFrame | Dataset, config: Config, process: int = 0, processes: int = 1) -> DataLoader:
    """Load shuffled single crops, `train_patch_num` per image and epoch; the batch sampler has `set_epoch`.

    Args:
        data: a table, or a dataset of one (with a cache, or of features).
        config: gives batch_size, train_patch_num, seed, sampling, num_workers.
        process: number of this process; it gets its share of each batch.
        processes: how many there are.
    """
    dataset = data if isinstance(data, Dataset) else CropDataset(data, config)
    numbers = dataset.labels.database.numpy()
    sampler = EpochSampler(numbers, config.train_patch_num, config.seed, config.sampling == "balanced")
    batches = ShardedBatches(sampler, config.batch_size, process, processes)
    return _loader(dataset, config, batch_sampler=batches)


def test_loader(data: pd.DataFrame | Dataset, config: Config, images: int | None = None) -> DataLoader:
    """Load every image once, in order, with all its crops.

    Args:
        data: as for training.
        config: gives test_mode, test_patch_num, test_batch_size, batch_size, num_workers.
        images: how many make a batch; None takes as many as have `crops_at_once` crops together, at least one.
    """
    dataset = data if isinstance(data, Dataset) else CropDataset(data, config)
    images = images or max(1, crops_at_once(config) // config.test_crops)
    # Whole images differ in size; their features do not.
    whole = TEST_MODES[config.test_mode].whole and isinstance(dataset, CropDataset) and not dataset.frozen_crops
    return _loader(dataset, config, batch_size=1 if whole else images)


def _loader(dataset: Dataset, config: Config, **options) -> DataLoader:
    workers = config.num_workers
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=give_back_freed_memory,
        pin_memory=computes_on_cuda(config.device),
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(config.seed),  # else it would share the generator of dropout
        **options,
    )


def _as_it_is(batch: Batch) -> Batch:
    """Give a batch back: the dataset's `__getitems__` makes whole ones."""
    return batch


def warn_of_small_images(table: pd.DataFrame, config: Config, database: str) -> None:
    """Say once how many images are smaller than the crop and will be scaled up (reads headers only)."""
    resize = parse_resize(config.resize)
    small = int((resized_sizes(table, resize, least=1).min(axis=1) < config.patch_size).sum())
    if small:
        log.warning(
            "%s: %d of %d images are smaller than the %d-pixel crop and are scaled up to it",
            database, small, len(table), config.patch_size,
        )  # fmt: skip


def _colour_maps(augment: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Write jitter and normalisation as one affine map of RGB per crop.

    Brightness, contrast (about the crop's mean luma), saturation (about each pixel's luma) and a rotation
    of hue about the grey axis are affine, and so are they in a row. What contrast adds is grey, which
    saturation and hue leave as it is.

    Args:
        augment: (N, 5) as in `Batch`.
        mean: (3, 1) of the backbone's input, for pixels 0..255.
        std: (3, 1).

    Returns:
        Maps of a pixel's (red, green, blue, 1), (N, 3, 4), and of the crop's mean RGB, (N, 3, 3), to be added up.
    """
    brightness, contrast, saturation, hue = augment[:, 1:].unbind(1)  # (N,) each
    angle = 2 * math.pi * hue
    cos, sin = angle.cos(), angle.sin()
    # Rodrigues' formula gives the rotation. It leaves grey as it is, and so the grey that saturation adds.
    weights = torch.stack((saturation * cos, saturation * sin, saturation * (1 - cos), 1 - saturation), dim=1)
    basis = device_constant(_COLOUR_BASIS, augment.device)  # (4, 9)
    of_pixel = ((contrast * brightness)[:, None] * weights @ basis).view(-1, 3, 3) / std
    offset = (-mean / std).expand(len(augment), 3, 1)
    of_mean = ((1 - contrast) * brightness)[:, None, None] * basis[3].view(3, 3) / std
    return torch.cat((of_pixel, offset), dim=2), of_mean


def _mirrored(pixels: Tensor, flip: Tensor) -> Tensor:
    """Crops (N, 3, H, W), mirrored where `flip` (N,) says so; one alone on a CPU, where looking waits for nothing."""
    if pixels.device.type == "cpu" and len(pixels) == 1:
        return pixels.flip(-1) if flip else pixels
    return torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)


def to_images(
    crops: Tensor, augment: Tensor, mean: Sequence[float], std: Sequence[float], jitter: bool = False
) -> Tensor:
    """Flip, jitter and normalise crops (B, K, 3, H, W) uint8 -> images (B*K, 3, H, W) float32.

    Brightness, contrast, saturation, hue and normalisation are one affine map of RGB, which is one product a crop.
    Nothing is clipped at black and white: burnt-out highlights would be a distortion that the label does not count.

    Args:
        crops: pixels 0..255.
        augment: (B, K, 5) as in `Batch`; (0, 1, 1, 1, 0) changes nothing.
        mean: of the backbone's input, per channel, for pixels 0..1.
        std: of the backbone's input, per channel.
        jitter: apply the colour part of `augment`. The caller says it, because looking would wait for the device.
    """
    pixels, augment = crops.flatten(0, 1), augment.flatten(0, 1)  # (N, 3, H, W), (N, 5)
    images = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    mean_t, std_t = (255 * device_constant(tuple(values), images.device)[:, None] for values in (mean, std))  # (3, 1)
    some = 1 if pixels.device.type == "cpu" else max(1, len(pixels))  # a crop's floats fit into a CPU's cache
    buffer = images.new_ones((some, 4, *pixels.shape[2:]))  # red, green, blue, and the 1 that an offset multiplies
    tensors = (images, pixels, augment[:, 0].bool(), *(_colour_maps(augment, mean_t, std_t) if jitter else ()))
    for out, part, flip, *maps in zip(*(tensor.split(some) for tensor in tensors), strict=True):
        if jitter:
            planes, (of_pixel, of_mean) = buffer[: len(part)], maps
            rgb = planes[:, :3].copy_(_mirrored(part, flip))
            of_pixel[:, :, 3:].baddbmm_(of_mean, rgb.flatten(2).mean(2, keepdim=True))
            torch.bmm(of_pixel, planes.flatten(2), out=out.flatten(2))
        else:
            out.copy_(_mirrored(part, flip)).sub_(mean_t[:, :, None]).div_(std_t[:, :, None])
    return images
