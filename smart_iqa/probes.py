"""A model with another output in the place of its score, for what runs a model over a loader."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models_swin import Backbone, JoinedBackbone, SmartIQA


class StageWeights(nn.Module):
    """Images (B, 3, H, W) -> score and, where the fusion has them, the four stage weights: (B, 5) or (B, 1)."""

    def __init__(self, model: SmartIQA):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, 5), or (B, 1) for a fusion without stage weights."""
        inspected = self.model.inspect(images)
        scores = inspected.scores[:, None]
        return scores if inspected.stage_weights is None else torch.cat([scores, inspected.stage_weights], dim=1)


class GeneratedWeights(nn.Module):
    """Images (B, 3, H, W) -> score, then all weights and biases of the generated TargetNet: (B, 1 + D)."""

    def __init__(self, model: SmartIQA):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, 1 + D): layer by layer the weights (row-major), then the biases."""
        inspected = self.model.inspect(images)
        generated = [part.flatten(1) for part in (*inspected.target_weights.weights, *inspected.target_weights.biases)]
        return torch.cat([inspected.scores[:, None], *generated], dim=1)


class PooledFeatures(nn.Module):
    """Images (B, 3, H, W) -> the backbone's four stages, each averaged over positions: (B, sum C_i)."""

    def __init__(self, backbone: Backbone | JoinedBackbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, sum C_i)."""
        return torch.cat([stage.mean(dim=(2, 3)) for stage in self.backbone(images)], dim=1)
