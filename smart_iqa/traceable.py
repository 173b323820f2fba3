"""A network in a form that torch.export follows for images of any size: the same weights, the same scores.

timm's paddings are written so that the size after them is a sum of remainders; after some layers those sums are too
long for the exporter. Here a padded size is a multiple: `cells * step`, with `cells = ceil(size / step)`.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iqa.system import declare_missing_operators
from models_swin import SmartIQA

declare_missing_operators()
from timm.layers import Conv2dSame  # noqa: E402  (importing timm imports torchvision, which needs the line above)
from timm.models import swin_transformer, swin_transformer_v2  # noqa: E402


class ScoreImages(nn.Module):
    """Images (B, 3, H, W) in 0..1, sides of at least 32 -> scores (B,) on 0..100: what an exported file computes.

    Args:
        model: the network; it is copied, and stays as it is.
        limits: whether scores outside 0..100 are set to its end.
    """

    def __init__(self, model: SmartIQA, limits: bool = True):
        super().__init__()
        self.model, self.limits = traceable(model), limits

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        scores = self.model(self.model.backbone.normalise(images))
        return scores.clamp(0, 100) if self.limits else scores


def traceable(model: SmartIQA) -> SmartIQA:
    """A copy of a network, in evaluation mode and on the CPU, whose layers have forms that the exporter follows."""
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    module: Any  # timm declares no types
    for module in model.backbone.modules():
        if isinstance(module, Conv2dSame):
            _replace(module, "forward", convolve_same)
        elif hasattr(module, "get_attn_mask"):
            _replace(module, "_attn", attend_in_windows)
            module.attn.fused_attn = False  # its mask is made anew for every image
        elif isinstance(module, swin_transformer.PatchMerging | swin_transformer_v2.PatchMerging):
            _replace(module, "forward", merge_patches)
    for module in model.fusion.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            _replace(module, "forward", convolve_points)
        elif isinstance(module, nn.MultiheadAttention):
            _replace(module, "forward", attend_to_all)
    if not model.backbone.channels_last_output:
        model.backbone.is_convolutional = False  # in the exporter the order of memory is a matter of sizes
        backbone: Any = model.backbone  # of one network, else its body refuses
        body = backbone.body
        backbone.body = _ChannelsLast(body.to(memory_format=torch.contiguous_format))
        model.backbone.channels_last_output = True
    return model


class _ChannelsLast(nn.Module):
    """A backbone's body whose maps come as the pooling reads them: (B, H, W, C), in this order in memory."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        return [s.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format) for s in self.body(images)]


def _replace(module: nn.Module, method: str, function: Any) -> None:
    setattr(module, method, functools.partial(function, module))


def _times(size: int, step: int) -> int:
    """How many steps cover a size."""
    return (size + step - 1) // step


def convolve_same(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's convolution `SAME`, in place of timm's: maps (B, C, H, W) -> (B, D, ceil(H/stride), ...)."""
    paddings: list[int] = []
    for axis in (1, 0):
        size, step = x.shape[2 + axis], convolution.stride[axis]
        reach = (convolution.kernel_size[axis] - 1) * convolution.dilation[axis] + 1
        total = _times(size, step) * step - size + reach - step
        total = total if reach >= step else torch.sym_max(total, 0)
        paddings += [total // 2, total - total // 2]
    weights = (convolution.weight, convolution.bias, convolution.stride)
    return F.conv2d(F.pad(x, paddings), *weights, dilation=convolution.dilation, groups=convolution.groups)


def convolve_points(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix product over maps (B, C, H, W) that lie channels last."""
    return F.linear(x.permute(0, 2, 3, 1), convolution.weight[:, :, 0, 0], convolution.bias).permute(0, 3, 1, 2)


def attend_to_all(attention: nn.MultiheadAttention, tokens: Tensor, *_: Tensor, **__: bool) -> tuple[Tensor, Tensor]:
    """Multi-head attention of tokens (B, N, C) to themselves -> the same, and the weights (B, heads, N, N)."""
    B, N, C = tokens.shape
    heads = attention.num_heads
    parts = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = parts.view(B, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, C/h)
    weights = (query @ key.mT * (C // heads) ** -0.5).softmax(dim=-1)
    return attention.out_proj((weights @ value).transpose(1, 2).reshape(B, N, C)), weights


def attend_in_windows(block: Any, x: Tensor) -> Tensor:
    """Attention within (shifted) windows, in place of `_attn` of timm's Swin blocks: tokens (B, H, W, C) -> the same.

    Tokens go into windows and back by an index: the exporter knows its size, where it would have to know of views
    whether a side is one window long.
    """
    B, H, W, C = x.shape
    (height, width), (down, across) = block.window_size, block.shift_size
    rows, columns = _times(H, height), _times(W, width)
    area = height * width
    high, wide, beside = (torch.full((), size, dtype=torch.long) for size in (H, W, columns))  # ONNX divides tensors
    slot = torch.arange(rows * columns * area)
    place, window = slot % area, slot // area
    row, column = window // beside * height + place // width, window % beside * width + place % width
    shifted = (row + down) % high * wide + (column + across) % wide
    source = torch.where((row < high) & (column < wide), shifted, high * wide)  # the last token is the zero that pads
    windows = F.pad(x.reshape(B, H * W, C), (0, 0, 0, 1)).index_select(1, source)
    mask = None
    if down or across:
        region = 3 * _border(row, height, down) + _border(column, width, across)
        region = region.view(rows * columns, area)
        mask = (region[:, :, None] != region[:, None]) * -100.0  # (windows, area, area)
    attended = block.attn(windows.view(B * rows * columns, area, C), mask=mask)
    token = torch.arange(H * W)
    row, column = (token // wide - down) % high, (token % wide - across) % wide
    back = (row // height * beside + column // width) * area + row % height * width + column % width
    return attended.reshape(B, rows * columns * area, C).index_select(1, back).reshape(B, H, W, C)


def _border(place: Tensor, window: int, shift: int) -> Tensor:
    """Along one axis: 0 before the last window, and in it 1, or 2 for what came from the other border."""
    size = place.max() + 1
    return (place >= size - window).int() + (place >= size - shift).int()


def merge_patches(merging: Any, x: Tensor) -> Tensor:
    """Join tokens two by two, in place of timm's PatchMerging: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), D)."""
    B, H, W, C = x.shape
    rows, columns = _times(H, 2), _times(W, 2)
    x = F.pad(x, (0, 0, 0, 2 * columns - W, 0, 2 * rows - H))
    x = x.reshape(B, rows, 2, columns, 2, C).permute(0, 1, 3, 4, 2, 5).flatten(3)
    if isinstance(merging, swin_transformer_v2.PatchMerging):
        return merging.norm(merging.reduction(x))
    return merging.reduction(merging.norm(x))
