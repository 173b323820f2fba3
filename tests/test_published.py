"""Published HyperIQA and SMART-IQA checkpoints load, score as the published code does, and nothing else loads."""

from __future__ import annotations

import hashlib
import json
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from iqa.errors import UserError
from iqa.published import model_from_published
from models_swin import SwinBackbone

# SHA-256 (first 16 digits) of the sorted [name, shape] pairs that the published code's state dicts hold.
# Small is not among the lists: it is Tiny's with 18 blocks in stage 2.
VARIANTS = {
    ("tiny", "single"): "8e2df5284a5fcdc4",
    ("tiny", "concat"): "c16dc61206dadc6a",
    ("tiny", "scale"): "099a0aba8244391e",
    ("small", "concat"): "9d377e00f70d012b",
    ("base", "single"): "eb4b69962c016408",
    ("base", "concat"): "9d75105324e2b784",
    ("base", "scale"): "d116f2f9755b30e8",
    ("resnet50", "single"): "1b84ddf47ceeefd2",
}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# Origin: published SMART-IQA code, Swin-T with concatenation, timm 1.0.31, torch 2.13, CPU, tensors filled by
# `fill` and images of `golden_images`.
GOLDEN_SCORES = (-5.851039886474609, -6.696624279022217)
GOLDEN_CONTENT = (
    (0.9477730393409729, -0.19918741285800934, -0.05584382638335228, -1.2864190340042114),
    (0.4722312390804291, -0.1915682703256607, 0.14045673608779907, -0.868230938911438),
)


def published_shapes(backbone: str, fusion: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published state dict; the backbone's own are timm's (for ResNet torchvision's)."""
    with torch.device("meta"):
        features = SwinBackbone(backbone)
    trunk, body = ("res.", "res.") if backbone == "resnet50" else ("swin.", "swin.backbone.")
    shapes = {body + name: tuple(tensor.shape) for name, tensor in features.body.state_dict().items()}
    channels = features.channels
    for layer, (width, flat) in enumerate(zip((16, 32, 64), (1024, 512, 256), strict=True), start=1):
        shapes[f"{trunk}lda{layer}_pool.0.weight"] = (width, channels[layer - 1], 1, 1)
        shapes |= dense(f"{trunk}lda{layer}_fc", 16, flat)
    shapes |= dense(f"{trunk}lda4_fc", 176, channels[3])
    if fusion == "scale":
        shapes |= dense("multiscale_attention.attention_net.0", 256, channels[3])
        shapes |= dense("multiscale_attention.attention_net.3", 4, 256)
    widths = [channels[3] if fusion == "single" else sum(channels), 512, 256, 112]
    if backbone == "resnet50":
        widths = [2048, 1024, 512, 112]
    for i in range(3):
        shapes |= dense(f"conv1.{2 * i}", widths[i + 1], widths[i], 1, 1)
    for layer, maps in enumerate((512, 128, 32, 8), start=1):
        shapes |= dense(f"fc{layer}w_conv", maps, 112, 3, 3)
    for layer, size in enumerate((112, 56, 28, 14, 1), start=1):
        shapes |= dense(f"fc{layer}b_fc", size, 112)
    return shapes | dense("fc5w_fc", 14, 112)


def dense(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """The recipe by which the published code was filled too: values from the name alone."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype("float32")
    if len(shape) >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        z = 1 + 0.05 * z
    else:
        z = 0.05 * z
    return torch.from_numpy(np.asarray(z, dtype="float32"))


def golden_images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype("float32"))


def empty_checkpoint(backbone: str = "tiny", fusion: str = "concat") -> dict[str, Tensor]:
    """A published checkpoint without storage: names and shapes are all that recognising needs."""
    return {name: torch.empty(shape, device="meta") for name, shape in published_shapes(backbone, fusion).items()}


def load_empty(state_dict: dict[str, Tensor]):
    with torch.device("meta"):
        return model_from_published(state_dict)


@pytest.mark.parametrize(("backbone", "fusion"), VARIANTS)
def test_every_published_variant_is_recognised_from_its_names_and_shapes(backbone: str, fusion: str) -> None:
    shapes = published_shapes(backbone, fusion)
    listed = json.dumps(sorted([name, list(shape)] for name, shape in shapes.items()))
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == VARIANTS[backbone, fusion]

    model = load_empty(empty_checkpoint(backbone, fusion))
    assert sum(p.numel() for p in model.parameters()) == sum(
        int(np.prod(shape)) for name, shape in shapes.items() if not name.endswith(BUFFERS)
    )
    assert not model.training


def test_scores_agree_with_the_published_code() -> None:
    state_dict = {name: fill(name, shape) for name, shape in published_shapes("tiny", "concat").items()}
    with torch.no_grad():
        seen = model_from_published(state_dict).inspect(golden_images())
    torch.testing.assert_close(seen.scores, torch.tensor(GOLDEN_SCORES), rtol=1e-4, atol=0)
    torch.testing.assert_close(seen.content_vector[:, :4], torch.tensor(GOLDEN_CONTENT), rtol=1e-4, atol=0)


def test_a_missing_tensor_is_named() -> None:
    state_dict = empty_checkpoint()
    del state_dict["swin.lda3_fc.bias"]
    with pytest.raises(UserError, match=r"nearest: tiny with fusion concat.*missing 'swin.lda3_fc.bias'$"):
        load_empty(state_dict)


def test_an_unexpected_tensor_is_named() -> None:
    state_dict = empty_checkpoint() | {"fc6w_fc.weight": torch.empty(1, device="meta")}
    with pytest.raises(UserError, match=r"\): unexpected 'fc6w_fc.weight'$"):
        load_empty(state_dict)


def test_a_foreign_checkpoint_is_refused_with_the_first_missing_and_the_first_unexpected_name() -> None:
    foreign = {"encoder.weight": torch.zeros(3), "encoder.bias": torch.zeros(3)}
    with pytest.raises(
        UserError, match=r"missing 'swin.backbone.patch_embed.proj.weight', unexpected 'encoder.weight'$"
    ):
        load_empty(foreign)


def test_another_shape_is_named_with_what_was_expected() -> None:
    state_dict = empty_checkpoint() | {"fc1w_conv.weight": torch.empty(500, 112, 3, 3, device="meta")}
    with pytest.raises(UserError, match=r"'fc1w_conv.weight' is \(500, 112, 3, 3\), expected \(512, 112, 3, 3\)"):
        load_empty(state_dict)
