"""What of a backbone learns, and what that costs: frozen stages, adapters, blocks that are computed again."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from helpers import SMALL, command, long
from torch import Tensor
from torch.nn import functional as F

import models_swin
from iqa.checkpoint import merge_adapters, read_checkpoint
from iqa.costs import training_memory
from iqa.errors import UserError
from iqa.learning import add_adapters, checkpoint_gradients, limit_learning, merge_adapters_in_place
from models_swin import BackboneSpec, SmartIQA
from smart_iqa.scorer import load_model

EACH_BACKBONE = pytest.mark.parametrize("backbone", ["shallow", "tf_efficientnet_lite0", "vit", "dinov3"])


@pytest.fixture(autouse=True)
def _small_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    smaller, nano = {"depth": 4, "embed_dim": 48, "num_heads": 4}, models_swin.BACKBONES["nano"]
    shallow = dataclasses.replace(nano, build=nano.build | {"depths": (2, 2, 1, 1)})  # stages 0 and 1 shift windows
    monkeypatch.setitem(models_swin.BACKBONES, "shallow", shallow)
    monkeypatch.setitem(models_swin.BACKBONES, "vit", BackboneSpec("vit_tiny_patch16_224", smaller))
    monkeypatch.setitem(models_swin.BACKBONES, "dinov3", BackboneSpec("vit_small_patch16_dinov3", smaller))


def model_of(backbone: str, **rates: float) -> SmartIQA:
    torch.manual_seed(0)
    return SmartIQA(backbone, "channel", **{"dropout_rate": 0.0, "drop_path_rate": 0.0} | rates)


def gradients(model: SmartIQA, images: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    model.train()(images).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@EACH_BACKBONE
def test_blocks_that_are_computed_again_give_the_same_gradients(backbone: str) -> None:
    images, plain, again = torch.randn(2, 3, 64, 64), model_of(backbone), model_of(backbone)
    checkpoint_gradients(again.backbone)
    for expected, found in zip(gradients(plain, images), gradients(again, images), strict=True):
        assert torch.equal(expected, found)


@EACH_BACKBONE
@pytest.mark.parametrize("count", [1, 2, 4])
def test_frozen_stages_give_in_training_always_what_they_gave(backbone: str, count: int) -> None:
    model, images = model_of(backbone, drop_path_rate=0.5), torch.randn(2, 3, 64, 64)
    limit_learning(model.backbone, freeze_stages=count)
    before = model.train().backbone(images)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model(images).square().sum().backward()
    optimizer.step()
    after = model.backbone(images)
    assert all(torch.equal(*pair) for pair in zip(before[:count], after[:count], strict=True))
    assert any(p.requires_grad for p in model.backbone.parameters()) == (count < 4)
    assert count == 4 or not torch.equal(before[-1], after[-1])


@pytest.mark.parametrize("backbone", ["shallow", "vit", "dinov3"])
def test_adapters_alone_learn_and_merge_into_the_plain_network(backbone: str) -> None:
    pytest.importorskip("peft")
    model, images = model_of(backbone), torch.randn(2, 3, 64, 64)
    before = model.eval()(images)
    add_adapters(model.backbone, rank=2)
    torch.testing.assert_close(model(images), before, rtol=1e-5, atol=1e-5)  # B is zero at the start
    learned = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert learned and all("lora_" in name for name in learned)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(images).square().mean().backward()
        assert all(model.backbone.get_parameter(name).grad is not None for name in learned)
        optimizer.step()
    plain, scores = model_of(backbone).eval(), model.eval()(images)
    plain.load_state_dict(merge_adapters(model.state_dict()))
    assert not torch.allclose(scores, before)
    torch.testing.assert_close(plain(images), scores, rtol=1e-4, atol=1e-3)
    merge_adapters_in_place(model.backbone)
    torch.testing.assert_close(model(images), plain(images), rtol=1e-5, atol=1e-5)


def test_a_merged_weight_is_the_sum_of_its_own_and_the_product() -> None:
    tensors = {
        "fc.base_layer.weight": torch.randn(3, 4),
        "fc.base_layer.bias": torch.randn(3),
        "fc.lora_A.default.weight": torch.randn(2, 4),
        "fc.lora_B.default.weight": torch.randn(3, 2),
        "norm.weight": torch.randn(4),
    }
    weight, bias, down, up, norm = tensors.values()
    merged, x = merge_adapters(tensors), torch.randn(5, 4)
    assert set(merged) == {"fc.weight", "fc.bias", "norm.weight"}
    expected = F.linear(x, weight, bias) + F.linear(F.linear(x, down), up)
    torch.testing.assert_close(F.linear(x, merged["fc.weight"], merged["fc.bias"]), expected)
    assert torch.equal(merged["norm.weight"], norm)


def test_adapters_without_peft_or_without_linear_layers_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    with pytest.raises(UserError, match="'tf_efficientnet_lite0' has no linear layers"):
        add_adapters(model_of("tf_efficientnet_lite0").backbone, rank=2)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="lora_rank needs peft: pip install"):
        add_adapters(model_of("nano").backbone, rank=2)


def test_a_run_with_adapters_is_loaded_without_peft_and_scores_as_it_was_tested(
    tmp_path, image_folder, monkeypatch
) -> None:
    pytest.importorskip("peft")
    flags = ["--dataset", "csv", "--data_path", image_folder / "table.csv", *SMALL, "--results_dir", tmp_path]
    assert command("train_swin", *flags, "--name", "lora", "--lora_rank", 2, "--epochs", 1, "--resume") == 2
    assert command("train_swin", *flags, "--name", "lora", "--lora_rank", 2, "--epochs", 1) == 0
    assert any(".lora_A." in name for name in read_checkpoint(tmp_path / "lora" / "best.safetensors")[0])
    monkeypatch.setitem(sys.modules, "peft", None)
    assert command("evaluate", "--verify", tmp_path / "lora" / "results.json") == 0
    assert_scores(tmp_path / "lora", image_folder)


def assert_scores(run: Path, image_folder: Path) -> None:
    import json

    (row, *_) = json.loads((run / "results.json").read_text())["predictions"]["test"]
    assert load_model(run, device="cpu").score(image_folder / row["image"]) == pytest.approx(row["score"], abs=1e-3)


def test_what_of_the_backbone_learns_is_said_once(capsys: pytest.CaptureFixture) -> None:
    assert command("train_swin", "--lora_rank", 4, "--freeze_stages", 2, "--print_config") == 2
    assert "freeze_stages and lora_rank each say what of the backbone learns" in capsys.readouterr().err


def test_the_memory_of_a_step_is_counted_by_hand_for_one_layer() -> None:
    class OneLayer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(12, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images.flatten(1)).relu()

    weights = 4 * (12 * 5 + 5)
    images, activations = 4 * 7 * 12, 4 * 7 * 5  # of seven images of 2 x 2 pixels
    counted = training_memory(OneLayer(), batch=7, side=2)
    # Weights and Adam; the images, two activations that the loss and the ReLU keep, and the gradients on their way.
    assert 3 * weights + images + 2 * activations < counted < 4 * weights + images + 5 * activations + 64


class Alone(torch.nn.Module):
    """A backbone without the parts that score, whose memory no setting here changes."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([stage.flatten(1).sum(dim=1) for stage in self.backbone(images)]).sum(dim=0)


@pytest.mark.parametrize("backbone", ["vit", long("shallow")])
def test_less_memory_is_needed_by_what_is_meant_to_need_less(backbone: str) -> None:
    """Bytes are counted over tensors that hold no numbers, so that they are the same wherever the test runs."""

    def needed(batch: int = 16, dtype: torch.dtype | None = None, **learning: object) -> int:
        model = Alone(model_of(backbone).backbone)
        limit_learning(model.backbone, **learning)
        return training_memory(model, batch, dtype, side=64) - 16 * sum(p.numel() for p in model.parameters())

    whole = needed()  # of what grows with the batch
    assert needed(batch=32) == pytest.approx(2 * whole, rel=0.1)
    assert max(needed(freeze_stages=2), needed(grad_checkpointing=True), needed(dtype=torch.bfloat16)) < 0.8 * whole
