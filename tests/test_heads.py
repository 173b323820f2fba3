"""Joined backbones, heads and ensembles: what scores the stages, and what stages there are to score."""

from __future__ import annotations

import pytest
import torch
from helpers import long

from iqa.choices import HEADS as HEAD_NAMES
from iqa.config import resolve
from iqa.errors import UserError
from iqa.folding import folded
from models_swin import (
    HEADS,
    Backbone,
    Ensemble,
    GatheredNorm,
    JoinedBackbone,
    SmartIQA,
    build_network,
    cell_statistics,
)

POOLED = {"fusion": "vector", "content_vector": "pooled"}


def joined(**options) -> JoinedBackbone:
    return JoinedBackbone(
        ["nano", "tf_efficientnet_lite0"], **{"scales": [1.0, 0.5], "deviation": True} | options
    ).eval()


def parameters(model: SmartIQA) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("backbone."))


def test_settings_and_models_know_the_same_heads():
    assert tuple(HEADS) == HEAD_NAMES


def test_a_joined_backbone_gives_each_members_stages_at_each_scale_and_their_deviations():
    backbone = joined()
    looks = 2 * 2
    alone = [Backbone("nano").channels, Backbone("tf_efficientnet_lite0").channels]
    assert backbone.channels == [looks * (a + b) for a, b in zip(*alone, strict=True)]
    with torch.no_grad():
        stages = backbone(torch.rand(2, 3, 96, 128))
    assert [tuple(stage.shape) for stage in stages] == [(2, channels, 7, 7) for channels in backbone.channels]


def test_each_member_sees_the_image_as_its_weights_expect_it():
    backbone = joined(scales=[1.0], deviation=False)
    nano, lite0 = backbone.members
    assert nano.mean != lite0.mean
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        seen = backbone(backbone.normalise(images))[-1][:, nano.channels[-1] :]
        expected = torch.nn.functional.adaptive_avg_pool2d(lite0(lite0.normalise(images))[-1], 7)
    assert torch.allclose(seen, expected, atol=1e-3)


def test_the_deviation_of_a_cell_is_that_of_its_positions():
    stage = torch.randn(2, 3, 28, 14)
    cells = stage.unflatten(3, (7, 2)).unflatten(2, (7, 4)).transpose(3, 4).flatten(4)  # (B, C, 7, 7, 8)
    mean, deviation = cell_statistics(stage).chunk(2, dim=1)
    assert torch.allclose(mean, cells.mean(dim=-1), atol=1e-6)
    assert torch.allclose(deviation, cells.std(dim=-1, correction=0), atol=1e-5)


def test_a_flat_cell_has_a_gradient():
    stage = torch.ones(1, 1, 14, 14, requires_grad=True)
    cell_statistics(stage).sum().backward()
    assert torch.isfinite(stage.grad).all()


def test_layers_of_joined_backbones_lie_side_by_side_from_the_output_back():
    backbone = joined()
    layers = backbone.layer_parameters()
    assert sum(len(layer) for layer in layers) == len(list(backbone.parameters()))
    last = {id(p) for member in backbone.members for p in member.layer_parameters()[-1]}
    assert {id(p) for p in layers[-1]} == last


def test_one_name_at_one_scale_is_the_plain_backbone_whose_checkpoints_exist():
    assert type(build_network(backbone="nano").backbone) is Backbone


def test_what_reads_one_networks_layers_refuses_several_in_words():
    with pytest.raises(UserError, match=r"nano\+tf_efficientnet_lite0 is several looks at an image"):
        joined().body  # noqa: B018 (reading it is what is tested)


def test_a_joined_backbone_is_folded_at_its_smallest_scale():
    model = build_network(backbone="tf_efficientnet_lite0", scales=[1.0, 0.25], freeze_backbone=True, **POOLED).eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.allclose(folded(model)(images), model(images), atol=1e-2)


@pytest.mark.parametrize("scales", [[], [0.0], [-1.0], [0.1], [1.0, 3.0], [float("nan")]])
def test_scales_that_no_backbone_can_see_are_refused(scales):
    with pytest.raises(UserError, match=r"scales: expected .* between 0.25 and 2"):
        resolve({"scales": scales})


def test_an_unknown_member_is_named():
    with pytest.raises(UserError, match="unknown backbone 'nanno'"):
        build_network(backbone="nano+nanno")


def test_weights_of_one_file_fill_no_two_backbones(tmp_path):
    with pytest.raises(UserError, match="one file cannot fill 2 backbones"):
        build_network(backbone="nano+tf_efficientnet_lite0", backbone_weights=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("fusion", ["vector", "channel", "single", "cross_scale"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_scores_pooled_features_as_it_scores_images(head, fusion):
    model = build_network(head=head, backbone="nano", fusion=fusion).eval()
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        assert torch.allclose(model.score_features(model.pooled_features(images)), model(images), atol=1e-4)


def test_averages_alone_take_little_room():
    model = build_network(backbone="nano", **POOLED)
    assert model.pooled_features(torch.zeros(1, 3, 64, 64)).shape == (1, sum(model.backbone.channels))


@pytest.mark.parametrize("head", [head if head == "residual" else long(head) for head in HEADS])
def test_every_head_starts_in_the_middle_of_the_scale_and_learns(head):
    model = build_network(head=head, backbone="nano", freeze_backbone=True, **POOLED).train()
    features, mos = torch.randn(16, sum(model.backbone.channels)), torch.linspace(0, 100, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(35):
        loss = (model.score_features(features) - mos).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(25.8, abs=6)
    assert losses[-1] < 0.8 * losses[0]


def test_a_batch_of_one_is_learned_from_and_gathered():
    model = build_network(head="residual", backbone="nano", **POOLED).train()
    norm = model.standardise[0].norms[3]
    model.score_features(1 + torch.rand(1, sum(model.backbone.channels))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.hypernet.parameters())
    assert (norm.running_mean.abs() > 0.05).all() and norm.running_var.isfinite().all()


def test_statistics_gathered_from_batches_of_one_approach_those_of_all():
    norm = GatheredNorm(1, affine=False, momentum=0.01).train()  # slow, so that chance averages out
    for value in 5 + 2 * torch.randn(2000):
        norm(value.view(1, 1, 1, 1))
    assert norm.running_mean.item() == pytest.approx(5, abs=0.5)
    assert norm.running_var.item() == pytest.approx(4, rel=0.3)


def test_a_residual_target_net_is_hardly_generated_at_the_start_and_differs_by_image_later():
    model = build_network(head="residual", backbone="nano", **POOLED).eval()
    generated = model.inspect(torch.randn(2, 3, 64, 64)).target_weights
    assert [tuple(w.shape) for w in generated.weights] == [(2, 256, 512), (2, 1, 256)]
    shared = model.hypernet.shared[0].weight
    assert (generated.weights[0] - shared).abs().mean() < 0.1 * shared.abs().mean()
    torch.nn.init.normal_(model.hypernet.gains.weight)
    generated = model.inspect(torch.randn(2, 3, 64, 64)).target_weights
    assert not torch.allclose(generated.weights[0][0], generated.weights[0][1], atol=1e-3)


def test_a_fusion_that_weighs_positions_has_no_residual_head():
    with pytest.raises(UserError, match="head residual: SpatialFusion weighs positions"):
        build_network(head="residual", backbone="nano", fusion="spatial")


@pytest.mark.parametrize(("backbone", "fusion"), [("nano", "channel"), ("nano", "vector")])
def test_the_control_has_as_many_parameters_as_the_head_that_it_controls(backbone, fusion):
    head = parameters(build_network(backbone=backbone, fusion=fusion))
    assert parameters(build_network(head="mlp", backbone=backbone, fusion=fusion)) == pytest.approx(head, rel=0.01)


@pytest.mark.parametrize("frozen", [True, False])
def test_an_ensemble_gives_the_mean_of_its_networks(frozen):
    networks = [build_network(head="residual", backbone="nano", freeze_backbone=frozen, **POOLED) for _ in range(3)]
    for network in networks[1:]:
        network.backbone.load_state_dict(networks[0].backbone.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        alone = torch.stack([network.eval()(images) for network in networks])
        ensemble = Ensemble(networks).eval()
        assert torch.allclose(ensemble(images), alone.mean(dim=0), atol=1e-4)
        assert torch.allclose(ensemble.score_features(ensemble.pooled_features(images)), alone.mean(dim=0), atol=1e-4)


def test_frozen_backbones_of_an_ensemble_are_stored_once():
    def size(frozen: bool) -> int:
        ensemble = build_network(members=3, head="mlp", backbone="nano", freeze_backbone=frozen, **POOLED)
        return sum(name.count("backbone.body.patch_embed.proj.weight") for name in ensemble.state_dict())

    assert (size(frozen=True), size(frozen=False)) == (1, 3)
