"""Window attention is what the network used, in its place; rollout equals a dense one by brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from iqa.attention import (
    LayerAttention,
    attention_rollout,
    collect_window_attention,
    has_window_attention,
    window_attention,
)
from iqa.errors import UserError
from models_swin import Backbone

# Whole windows; one window that is mostly padding; odd grids, which merging pads; a long strip.
SIZES = [(224, 224), (32, 32), (64, 100), (36, 220)]


def sharpen(body: nn.Module) -> nn.Module:
    """Random weights of a size that makes attention far from uniform."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            if "qkv.weight" in name:
                parameter.normal_(0, 1.2 / parameter.shape[1] ** 0.5)
            if "relative_position_bias_table" in name:
                parameter.normal_(0, 0.5)
            if "patch_embed" not in name and name.endswith("bias"):
                parameter.normal_(0, 0.5)  # padding then has keys that attract attention
    return body.eval()


@pytest.fixture(scope="module")
def swin() -> nn.Module:
    return sharpen(Backbone("nano").body)


@pytest.fixture(scope="module")
def swin_v2() -> nn.Module:
    from iqa.system import declare_missing_operators

    declare_missing_operators()
    import timm

    options = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 2), "strict_img_size": False}
    return sharpen(timm.create_model("swinv2_tiny_window8_256", features_only=True, **options))


@pytest.fixture(params=["swin", "swin_v2"])
def body(request) -> nn.Module:
    return request.getfixturevalue(request.param)


def images(size: tuple[int, int], count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_rows_sum_to_one_and_every_token_lies_in_exactly_one_window(body, size):
    for layer in window_attention(body, images(size)):
        sums = layer.weights.sum(dim=-1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        places = layer.positions[layer.positions >= 0].sort().values
        assert torch.equal(places, torch.arange(layer.height * layer.width))


def test_layers_come_in_order_with_the_grid_of_their_stage(swin):
    layers = window_attention(swin, images((64, 100)))
    assert [(layer.stage, layer.block) for layer in layers] == [(s, b) for s in range(4) for b in range(2)]
    assert [(layer.height, layer.width) for layer in layers[::2]] == [(16, 25), (8, 13), (4, 7), (2, 4)]


@pytest.mark.parametrize("size", [(32, 32), (64, 100), (112, 112)])
def test_the_weights_at_their_places_reproduce_what_the_block_computed(swin, size):
    """values of a block's attention -> dense A @ V over the grid, head by head, equals timm's own result."""
    attention, seen = swin.layers_0.blocks[1].attn, {}
    hooks = [
        swin.layers_0.blocks[1].norm1.register_forward_hook(lambda m, i, o: seen.update(tokens=o)),
        attention.qkv.register_forward_hook(lambda m, i, o: seen.update(qkv=o)),
        attention.proj.register_forward_pre_hook(lambda m, i: seen.update(result=i[0])),
    ]
    layer = window_attention(swin, images(size, 1))[1]
    for hook in hooks:
        hook.remove()
    tokens = seen["tokens"][0].flatten(0, 1)  # (HW, C), on the unshifted grid
    values = tokens @ attention.qkv.weight.T[:, -tokens.shape[1] :] + attention.qkv.bias[-tokens.shape[1] :]
    heads = values.unflatten(1, (attention.num_heads, -1)).transpose(0, 1)  # (heads, HW, D)
    padding = attention.qkv.bias[-tokens.shape[1] :].unflatten(0, (attention.num_heads, -1))[:, None]
    heads = torch.cat([heads, padding], dim=1)  # position -1 is padding
    expected = torch.einsum("whqt,hwtd->wqhd", layer.weights[0], heads[:, layer.positions]).flatten(2)
    real = layer.positions >= 0
    assert torch.allclose(expected[real], seen["result"][real], atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_not_allowed_across_a_seam_has_no_weight(body, size):
    for layer in window_attention(body, images(size)):
        is_real = layer.positions >= 0
        across = is_real[:, :, None] & is_real[:, None, :] & ~layer.allowed
        weights = layer.weights * across[:, None]
        assert weights.max() < 1e-20
        assert layer.block == 1 or not across.any()  # only every second block is shifted


def test_a_shifted_layer_has_a_seam(body):
    assert not window_attention(body, images((224, 224)))[1].allowed.all()


def test_tokens_of_opposite_borders_meet_in_a_window_but_exchange_nothing(swin):
    layer = window_attention(swin, images((224, 224)))[1]
    corner = layer.positions[-1]  # the last window holds all four corners of the image
    assert {0, 55, 55 * 56, 55 * 56 + 55} <= set(corner.tolist())
    query, token = (corner == 0).nonzero()[0, 0], (corner == 55 * 56 + 55).nonzero()[0, 0]
    assert not layer.allowed[-1, query, token] and layer.allowed[-1, query, query]
    assert layer.weights[:, -1, :, query, token].max() < 1e-20


def dense_rollout(layers: list[LayerAttention]) -> Tensor:
    """Abnar and Zuidema's rollout with whole matrices, one token pair at a time."""
    last = layers[-1]
    B, n = len(last.weights), last.height * last.width
    relevance = torch.full((B, 1, n), 1 / n, dtype=torch.float64)
    height, width = last.height, last.width
    for layer in reversed(layers):
        if (layer.height, layer.width) != (height, width):
            merge = torch.zeros(height * width, layer.height * layer.width, dtype=torch.float64)
            for y in range(layer.height):
                for x in range(layer.width):
                    merge[(y // 2) * width + x // 2, y * layer.width + x] = 1
            relevance = relevance @ (merge / merge.sum(dim=1, keepdim=True))
        height, width = layer.height, layer.width
        A = torch.zeros(B, height * width, height * width, dtype=torch.float64)
        weights = layer.weights.double().mean(dim=2)
        for w, window in enumerate(layer.positions.tolist()):
            for q, query in enumerate(window):
                for t, token in enumerate(window):
                    if query >= 0 and token >= 0:
                        A[:, query, token] = weights[:, w, q, t]
        A = A / A.sum(dim=2, keepdim=True)
        relevance = relevance @ (0.5 * A + 0.5 * torch.eye(height * width, dtype=torch.float64))
    return relevance.view(B, height, width)


@pytest.mark.parametrize("size", [(32, 32), (36, 60), (56, 56)])
def test_rollout_equals_the_dense_one_with_shift_padding_and_odd_grids(body, size):
    layers = window_attention(body, images(size))
    expected = dense_rollout(layers)
    assert torch.allclose(attention_rollout(layers).double(), expected, rtol=1e-4, atol=1e-8)
    assert expected.max() > 1.2 * expected.mean()  # far from uniform: the comparison means something


@pytest.mark.parametrize("size", SIZES)
def test_each_map_of_a_rollout_sums_to_one_and_is_not_negative(body, size):
    maps = attention_rollout(window_attention(body, images(size)))
    assert maps.shape == (2, size[0] // 4, size[1] // 4)
    assert torch.allclose(maps.sum(dim=(1, 2)), torch.ones(2), atol=1e-5) and (maps >= 0).all()


def one_layer(weights: Tensor, positions: Tensor, height: int, width: int) -> LayerAttention:
    allowed = (positions >= 0)[:, None, :].expand(*positions.shape, positions.shape[1])
    return LayerAttention(0, 0, weights, positions, height, width, allowed)


def test_attention_to_oneself_leaves_relevance_uniform_and_attention_to_one_token_gathers_half():
    positions = torch.tensor([[0, 1, 2, 3]])
    identity = one_layer(torch.eye(4).view(1, 1, 1, 4, 4), positions, 2, 2)
    assert torch.allclose(attention_rollout([identity]), torch.full((1, 2, 2), 0.25))
    to_first = torch.zeros(1, 1, 1, 4, 4)
    to_first[..., 0] = 1
    # Each token keeps half of its 1/4 by the residual; the first gathers the other halves: 1/8 + 1/2.
    found = attention_rollout([one_layer(to_first, positions, 2, 2)])
    assert torch.allclose(found.flatten(), torch.tensor([0.625, 0.125, 0.125, 0.125]))


def test_merging_hands_relevance_to_fewer_children_at_odd_edges():
    coarse = one_layer(torch.eye(4).view(1, 1, 1, 4, 4), torch.tensor([[0, 1, 2, 3]]), 2, 2)
    fine = one_layer(torch.eye(9).view(1, 1, 1, 9, 9), torch.arange(9)[None], 3, 3)
    expected = torch.tensor([[1, 1, 2], [1, 1, 2], [2, 2, 4]]) / 16
    assert torch.allclose(attention_rollout([fine, coarse])[0], expected)


def test_collecting_changes_no_feature_and_leaves_the_body_as_it_was(swin):
    for block in (m for m in swin.modules() if hasattr(m, "fused_attn")):
        block.fused_attn = True
    before = swin(images((64, 64)))
    with collect_window_attention(swin) as layers, torch.no_grad():
        during = swin(images((64, 64)))
    assert len(layers) == 8
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(before, during, strict=True))
    assert all(m.fused_attn for m in swin.modules() if hasattr(m, "fused_attn"))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in swin.modules())


@pytest.mark.parametrize("fused", [True, False])
def test_the_body_is_restored_after_an_error_too(swin, fused):
    for block in (m for m in swin.modules() if hasattr(m, "fused_attn")):
        block.fused_attn = fused
    with pytest.raises(RuntimeError):
        window_attention(swin, torch.zeros(1, 5, 64, 64))
    assert all(m.fused_attn is fused for m in swin.modules() if hasattr(m, "fused_attn"))
    assert not any(m._forward_pre_hooks for m in swin.modules())


def test_a_cnn_is_refused_and_grad_cam_named():
    body = Backbone("tf_efficientnet_lite0").body
    assert not has_window_attention(body)
    with pytest.raises(UserError, match="Grad-CAM"):
        window_attention(body, images((64, 64)))
