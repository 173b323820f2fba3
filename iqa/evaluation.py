"""A model over a loader: one score per image, the mean over its crops."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader

from iqa.errors import UserError
from iqa.runtime import autocast
from iqa.system import progress

log = logging.getLogger(__name__)
ToImages = Callable[[Tensor, Tensor], Tensor]


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader: DataLoader,
    to_images: ToImages,
    accelerator: Accelerator,
    description: str = "predict",
) -> np.ndarray:
    """Scores (or features) of every image of a test loader, in the table's order.

    Args:
        model: images (N, 3, H, W) -> scores (N,), or features (N, D).
        loader: prepared by the accelerator; yields batches with crops (B, K, 3, H, W) and index (B,).
        to_images: crops and their augmentation -> normalised images (B*K, 3, H, W).
        accelerator: gathers the scores of all processes.
        description: what the progress bar says.

    Returns:
        (n,) or (n, D) float64: per image the mean over its K crops.

    Raises:
        UserError: the memory does not suffice for one crop.
    """
    model.eval()
    means_of = image_means(model, to_images, accelerator)
    found: list[tuple[Tensor, Tensor]] = []  # on the device: a copy to the host would wait for it each time
    for batch in progress(loader, description, show=accelerator.is_main_process):
        found.append(accelerator.gather((means_of(batch.crops, batch.augment), batch.index)))
    scores, index = (torch.cat(values).cpu().numpy() for values in zip(*found, strict=True))
    # Processes with fewer images repeat some, so that all have equally many batches: rows are told by their index.
    by_row = np.empty((len(loader.dataset), *scores.shape[1:]))
    by_row[index] = scores
    return by_row


def image_means(model: nn.Module, to_images: ToImages, accelerator: Accelerator) -> Callable[[Tensor, Tensor], Tensor]:
    """What gives each image of a batch its score (or features), the mean over its crops.

    Args:
        model: images (N, 3, H, W) -> scores (N,), or features (N, D); in evaluation mode.
        to_images: crops and their augmentation -> normalised images (B*K, 3, H, W).
        accelerator: gives the precision.

    Returns:
        A function of crops (B, K, 3, H, W) and their augmentation (B, K, 5), both on the device, that gives (B,) or
        (B, D) float32. It raises UserError where the memory does not suffice for one crop.
    """
    in_parts = _InParts(model)

    @torch.inference_mode()
    def means_of(crops: Tensor, augment: Tensor) -> Tensor:
        with autocast(accelerator):
            crop_scores = in_parts(to_images(crops, augment))  # (B*K, ...)
        return crop_scores.float().unflatten(0, crops.shape[:2]).mean(dim=1)  # (B, ...)

    return means_of


class _InParts:
    """A model that takes a batch in parts: half as large each time that the memory does not suffice."""

    def __init__(self, model: nn.Module):
        self.model, self.most = model, sys.maxsize

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, ...) -> scores or features (N, ...)."""
        while True:
            try:
                parts = [self.model(part) for part in images.split(self.most)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._halve(images.shape)
            torch.cuda.empty_cache()  # does nothing without a GPU

    def _halve(self, shape: torch.Size) -> None:
        tried = min(self.most, shape[0])
        if tried == 1:
            raise UserError(
                f"out of memory with a single crop of {shape[-2]}x{shape[-1]} pixels: lower --patch_size (or --resize "
                "with --test_mode full), or compute on another --device"
            )
        self.most = math.ceil(tried / 2)
        log.warning("out of memory with %d crops at once: going on with %d", tried, self.most)
