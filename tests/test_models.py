"""The network keeps its contract: sizes, shapes, gradients, independence of images, freezing, initialisation."""

from __future__ import annotations

import dataclasses
import functools
import re

import pytest
import torch
from helpers import long
from timm.layers import BatchNormAct2d, DropPath, EvoNorm2dB0
from torch import Tensor, nn
from torch.nn import functional as F

import models_swin
from iqa.choices import FUSION_KINDS, FusionKind
from iqa.config import FIELDS
from iqa.errors import UserError
from iqa.runtime import compile_network
from models_swin import (
    CONTENT_BRANCHES,
    FUSIONS,
    TARGET_SIZES,
    AttentionFusion,
    Backbone,
    CrossScaleFusion,
    HyperNet,
    LocalDistortionAware,
    MultiScaleAttention,
    PooledContent,
    SmartIQA,
    SpatialFusion,
    TargetNet,
    TargetWeights,
    to_grid,
)

# Small ones of two kinds: channels last with LayerNorm and shifted windows; channels first with BatchNorm.
BACKBONES = ("shallow", "test_efficientnet.r160_in1k")
EACH_NETWORK = pytest.mark.parametrize(
    ("backbone", "fusion"), [(backbone, fusion) for backbone in BACKBONES for fusion in FUSIONS]
)


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swin-nano with two blocks in each of the stages whose windows are shifted, and one in the others."""
    nano = models_swin.BACKBONES["nano"]
    shallow = dataclasses.replace(nano, build=nano.build | {"depths": (2, 2, 1, 1)})
    monkeypatch.setitem(models_swin.BACKBONES, "shallow", shallow)


@functools.cache
def network(backbone: str = "nano", fusion: str = "channel") -> SmartIQA:
    """A network in evaluation mode, shared by the tests that only look at it."""
    torch.manual_seed(0)
    return SmartIQA(backbone, fusion).eval()


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def maps(channels: list[int], side: int = 56, batch: int = 2) -> list[Tensor]:
    """Made-up stages 0..3, each half the side of the one before."""
    return [torch.randn(batch, c, side >> i, side >> i) for i, c in enumerate(channels)]


# Pooling.


@pytest.mark.parametrize("side", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 9), (7, 7), (8, 8), (13, 56), (31, 7)])
def test_pooling_and_its_gradient_are_those_of_torchs_adaptive_pooling(size: tuple[int, int], side: int) -> None:
    stage = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    found = []
    for pooled in (to_grid(stage, side), F.adaptive_avg_pool2d(stage, side)):
        (gradient,) = torch.autograd.grad((pooled * torch.arange(side)).sum(), stage)
        found.append((pooled, gradient))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    single = to_grid(stage.float(), side)
    torch.testing.assert_close(single, F.adaptive_avg_pool2d(stage.float(), side), rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_7x7_map_is_pooled_to_itself_bit_for_bit(order: torch.memory_format) -> None:
    stage = torch.randn(4, 320, 7, 7).contiguous(memory_format=order)
    assert torch.equal(to_grid(stage), stage)


def test_pooling_first_met_in_inference_serves_training_too() -> None:
    stage = torch.randn(1, 2, 11, 13, requires_grad=True)
    with torch.inference_mode():
        pooled = to_grid(stage)
    assert torch.equal(to_grid(stage), pooled)
    to_grid(stage).sum().backward()
    assert stage.grad is not None


# Sizes.


@pytest.mark.parametrize(
    ("backbone", "fusion", "count"),
    [
        # Counted on the published SMART-IQA code with its attention, and on HyperIQA.
        ("tiny", "scale", 29_521_479),
        ("small", "scale", 50_839_383),
        ("base", "scale", 89_111_941),
        ("resnet50", "single", 27_375_369),
    ],
)
def test_parameter_counts_are_those_of_the_published_code(backbone: str, fusion: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(SmartIQA(backbone, fusion)) == count


def test_channel_attention_of_base_squeezes_1920_channels_to_480() -> None:
    gate = AttentionFusion([128, 256, 512, 1024])
    assert parameters(gate) == (1920 * 480 + 480) + (480 * 1920 + 1920)  # 1,845,600


def test_scale_attention_of_tiny_has_the_published_197632_weights() -> None:
    attention = MultiScaleAttention([96, 192, 384, 768])
    assert sum(p.numel() for p in attention.parameters() if p.ndim == 2) == 197_632


def test_the_settings_know_exactly_the_fusions_and_content_vectors_of_the_network_and_what_they_read() -> None:
    fusions = {name: kind([8, 16, 32, 64]) for name, kind in FUSIONS.items()}
    kinds = {name: FusionKind(f.single_stage, f.weighs_stages, bool(f.grids)) for name, f in fusions.items()}
    assert kinds == FUSION_KINDS
    assert set(FIELDS["content_vector"].metadata["choices"]) == set(CONTENT_BRANCHES)


def test_stages_have_the_channels_and_strides_that_the_backbone_announces() -> None:
    for name in BACKBONES:
        backbone = network(name).backbone
        with torch.no_grad():
            stages = backbone(torch.randn(1, 3, 224, 224))
        assert [s.shape[1] for s in stages] == backbone.channels
        assert [224 // s.shape[2] for s in stages] == backbone.strides == [4, 8, 16, 32]


def test_sides_are_brought_to_a_multiple_of_4_by_repeating_the_edge() -> None:
    backbone, images = network().backbone, torch.randn(1, 3, 62, 67)
    repeated = torch.cat([images, images[:, :, -1:], images[:, :, -1:]], dim=2)
    repeated = torch.cat([repeated, repeated[:, :, :, -1:]], dim=3)
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(backbone(images), backbone(repeated), strict=True))


# The contract: images (B, 3, H, W) -> scores (B,).


@EACH_NETWORK
def test_every_parameter_gets_a_gradient(backbone: str, fusion: str) -> None:
    assert without_gradient(SmartIQA(backbone, fusion, drop_path_rate=0.0, dropout_rate=0.0)) == []


@pytest.mark.parametrize("content_vector", CONTENT_BRANCHES)
def test_every_parameter_gets_a_gradient_with_each_content_branch(content_vector: str) -> None:
    model = SmartIQA("nano", "single", drop_path_rate=0.0, dropout_rate=0.0, content_vector=content_vector)
    assert without_gradient(model) == []


def without_gradient(model: SmartIQA) -> list[str]:
    model.train()(torch.randn(2, 3, 64, 64)).square().sum().backward()
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@EACH_NETWORK
@pytest.mark.parametrize("size", [(32, 32), (33, 47), long((100, 37)), long((300, 400))])
def test_one_image_of_any_size_gives_one_finite_score(backbone: str, fusion: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        scores = network(backbone, fusion)(torch.randn(1, 3, *size))
    assert scores.shape == (1,)
    assert scores.isfinite().all()


@EACH_NETWORK
def test_a_score_does_not_depend_on_the_other_images_of_the_batch(backbone: str, fusion: str) -> None:
    model, images = network(backbone, fusion), torch.randn(3, 3, 64, 96)
    other = torch.cat([images[:1], 5 * torch.randn(2, 3, 64, 96)])
    with torch.no_grad():
        expected = model(images)[0]
        torch.testing.assert_close(model(other)[0], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(images[:1])[0], expected, rtol=1e-5, atol=1e-4)


@EACH_NETWORK
def test_inspection_gives_the_scores_of_forward_and_stage_weights_that_sum_to_1(backbone: str, fusion: str) -> None:
    model, images = network(backbone, fusion), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        scores, seen = model(images), model.inspect(images)
    assert torch.equal(scores, seen.scores)
    assert seen.content_vector.shape == (2, 224)
    if seen.stage_weights is not None:
        assert seen.stage_weights.shape == (2, 4)
        assert (seen.stage_weights > 0).all()
        torch.testing.assert_close(seen.stage_weights.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_only_attention_has_stage_weights(fusion: str) -> None:
    with torch.no_grad():
        seen = network("shallow", fusion).inspect(torch.randn(1, 3, 64, 64))
    assert (seen.stage_weights is not None) == network("shallow", fusion).fusion.weighs_stages


@pytest.mark.parametrize(
    "shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (1, 3, 31, 64), (1, 3, 64, 31), (2, 1, 3, 64, 64)]
)
def test_images_of_another_shape_are_refused_with_the_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\).*got " + re.escape(str(shape))):
        network()(torch.zeros(shape))


def test_untrained_scores_are_near_the_middle_of_the_scale() -> None:
    with torch.no_grad():
        for fusion in FUSIONS:
            assert (network("shallow", fusion)(torch.randn(4, 3, 64, 64)) - 50).abs().max() < 10


# Fusion.


def test_concatenation_leaves_7x7_stages_as_they_are_in_order_from_fine_to_coarse() -> None:
    stages = [torch.randn(2, c, 7, 7) for c in (1, 2, 3, 4)]
    fused = FUSIONS["concat"]([1, 2, 3, 4])(stages)
    assert torch.equal(fused.features, torch.cat(stages, dim=1))


def test_single_ignores_all_stages_but_the_last() -> None:
    stages = [torch.full((1, c, 7, 7), torch.nan) for c in (1, 2, 3)] + [torch.ones(1, 4, 7, 7)]
    assert torch.equal(FUSIONS["single"]([1, 2, 3, 4])(stages).features, stages[-1])


def test_channel_attention_multiplies_each_channel_by_its_gate() -> None:
    channels = [4, 8, 16, 32]
    stages = maps(channels)
    plain = FUSIONS["concat"](channels)(stages).features
    fused = AttentionFusion(channels)(stages)
    assert ((fused.attention > 0) & (fused.attention < 1)).all()
    torch.testing.assert_close(fused.features, plain * fused.attention[:, :, None, None])
    first, last = fused.attention[:, :4].mean(1), fused.attention[:, 28:].mean(1)
    torch.testing.assert_close(fused.stage_weights[:, 0] / fused.stage_weights[:, 3], first / last)


def test_scale_attention_multiplies_each_stage_by_one_weight_decided_by_stage_3() -> None:
    channels = [4, 8, 16, 32]
    stages = maps(channels)
    attention = MultiScaleAttention(channels).eval()
    fused = attention(stages)
    expected = torch.cat(
        [F.adaptive_avg_pool2d(s, 7) * fused.stage_weights[:, i, None, None, None] for i, s in enumerate(stages)], 1
    )
    torch.testing.assert_close(fused.features, expected)
    others = [torch.randn_like(s) for s in stages[:3]] + stages[3:]
    assert torch.equal(attention(others).stage_weights, fused.stage_weights)


def test_spatial_attention_weighs_each_position_before_pooling() -> None:
    channels = [4, 8, 16, 32]
    stages = maps(channels)
    fused = SpatialFusion(channels)(stages)
    assert [tuple(m.shape) for m in fused.attention] == [(2, 1, side, side) for side in (56, 28, 14, 7)]
    weighted = [F.adaptive_avg_pool2d(s * m, 7) for s, m in zip(stages, fused.attention, strict=True)]
    torch.testing.assert_close(fused.features, torch.cat(weighted, dim=1))
    ratio = fused.attention[1].flatten(1).mean(1) / fused.attention[2].flatten(1).mean(1)
    torch.testing.assert_close(fused.stage_weights[:, 1] / fused.stage_weights[:, 2], ratio)


def test_cross_scale_attention_lets_a_fine_stage_inform_the_coarse_one() -> None:
    model, stages = network("nano", "cross_scale"), maps([48, 96, 192, 384])
    assert isinstance(model.fusion, CrossScaleFusion)
    with torch.no_grad():
        fused = model.fusion(stages)
        changed = model.fusion([stages[0].roll(1, dims=0), *stages[1:]])
    assert fused.features.shape == (2, 1024, 7, 7)
    assert not torch.allclose(fused.features[:, 768:], changed.features[:, 768:], atol=1e-3)


def test_cross_scale_weights_are_the_shares_of_the_attention_that_stages_receive() -> None:
    with torch.no_grad():
        fused = network("nano", "cross_scale").fusion(maps([48, 96, 192, 384]))
    assert fused.attention.shape == (2, 8, 196, 196)  # heads, queries, keys
    torch.testing.assert_close(fused.attention.sum(dim=-1), torch.ones(2, 8, 196))
    coarse = fused.attention[..., 147:].sum(dim=-1).mean(dim=(1, 2))
    torch.testing.assert_close(fused.stage_weights[:, 3], coarse)


@pytest.mark.parametrize(("fusion", "first"), [("vector", 0), ("single_vector", 3)])
def test_a_semantic_vector_holds_the_average_of_each_channel_and_no_place(fusion: str, first: int) -> None:
    channels = [96, 192, 384, 768]
    stages = maps(channels)
    fuse = FUSIONS[fusion](channels)
    expected = torch.cat([s.flatten(2).mean(dim=2) for s in stages[first:]], dim=1)
    assert expected.shape[1] == fuse.out_channels == {"vector": 1440, "single_vector": 768}[fusion]
    torch.testing.assert_close(fuse(stages).features, expected, rtol=1e-5, atol=1e-6)


# Content branch, HyperNet and TargetNet.


def test_the_pooled_content_vector_is_one_linear_layer_on_the_averages_of_all_stages() -> None:
    channels = [24, 48, 96, 192]
    branch, stages = PooledContent(channels), maps(channels)
    averages = torch.cat([s.flatten(2).mean(dim=2) for s in stages], dim=1)
    expected = F.linear(averages, branch.summarise.weight, branch.summarise.bias)
    torch.testing.assert_close(branch(stages), expected, rtol=1e-5, atol=1e-5)


def test_the_content_branch_equals_the_published_order_of_convolution_and_7x7_pooling_at_224_px() -> None:
    channels = [24, 48, 96, 192]
    branch, stages = LocalDistortionAware(channels), maps(channels)
    local = [F.avg_pool2d(conv(s), 7, stride=7).flatten(1) for conv, s in zip(branch.project, stages[:3], strict=True)]
    pooled = [*local, F.avg_pool2d(stages[3], 7).flatten(1)]
    expected = torch.cat([fc(v) for fc, v in zip(branch.summarise, pooled, strict=True)], dim=1)
    torch.testing.assert_close(branch(stages), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 112, 7, 7), (3, 112)], ids=["map", "vector"])
def test_the_hypernet_generates_five_layers_from_224_to_1_for_each_image(shape: tuple[int, ...]) -> None:
    target = HyperNet(from_vector=len(shape) == 2)(torch.randn(shape))
    assert [tuple(w.shape) for w in target.weights] == [
        (3, 112, 224),
        (3, 56, 112),
        (3, 28, 56),
        (3, 14, 28),
        (3, 1, 14),
    ]
    assert [tuple(b.shape) for b in target.biases] == [(3, 112), (3, 56), (3, 28), (3, 14), (3, 1)]


def test_the_target_net_equals_a_loop_of_plain_linear_layers_over_the_images() -> None:
    shapes = list(zip(TARGET_SIZES[1:], TARGET_SIZES[:-1], strict=True))
    target = TargetWeights([torch.randn(3, o, i) / i**0.5 for o, i in shapes], [torch.randn(3, o) for o, _ in shapes])
    content = torch.randn(3, 224)
    expected = []
    for image in range(3):
        x = content[image]
        for layer in range(4):
            x = F.linear(x, target.weights[layer][image], target.biases[layer][image]).sigmoid()
        expected.append(F.linear(x, target.weights[4][image], target.biases[4][image]))
    torch.testing.assert_close(TargetNet(0.3).eval()(content, target), torch.cat(expected), rtol=1e-5, atol=1e-5)


# Optimizer groups, freezing, modes.


@pytest.mark.parametrize("freeze", [False, True])
@EACH_NETWORK
def test_every_trainable_parameter_is_in_exactly_one_group_and_only_the_backbone_is_slow(
    backbone: str, fusion: str, freeze: bool
) -> None:
    with torch.device("meta"):
        model = SmartIQA(backbone, fusion, freeze_backbone=freeze)
    groups = {group["name"]: group for group in model.parameter_groups(lr=1e-5, lr_ratio=10)}
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert set(groups) == ({"head"} if freeze else {"backbone", "head"})
    assert groups["head"]["lr"] == pytest.approx(1e-4)
    assert {id(p) for p in model.content.parameters()} <= {id(p) for p in groups["head"]["params"]}
    if not freeze:
        assert groups["backbone"]["lr"] == 1e-5
        assert {id(p) for p in groups["backbone"]["params"]} == {id(p) for p in model.backbone.parameters()}


def statistics(model: SmartIQA) -> list[Tensor]:
    return [b.clone() for n, b in model.backbone.named_buffers() if "running" in n or n.endswith("num_batches_tracked")]


@pytest.mark.parametrize("freeze", [True, False])
def test_batch_statistics_move_in_training_only_when_they_are_not_frozen(freeze: bool) -> None:
    model = SmartIQA("tf_efficientnet_lite0", "concat", freeze_batch_norm=freeze).train()
    before = statistics(model)
    model(3 + torch.randn(2, 3, 64, 64))
    assert before
    assert all(torch.equal(*pair) for pair in zip(before, statistics(model), strict=True)) == freeze


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm, BatchNormAct2d, EvoNorm2dB0])
def test_batch_normalisation_of_any_kind_is_frozen(kind: type[nn.Module]) -> None:
    model = SmartIQA("nano", "concat")
    model.backbone.body = nn.Sequential(nn.LayerNorm(8), kind(8))
    assert [module.training for module in model.train().backbone.body] == [True, False]


def test_a_frozen_backbone_gets_no_gradient_and_gives_the_same_features_in_training() -> None:
    model = SmartIQA("nano", "concat", drop_path_rate=0.5, freeze_backbone=True).train()
    images = torch.randn(2, 3, 64, 64)
    assert all(torch.equal(*pair) for pair in zip(model.backbone(images), model.backbone(images), strict=True))
    model(images).sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("backbone."))


def test_training_is_random_by_dropout_and_evaluation_is_not() -> None:
    model, images = SmartIQA("nano", "concat", drop_path_rate=0.0, dropout_rate=0.5), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model.train()(images), model(images))
        assert torch.equal(model.eval()(images), model(images))


def test_stochastic_depth_and_dropout_take_the_backbones_usual_rates_unless_given() -> None:
    with torch.device("meta"):
        usual, given = SmartIQA("base", "concat"), SmartIQA("base", "concat", drop_path_rate=0.1, dropout_rate=0.2)
    assert (last_drop_path(usual), usual.target_net.dropout.p) == (pytest.approx(0.3), 0.4)
    assert (last_drop_path(given), given.target_net.dropout.p) == (pytest.approx(0.1), 0.2)


def last_drop_path(model: SmartIQA) -> float:
    """Stochastic depth grows with depth; the rate that is set is the last block's."""
    return [m.drop_prob for m in model.backbone.modules() if type(m).__name__ == "DropPath"][-1]


# Initialisation.


def test_new_parts_start_with_kaiming_weights_and_zero_biases_but_the_score_bias_at_50() -> None:
    model = network("nano", "concat")
    for name, p in model.named_parameters():
        if name.startswith("backbone."):
            continue
        if name == "hypernet.biases.4.bias":
            assert p.item() == 50
        elif p.ndim == 1:
            assert not p.any()
        elif p.numel() > 10_000:  # enough draws to estimate their deviation
            fan_in = p[0].numel()
            assert p.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05), name


# What cannot be built.


def test_an_unknown_backbone_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"unknown backbone 'resnet5O'.*\bresnet50\b"):
        Backbone("resnet5O")


def test_an_unknown_fusion_or_content_vector_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown fusion 'sum'; known: single, concat"):
        SmartIQA("nano", "sum")
    with pytest.raises(UserError, match=r"unknown content_vector 'sum'; known: lda, pooled"):
        SmartIQA("nano", content_vector="sum")


def test_a_backbone_with_fewer_than_four_stages_is_refused() -> None:
    # timm gives three feature maps of BEiT, whose positions are of one size of image.
    with torch.device("meta"), pytest.raises(UserError, match="'beit_base_patch16_224' has 3 stages; four are needed"):
        Backbone("beit_base_patch16_224")


def test_a_drop_path_rate_for_a_backbone_without_stochastic_depth_is_refused() -> None:
    with torch.device("meta"), pytest.raises(UserError, match="'vgg11' cannot be built.*drop_path_rate"):
        Backbone("vgg11", drop_path_rate=0.1)


def test_a_backbone_with_five_stages_gives_its_last_four() -> None:
    backbone = network("tf_efficientnet_lite0").backbone
    assert len(backbone.body.feature_info.channels()) == 5
    assert backbone.strides == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [("nano", 8), ("resnet50", 16), ("convnext_tiny", 18), ("tf_efficientnet_lite0", 16), ("tiny", 12)],
)
def test_layers_are_the_stem_and_every_block_and_hold_each_parameter_once(backbone: str, blocks: int) -> None:
    with torch.device("meta"):
        built = Backbone(backbone)
    layers = built.layer_parameters()
    assert len(layers) == 1 + blocks
    assert sorted(id(p) for layer in layers for p in layer) == sorted(id(p) for p in built.parameters())


def test_each_layer_learns_at_layer_decay_times_the_rate_of_the_next() -> None:
    groups = SmartIQA("nano", "concat").parameter_groups(lr=1e-4, lr_ratio=10, layer_decay=0.5)
    rates = [group["lr"] for group in groups]
    assert rates[:-1] == pytest.approx([1e-4 * 0.5**depth for depth in range(8, -1, -1)])
    assert rates[-1] == pytest.approx(1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_drop_path_is_as_asked_also_where_timm_has_a_default_of_its_own(rate: float) -> None:
    with torch.device("meta"):
        drops = [m.drop_prob for m in Backbone("tiny", rate).modules() if isinstance(m, DropPath)]
    assert max(drops, default=0.0) == pytest.approx(rate)


@pytest.mark.parametrize("backbone", ["nano", "swinv2_tiny_window8_256"])
@pytest.mark.parametrize("size", [(224, 224), (96, 160), (250, 96)])
def test_the_masks_of_shifted_windows_are_timms(backbone, size):
    body = network(backbone).backbone.body
    blocks = [module for module in body.modules() if hasattr(module, "get_attn_mask")]
    tokens = [-(-s // 4) for s in size]
    compared = 0
    for block in blocks:
        height, width = (-(-t // w) * w for t, w in zip(tokens, block.window_size, strict=True))
        x = torch.zeros(1, height, width, 3)
        ours, timms = block.get_attn_mask(x), type(block).get_attn_mask(block, x)
        assert (ours is None) == (timms is None)
        if timms is not None:
            assert torch.equal(ours, timms)
            compared += 1
    assert compared


@pytest.mark.slow  # tracing takes half a minute
def test_a_compiled_network_is_the_plain_one_and_is_traced_once_for_all_sizes_of_batches():
    """Traced as torch.compile does, run without generated code: that takes minutes to compile on a CPU."""
    from torch._dynamo.backends.debugging import aot_eager

    model = SmartIQA("shallow", "channel", dropout_rate=0.0, drop_path_rate=0.0)
    images, traces = torch.randn(3, 3, 64, 64), []

    def trace(graph, inputs):
        traces.append(graph)
        return aot_eager(graph, inputs)

    def learned(batch: int) -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        scores = model(images[:batch])
        scores.square().sum().backward()
        return [scores.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    batches = (3, 2)  # an epoch's last batch is smaller
    found = [learned(batch) for batch in batches]
    compile_network(model, backend=trace, fullgraph=True)
    for batch, plain in zip(batches, found, strict=True):
        for one, other in zip(learned(batch), plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(traces) == 1


def test_fused_attention_gives_the_stages_that_plain_attention_gives():
    torch.manual_seed(0)
    backbone = Backbone("nano").eval()
    images = torch.randn(2, 3, 224, 160)
    with torch.inference_mode():
        fused = backbone(images)
        for module in (m for m in backbone.modules() if hasattr(m, "fused_attn")):
            assert module.fused_attn
            module.fused_attn = False
        plain = backbone(images)
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_half_precision_is_the_backbones_alone(fusion):
    model = network("shallow", fusion)
    images = torch.rand(48, 3, 32, 32)
    with torch.inference_mode():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores, stages = model(images), model.backbone(images)
        assert stages[0].dtype is torch.bfloat16
        maps = [stage.float() for stage in stages]
        assert torch.equal(scores, model.from_stages(maps, maps).scores)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pooled = model.pooled_features(images) if fusion != "spatial" else None
    assert len(scores.unique()) == 48
    assert pooled is None or pooled.dtype is torch.float32
