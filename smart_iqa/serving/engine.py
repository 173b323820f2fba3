"""An uploaded file -> what the model says of it: score, interval, level, stage weights, and a map over the image."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from data_loader import UNCHANGED, CropDataset, resized_size
from iqa.config import Config, parse_resize
from iqa.data import ImageFileError, open_rgb, opened
from iqa.errors import UserError
from iqa.runtime import autocast
from smart_iqa.maps import score_map
from smart_iqa.probes import StageWeights
from smart_iqa.scorer import Scorer
from smart_iqa.serving.batches import Batches
from smart_iqa.serving.limits import MB, Limits, RequestError
from smart_iqa.serving.uploads import Upload

MAP_SIDE = 64  # values of a map's longer side: stage 3 of an image of 2,048 pixels has no more
_CPU_BATCH = 2**20  # pixels: beyond, a batch no longer fits a cache and gains nothing
_GPU_BATCH = 2**24
_DECODED_PER_THREAD = 4  # images that are decoded or wait for the model

_READ_AS = "JPEG, PNG, WebP, TIFF, GIF, BMP and others are read"


class Decoded(NamedTuple):
    """An image in memory."""

    width: int  # as stored, upright
    height: int
    crops: Tensor  # (K, 3, h, w) uint8: what the score is the mean over


class Engine:
    """A model that scores uploads: decoding in some threads, the network in one.

    Args:
        scorer: the model, with its preprocessing.
        limits: what is taken of an image.
    """

    def __init__(self, scorer: Scorer, limits: Limits):
        self.scorer, self.limits = scorer, limits
        self.batches = Batches(_CPU_BATCH if scorer.accelerator.device.type == "cpu" else _GPU_BATCH)
        threads = max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)
        self.decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self.places = asyncio.Semaphore(_DECODED_PER_THREAD * threads)  # bounds the memory of decoded images
        self._weigh = StageWeights(scorer.model)

    def close(self) -> None:
        """End the threads."""
        self.decoders.shutdown(cancel_futures=True)
        self.batches.close()

    async def score(self, upload: Upload, with_map: bool = False) -> dict:
        """Score an upload.

        Args:
            upload: an image file.
            with_map: add the map, which takes as long as the score again.

        Returns:
            The fields of `app.Scored`.

        Raises:
            RequestError: it cannot be read, or is larger than the limits allow.
        """
        async with self.places:
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(self.decoders, decode, upload, self.scorer.config, self.limits)
            values = await self.batches.compute(self._values, image.crops)
            row = {"name": upload.label, "width": image.width, "height": image.height, **self._said(values)}
            return row | ({"map": await self._map(upload)} if with_map else {})

    def _said(self, values: Tensor) -> dict:
        """Score, interval, level and stage weights from rows of `StageWeights`, rounded as `predict` does."""
        score, *weights = values.double().mean(dim=0).tolist()
        score, meaning = min(max(score, 0.0), 100.0), self.scorer.meaning
        said: dict = {"score": round(score, 4), "stage_weights": [round(w, 4) for w in weights] or None}
        if meaning is not None:
            low, high = meaning.interval(score)
            said |= {"low": round(low, 1), "high": round(high, 1), "level": meaning.level(score)}
        return said

    def _images(self, crops: Tensor) -> Tensor:
        """Crops (N, 3, h, w) uint8 -> normalised images on the model's device."""
        unchanged = torch.tensor(UNCHANGED).expand(1, len(crops), -1)
        return self.scorer.to_images(crops[None], unchanged).to(self.scorer.accelerator.device)

    @torch.inference_mode()
    def _values(self, crops: Tensor) -> Tensor:
        """Crops (N, 3, h, w) -> score and stage weights of each, (N, 5) or (N, 1)."""
        with autocast(self.scorer.accelerator):
            return self._weigh(self._images(crops)).float().cpu()

    async def _map(self, upload: Upload) -> list[list[float]]:
        """Grad-CAM over the whole image, with at most `MAP_SIDE` values a side."""
        as_path = cast(str, upload)  # Pillow reads either
        _, values = await asyncio.get_running_loop().run_in_executor(
            self.batches.thread, score_map, self.scorer, as_path
        )
        return reduced_map(torch.from_numpy(values).float())


def reduced_map(values: Tensor) -> list[list[float]]:
    """A map (H, W) -> rows of at most `MAP_SIDE` values, each the mean over its part of the image."""
    scale = min(1.0, MAP_SIDE / max(values.shape))
    rows, columns = (max(1, round(side * scale)) for side in values.shape)
    small = F.interpolate(values[None, None], size=(rows, columns), mode="area")[0, 0]
    return [[round(value, 2) for value in row] for row in small.tolist()]


def decode(upload: Upload, config: Config, limits: Limits) -> Decoded:
    """Decode and resize an upload, and cut its crops, as any test of a file does.

    Raises:
        RequestError: it is not an image (415), is damaged (422), or has too many pixels (413).
    """
    if upload.problem is not None:
        raise upload.problem
    size: dict[str, int] = {}

    def wanted(width: int, height: int) -> tuple[int, int]:
        size.update(width=width, height=height)
        return _seen_size(width, height, config, limits)

    as_path = cast(str, upload)  # Pillow reads either
    try:
        with opened(as_path) as header:
            _check_pixels(header.width, header.height, limits)  # first: to know how it is turned, a PNG is decoded
        image = open_rgb(as_path, wanted)
    except ImageFileError as error:
        raise _unreadable(error, limits) from error
    except UserError as error:
        raise _unreadable(error.__cause__, limits) from error
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    return Decoded(**size, crops=_Pixels(upload.label, pixels, config)[0].crops)


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_megapixels * MB:
        raise RequestError(413, f"{width} x {height} pixels are over {limits.max_megapixels:g} million; scale it down")


def _seen_size(width: int, height: int, config: Config, limits: Limits) -> tuple[int, int]:
    """The size an image is resized to, if that is within the limits."""
    seen = resized_size(width, height, parse_resize(config.resize), config.patch_size)
    if seen[0] * seen[1] > limits.max_seen_megapixels * MB:
        raise RequestError(
            413,
            f"{width} x {height} pixels become {seen[0]} x {seen[1]} for the network, more than "
            f"{limits.max_seen_megapixels:g} million; cut out a part that is less long and narrow",
        )
    return seen


def _unreadable(error: BaseException | None, limits: Limits) -> RequestError:
    """Why an `ImageFileError` was raised: by Pillow, or because a kind of image is not taken."""
    cause = error.__cause__ if error is not None else None
    if isinstance(cause, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return RequestError(413, f"it has more than {limits.max_megapixels:g} million pixels; scale it down")
    if isinstance(cause, UnidentifiedImageError):
        return RequestError(415, f"this is not an image: {_READ_AS}")
    return RequestError(415 if cause is None else 422, f"the image cannot be read: {error}")


class _Pixels(CropDataset):
    """The test crops of one image whose pixels (3, H, W) are here."""

    def __init__(self, name: str, pixels: np.ndarray, config: Config):
        super().__init__(pd.DataFrame({"image": [name], "path": [name], "mos": np.nan, "mos_std": np.nan}), config)
        self.pixels = pixels

    def _pixels(self, row: int) -> np.ndarray:
        return self.pixels
