"""A model over a loader: one score per image, the mean over its crops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from iqa.runtime import autocast
from iqa.system import progress

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
    """
    model.eval()
    found: list[tuple[Tensor, Tensor]] = []  # on the device: a copy to the host would wait for it each time
    for batch in progress(loader, description, show=accelerator.is_main_process):
        B, K = batch.crops.shape[:2]
        with autocast(accelerator):
            crop_scores = model(to_images(batch.crops, batch.augment))  # (B*K, ...)
        image_scores = crop_scores.float().view(B, K, *crop_scores.shape[1:]).mean(dim=1)  # (B, ...)
        found.append(accelerator.gather((image_scores, batch.index)))
    scores, index = (torch.cat(values).cpu().numpy() for values in zip(*found, strict=True))
    # Processes with fewer images repeat some, so that all have equally many batches: rows are told by their index.
    by_row = np.empty((len(loader.dataset), *scores.shape[1:]))
    by_row[index] = scores
    return by_row
