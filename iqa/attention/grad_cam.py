"""Grad-CAM: where in an image a stage's features raise the score, and where they lower it.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
Works for any backbone, since it needs a stage's map and the gradient of the score with respect to it only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def grad_cam(model: nn.Module, images: Tensor, stage: int = 3) -> Tensor:
    """Signed Grad-CAM of the score on one stage.

    With A (C, h, w) the stage's map and a_c the mean over positions of d score / d A_c, the map is
    L = h w sum_c a_c A_c. Two things differ from the paper, since a score is not a class: negative values are kept
    (positive raises the score, negative lowers it), and the factor h w makes the mean of L the stage's first-order
    contribution to the score, sum_c a_c sum_xy A_c, so that maps of any size are in points of the score.
    The gradient is of what the head does with the stage itself, not of what later stages make of it; for stage 3
    that is the whole gradient.

    Args:
        model: in evaluation mode; `backbone(images)` gives the stages, `from_stages` what has `scores`
            (a `models_swin.SmartIQA`).
        images: (B, 3, H, W), normalised.
        stage: 0 (fine) to 3 (coarse).

    Returns:
        (B, H, W) float32, points of the score (mos units), unbounded, brought to the images' size bilinearly.

    Raises:
        ValueError: there is no such stage.
    """
    with torch.no_grad():
        stages = model.backbone(images)  # 4 x (B, C_i, H_i, W_i)
    if not 0 <= stage < len(stages):
        raise ValueError(f"expected a stage of 0..{len(stages) - 1}, got {stage}")
    with torch.enable_grad():
        stages[stage] = stages[stage].detach().requires_grad_()
        # Each score depends on its own image only, so the gradient of their sum holds the gradient of each.
        (gradient,) = torch.autograd.grad(model.from_stages(stages, stages).scores.sum(), stages[stage])
    h, w = gradient.shape[-2:]
    slopes = gradient.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    maps = h * w * (slopes * stages[stage].detach()).sum(dim=1)  # (B, h, w)
    return place_on_images(maps.float(), model.backbone.strides[stage], *images.shape[-2:])


def place_on_images(maps: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Maps (B, h, w) whose positions lie `stride` pixels apart -> (B, height, width), bilinear.

    A stage's last row and column may hang over the image's edge (144 pixels are five strides of 32, rounded up);
    what hangs over is cut off, so that every position stays where it was looked at.
    """
    h, w = maps.shape[-2:]
    covered = (max(height, h * stride), max(width, w * stride))
    placed = F.interpolate(maps[:, None], size=covered, mode="bilinear", align_corners=False)
    return placed[:, 0, :height, :width]
