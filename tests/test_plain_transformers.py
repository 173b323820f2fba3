"""Plain vision transformers are backbones: four depths as four stages, at any size of image."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import timm
import torch
from helpers import SMALL, command, long
from safetensors.torch import save_file

import models_swin
from models_swin import FUSIONS, Backbone, BackboneSpec, SmartIQA

# Small and random, one of each kind: absolute positions; patches of 14 with registers; rotary positions.
SMALLER = {"depth": 4, "embed_dim": 48, "num_heads": 4}
KINDS = {
    "plain": BackboneSpec("vit_tiny_patch16_224", SMALLER),
    "siglip": BackboneSpec("vit_base_patch16_siglip_224.v2_webli", SMALLER),
    "dinov2": BackboneSpec("vit_small_patch14_reg4_dinov2", SMALLER | {"img_size": 98}),
    "dinov3": BackboneSpec("vit_small_patch16_dinov3", SMALLER),
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, spec in KINDS.items():
        monkeypatch.setitem(models_swin.BACKBONES, kind, spec)


@functools.cache
def network(kind: str, fusion: str) -> SmartIQA:
    torch.manual_seed(0)
    return SmartIQA(kind, fusion, dropout_rate=0.0)


@EACH_KIND
def test_the_stages_are_timms_normed_tokens_after_each_quarter_of_the_blocks(kind: str) -> None:
    spec, backbone = KINDS[kind], Backbone(kind).eval()
    whole = timm.create_model(spec.timm_name, num_classes=0, **spec.build).eval()
    whole.load_state_dict(backbone.body.model.state_dict(), strict=False)
    side = whole.patch_embed.img_size[0]
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected = whole.forward_intermediates(images, indices=[0, 1, 2, 3], norm=True, intermediates_only=True)
        stages = backbone(images)
    assert backbone.strides == [backbone.patch] * 4
    assert [s.shape[1] for s in stages] == backbone.channels == [48] * 4
    for stage, theirs in zip(stages, expected, strict=True):
        torch.testing.assert_close(stage, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "patch", "mean"),
    [
        ("vit_base_patch16_siglip_224.v2_webli", 16, 0.5),
        ("vit_base_patch16_clip_224.openai", 16, 0.48145466),
        ("vit_small_patch14_reg4_dinov2", 14, 0.485),
        ("vit_small_patch16_dinov3", 16, 0.485),
    ],
)
def test_depths_patches_and_normalisation_are_those_of_the_pretrained_model(name, patch, mean) -> None:
    with torch.device("meta"):
        backbone = Backbone(name)
    assert backbone.body.out_indices == [2, 5, 8, 11]
    assert (backbone.patch, backbone.mean[0]) == (patch, mean)


@pytest.mark.parametrize(
    ("kind", "fusion"),
    [
        (kind, fusion) if kind == "plain" or fusion == "channel" else long(kind, fusion)
        for kind in KINDS
        for fusion in FUSIONS
    ],
)
def test_every_parameter_learns_with_every_fusion(kind: str, fusion: str) -> None:
    model = network(kind, fusion).train()
    model.zero_grad()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@EACH_KIND
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (224, 224), (300, 400)])
def test_an_image_of_any_size_is_scored_and_its_edge_repeated_to_whole_patches(kind: str, size) -> None:
    model, images = network(kind, "channel").eval(), torch.randn(2, 3, *size)
    patch = model.backbone.patch
    with torch.no_grad():
        scores, stages = model(images), model.backbone(images)
    assert scores.shape == (2,) and scores.isfinite().all()
    assert [tuple(s.shape[2:]) for s in stages] == [tuple(-(-side // patch) for side in size)] * 4


def test_positions_are_resampled_to_the_image() -> None:
    backbone = Backbone("plain").eval()
    positions = backbone.body.model.pos_embed
    with torch.no_grad():
        positions.copy_(torch.randn_like(positions))
        before = backbone(torch.zeros(1, 3, 96, 64))[0]
        positions.zero_()
        after = backbone(torch.zeros(1, 3, 96, 64))[0]
    assert before.std(dim=(2, 3)).min() > 0.01  # of a black image only positions tell patches apart
    torch.testing.assert_close(after, after[:, :, :1, :1].expand_as(after), rtol=1e-4, atol=1e-4)


@EACH_KIND
def test_kept_features_give_the_scores_of_the_images(kind: str) -> None:
    model, images = network(kind, "channel").eval(), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected, scores = model(images), model.score_features(model.pooled_features(images))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-3)


@EACH_KIND
def test_layers_are_the_stem_and_the_blocks_of_which_the_last_has_the_norm(kind: str) -> None:
    backbone = Backbone(kind)
    layers = backbone.layer_parameters()
    assert sorted(id(p) for layer in layers for p in layer) == sorted(map(id, backbone.parameters()))
    assert len(layers) == 5 and len(layers[-1]) == len(layers[1]) + 2
    assert any(p is backbone.body.model.norm.weight for p in layers[-1])


@EACH_KIND
def test_a_file_of_the_whole_model_fills_the_backbone(kind: str, tmp_path: Path) -> None:
    spec = KINDS[kind]
    whole = timm.create_model(spec.timm_name, **spec.build)
    save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    model = SmartIQA(kind, backbone_weights=str(tmp_path / "vit.safetensors"))
    theirs = whole.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.backbone.body.model.state_dict().items())


def test_a_transformer_trains_by_its_name(tmp_path: Path, image_folder: Path) -> None:
    place = ["--data_path", image_folder / "table.csv", "--results_dir", tmp_path, "--name", "vit"]
    run = ["--dataset", "csv", *place, *SMALL, "--backbone", "test_vit.r160_in1k", "--fusion", "channel"]
    assert command("train_swin", *run, "--epochs", 1) == 0
    assert (tmp_path / "vit" / "results.json").is_file()
