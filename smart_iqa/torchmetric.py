"""The mean score of images as a torchmetrics `Metric`, for the training loop of a network that makes images.

    quality = smart_iqa.ImageQuality()
    quality.update(images)
    quality.compute()

Needs `pip install smart-iqa[torchmetrics]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iqa.errors import UserError
from smart_iqa.scorer import load_model
from smart_iqa.shipped import DEFAULT

try:
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    raise UserError(f"{error}: pip install smart-iqa[torchmetrics]") from error


class ImageQuality(Metric):
    """The mean score of all images since the last reset: 0..100, higher is better.

    Sums and counts are added over processes, so that the mean is over the images of all of them.

    Args:
        checkpoint: as `load_model` takes it.
        device: where scores are computed. Images come from any device, and `to` moves the sums alone.
        **options: those of torchmetrics' `Metric`.

    Raises:
        UserError: no such model.
    """

    is_differentiable = True
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0
    total: Tensor
    images: Tensor

    def __init__(self, checkpoint: str | Path = DEFAULT, device: str = "auto", **options: Any):
        super().__init__(**options)
        self.model = load_model(checkpoint, device)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Add images (B, 3, H, W), RGB, float in 0..1.

        Raises:
            UserError: another shape, type or range.
        """
        self.total = self.total + self.model(images).sum().to(self.total.device)
        self.images = self.images + len(images)

    def compute(self) -> Tensor:
        """The mean score, a scalar; NaN before the first image."""
        return self.total / self.images
