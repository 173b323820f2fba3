"""Published HyperIQA and SMART-IQA checkpoints load, score as the published code does, and nothing else loads."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from helpers import empty_checkpoint, fill, published_shapes
from torch import Tensor

from iqa.errors import UserError
from smart_iqa.published import model_from_published

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


def golden_images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype("float32"))


def load_empty(state_dict: dict[str, Tensor]):
    with torch.device("meta"):
        return model_from_published(state_dict)


FAST = {
    ("tiny", "single"),
    ("tiny", "concat"),
    ("tiny", "scale"),
    ("resnet50", "single"),
}  # the others differ from them in size alone


@pytest.mark.parametrize(
    ("backbone", "fusion"), [pytest.param(*v, marks=[] if v in FAST else [pytest.mark.slow]) for v in VARIANTS]
)
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
