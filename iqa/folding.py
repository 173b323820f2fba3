"""Batch normalisation folded into the convolution before it: the same scores by fewer passes over the features.

In evaluation mode batch normalisation is one factor and one offset for each channel, so the convolution before it can
do it. What has been folded is for scoring: it cannot be trained or saved any more.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_SIDE = 128  # pixels of the image that shows what follows what; a quarter of it is the least a backbone takes
_TOLERANCE = 1e-3  # of features, relative to the largest


@torch.no_grad()
def folded(model: nn.Module) -> nn.Module:
    """A copy of a model whose backbone has no batch normalisation left behind a convolution.

    What a convolution gives and batch normalisation takes is seen in one pass; names and order tell too little.

    Args:
        model: in evaluation mode; `model.backbone` takes images (B, 3, H, W) and gives a list of maps.

    Returns:
        The copy; the model itself where there is nothing to fold, or where the copy's features would be others.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules()):
        return model
    copied = copy.deepcopy(model)
    image = torch.rand(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    image = image.to(next(copied.parameters()).device)
    pairs, before = _pairs(copied.backbone, image)
    for convolution, norm in pairs:
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        _replace(copied.backbone, norm, getattr(norm, "act", nn.Identity()))  # timm's have the activation inside
    after = copied.backbone(image)
    same = all((a - b).abs().max() <= _TOLERANCE * b.abs().max() for a, b in zip(after, before, strict=True))
    return copied if same else model


def _pairs(backbone: nn.Module, image: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], list[Tensor]]:
    """Each batch normalisation that takes what one convolution gives, alone; and the features of an image."""
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # so that no other tensor gets the identity of one
    follows: list[tuple[nn.Conv2d, nn.Module]] = []
    hooks = []

    def on_output(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        made_by[id(output)] = module
        kept.append(output)

    def on_input(module: nn.Module, inputs: tuple) -> None:
        if inputs and id(inputs[0]) in made_by:
            follows.append((made_by[id(inputs[0])], module))

    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) or not list(module.children()):
            hooks.append(module.register_forward_pre_hook(on_input))
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(on_output))
    try:
        features = backbone(image)
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(module for pair in follows for module in pair)
    alone = [pair for pair in follows if {times[module] for module in pair} == {1}]
    return [(conv, norm) for conv, norm in alone if isinstance(norm, nn.BatchNorm2d)], features


def _replace(inside: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, module in inside.named_modules() if module is old)
    parent, _, last = name.rpartition(".")
    setattr(inside.get_submodule(parent), last, new)
