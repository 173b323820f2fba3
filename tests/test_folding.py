"""Batch normalisation folded into convolutions: nothing is left of it, and no score changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from iqa.folding import folded
from models_swin import SmartIQA


def shaken(backbone: str) -> SmartIQA:
    """A network whose batch normalisation has statistics and factors that differ by channel."""
    torch.manual_seed(0)
    model = SmartIQA(backbone, "channel").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.running_mean, module.bias.data):
                tensor.uniform_(-0.2, 0.2)
    return model


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_100"])
@torch.no_grad()
def test_no_batch_normalisation_is_left_and_scores_are_the_same(backbone):
    model = shaken(backbone)
    faster = folded(model)
    left = [name for name, module in faster.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == [] and any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    images = torch.randn(2, 3, 96, 80)
    torch.testing.assert_close(faster(images), model(images), rtol=1e-4, atol=1e-3)


def test_a_network_without_batch_normalisation_is_left_as_it_is():
    model = SmartIQA("nano").eval()
    assert folded(model) is model


class Unusual(nn.Module):
    """A backbone that reads a convolution's output twice: beside its batch normalisation, unseen, as it is."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.norm.running_mean.fill_(3.0)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = self.conv(images)
        return [self.norm(features) + features]


def test_a_backbone_that_would_give_other_features_is_left_as_it_is():
    model = nn.Module()
    model.backbone = Unusual().eval()
    assert folded(model) is model
