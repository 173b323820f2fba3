"""The attention weights inside a Swin backbone, and their rollout to a map over the image.

    normalised images -[window_attention]-> a LayerAttention per block -[attention_rollout]-> maps (B, H0, W0)

For the analyses of attention. timm's Swin and Swin V2 compute attention in windows, every second block in
windows shifted cyclically; both the windows' places and what may attend to what are taken from timm's own
forward, at any size of image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iqa.errors import UserError
from iqa.system import declare_missing_operators

declare_missing_operators()
from timm.models.swin_transformer import SwinTransformerStage, window_partition  # noqa: E402  (imports torchvision)
from timm.models.swin_transformer_v2 import SwinTransformerV2Stage  # noqa: E402

_PADDING = -1


class LayerAttention(NamedTuple):
    """The attention of one block; rows of `weights` (its last dimension) sum to 1.

    N tokens make a window. A token's place is its index in the row-major grid of `height` x `width` tokens.
    """

    stage: int  # 0 (fine) .. 3 (coarse)
    block: int  # in its stage
    weights: Tensor  # (B, windows, heads, N, N), after softmax: query, token
    positions: Tensor  # (windows, N) long: each window token's place, the shift undone; -1 for padding
    height: int
    width: int
    allowed: Tensor  # (windows, N, N) bool: the token is of the image, and of the query's side of the shift's seam


def window_attention(body: nn.Module, images: Tensor) -> list[LayerAttention]:
    """Collect the attention weights of every block, in order, from one pass without gradients.

    Args:
        body: timm's Swin or Swin V2 features, in evaluation mode.
        images: (B, 3, H, W) normalised, sides divisible by the patch size (4) and of at least 32.

    Raises:
        UserError: the body has no Swin window attention.
    """
    with torch.no_grad(), collect_window_attention(body) as layers:
        body(images)
    return layers


@contextmanager
def collect_window_attention(body: nn.Module) -> Iterator[list[LayerAttention]]:
    """Give a list that gains a LayerAttention for every block that runs inside the `with`.

    For who needs scores and attention of the same pass. On leaving, also by an error, the body is as before.

    Raises:
        UserError: the body has no Swin window attention.
    """
    blocks = _swin_blocks(body)
    layers: list[LayerAttention] = []
    with ExitStack() as restore:
        for stage, block, module in blocks:
            _switch_off_fused(module.attn, restore)
            _hook(module, stage, block, layers, restore)
        yield layers


def has_window_attention(body: nn.Module) -> bool:
    """Tell whether a body is timm's Swin or Swin V2."""
    return any(isinstance(module, SwinTransformerStage | SwinTransformerV2Stage) for module in body.modules())


def _swin_blocks(body: nn.Module) -> list[tuple[int, int, nn.Module]]:
    """List (stage, number in the stage, block) of every block, in the order they run."""
    if not has_window_attention(body):
        raise UserError("this backbone has no Swin window attention to show: use Grad-CAM, which any backbone has")
    stages = [m for m in body.modules() if isinstance(m, SwinTransformerStage | SwinTransformerV2Stage)]
    return [(i, j, block) for i, stage in enumerate(stages) for j, block in enumerate(stage.blocks)]


def _switch_off_fused(attention: nn.Module, restore: ExitStack) -> None:
    """Fused attention never forms the weights; only the first version of Swin has it."""
    if hasattr(attention, "fused_attn"):
        restore.callback(setattr, attention, "fused_attn", attention.fused_attn)
        attention.fused_attn = False


def _hook(module: nn.Module, stage: int, block: int, layers: list[LayerAttention], restore: ExitStack) -> None:
    """Append a block's LayerAttention whenever it runs.

    By hooks, since timm's features return no weights: a block's input has the grid's size, its attention's
    call the mask of the seam, and its attention dropout is given the weights.
    """
    seen: dict[str, Tensor | None] = {}

    def on_block(_: nn.Module, inputs: tuple) -> None:
        seen["tokens"] = inputs[0]  # (B, H, W, C)

    def on_attention(_: nn.Module, inputs: tuple, named: dict) -> None:
        seen["mask"] = named["mask"]  # (windows, N, N): 0, or -100 across the seam; None without a shift

    def on_weights(_: nn.Module, inputs: tuple) -> None:
        B, H, W, _ = seen["tokens"].shape
        positions = _window_positions(H, W, module.window_size, module.shift_size).to(inputs[0].device)
        allowed = (positions != _PADDING)[:, None, :].repeat(1, positions.shape[1], 1)
        if seen["mask"] is not None:
            allowed &= seen["mask"] == 0
        weights = inputs[0].unflatten(0, (B, len(positions)))  # (B, windows, heads, N, N)
        layers.append(LayerAttention(stage, block, weights, positions, H, W, allowed))
        seen.clear()

    for handle in (
        module.register_forward_pre_hook(on_block),
        module.attn.register_forward_pre_hook(on_attention, with_kwargs=True),
        module.attn.attn_drop.register_forward_pre_hook(on_weights),
    ):
        restore.callback(handle.remove)


def _window_positions(height: int, width: int, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Place (windows, N) of each window token on the grid: shift, then pad, then cut, as timm does."""
    grid = torch.arange(height * width).view(height, width)
    grid = grid.roll((-shift[0], -shift[1]), dims=(0, 1))
    grid = F.pad(grid, (0, -width % window[1], 0, -height % window[0]), value=_PADDING)
    return window_partition(grid[None, :, :, None], tuple(window)).flatten(1)


def attention_rollout(layers: Sequence[LayerAttention]) -> Tensor:
    """Find how much each token of the finest stage counts for the coarsest stage's output.

    Starts with equal relevance of the last stage's tokens and goes back block by block: r <- r (A + I) / 2, with
    A the mean over heads and I for the residual connection; then through patch merging, where a token hands
    its relevance in equal shares to the 2 x 2 tokens (fewer at odd edges) it was merged from. Attention to
    padding is left out and the rest of the row scaled to 1, since padding shows nothing of the image.
    Everything happens in windows: no matrix over the whole grid is formed.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020; windows and patch merging
    are this project's extension of it.

    Args:
        layers: of one pass, in order, as `window_attention` gives them.

    Returns:
        (B, H0, W0), non-negative; each map sums to 1.
    """
    B, last = len(layers[-1].weights), layers[-1]
    relevance = last.weights.new_full((B, last.height, last.width), 1 / (last.height * last.width))
    for layer in reversed(layers):
        relevance = _to_finer_grid(relevance, layer.height, layer.width)
        relevance = (relevance + _back_through_windows(relevance, layer)) / 2
    return relevance / relevance.sum(dim=(1, 2), keepdim=True)


def _back_through_windows(relevance: Tensor, layer: LayerAttention) -> Tensor:
    """Relevance (B, H, W) of a block's outputs -> r A, of its inputs."""
    weights = layer.weights.mean(dim=2) * layer.allowed  # (B, windows, N, N)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    B, (windows, N) = len(relevance), layer.positions.shape
    is_real = layer.positions != _PADDING
    places = layer.positions[is_real]  # (H * W,)
    in_windows = relevance.new_zeros(B, windows, N)
    in_windows[:, is_real] = relevance.flatten(1)[:, places]
    in_windows = torch.einsum("bwq,bwqt->bwt", in_windows, weights)
    back = torch.empty_like(relevance).flatten(1)
    back[:, places] = in_windows[:, is_real]
    return back.view_as(relevance)


def _to_finer_grid(relevance: Tensor, height: int, width: int) -> Tensor:
    """Undo patch merging: (B, ceil(height / 2), ceil(width / 2)) -> (B, height, width); the same size stays."""
    if relevance.shape[1:] == (height, width):
        return relevance
    for dim, size in ((1, height), (2, width)):
        merged = torch.arange(size, device=relevance.device) // 2  # parent of each finer row or column
        shares = relevance.new_ones(size) / merged.bincount()[merged]
        relevance = relevance.index_select(dim, merged) * shares.view([-1 if d == dim else 1 for d in range(3)])
    return relevance
