"""Checkpoints of earlier implementations -> `SmartIQA`: the published HyperIQA and SMART-IQA files.

Both save the bare state dict of their network. Which one it is, with which backbone and fusion, is read
from the names and shapes; then every name of our own network is rewritten to theirs, and both sets must agree.
HyperIQA: Su et al., CVPR 2020 (ResNet-50, stage 3 alone). SMART-IQA: Swin-T, -S and -B, whose `attention`
is the fusion `scale`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from iqa.errors import UserError

if TYPE_CHECKING:
    from models_swin import SmartIQA

_ATTENTION = "multiscale_attention.attention_net."


def model_from_published(state_dict: dict[str, Tensor]) -> SmartIQA:
    """The network that a published checkpoint holds, in evaluation mode.

    Args:
        state_dict: tensors by published name, as `iqa.pretrained.read_state_dict` gives them.

    Returns:
        A `SmartIQA` with the published backbone and fusion. Its scores agree with the published code's,
        whose scale is that of the labels it was trained on (KonIQ-10k: 0..100, higher is better).

    Raises:
        UserError: no such checkpoint; the first missing and unexpected names, or the first shape that
            differs, are named.
    """
    # The one place where a tool needs the network: the result is one. Late, so that importing iqa needs no root.
    from models_swin import SmartIQA

    backbone, fusion = _recognise(state_dict)
    model = SmartIQA(backbone=backbone, fusion=fusion, pretrained=False)
    ours = model.state_dict()
    published_names = {name: _published_name(name, backbone) for name in ours}
    _check_names(list(published_names.values()), state_dict, nearest=f"{backbone} with fusion {fusion}")
    for name, published in published_names.items():
        expected, found = tuple(ours[name].shape), tuple(state_dict[published].shape)
        if found != expected:
            raise UserError(f"no published checkpoint: {published!r} is {found}, expected {expected}")
    model.load_state_dict({name: state_dict[published] for name, published in published_names.items()})
    model.weights_source = "published checkpoint"
    return model.eval()


def _recognise(state_dict: dict[str, Tensor]) -> tuple[str, str]:
    """The backbone and fusion that names and shapes speak of; of a foreign file, the nearest variant."""
    if any(name.startswith("res.") for name in state_dict):
        return "resnet50", "single"
    patch_embedding = state_dict.get("swin.backbone.patch_embed.proj.weight")
    width = 96 if patch_embedding is None else len(patch_embedding)  # of stage 0
    deep = any(name.startswith("swin.backbone.layers_2.blocks.6.") for name in state_dict)  # Tiny ends at 5
    backbone = "base" if width == 128 else "small" if deep else "tiny"
    if any(name.startswith(_ATTENTION) for name in state_dict):
        return backbone, "scale"
    first_reduction = state_dict.get("conv1.0.weight")  # (512, C, 1, 1)
    from_stage_3 = first_reduction is not None and tuple(first_reduction.shape[1:2]) == (8 * width,)
    return backbone, "single" if from_stage_3 else "concat"


def _published_name(name: str, backbone: str) -> str:
    """The published name of one of our tensors; theirs count layers from 1."""
    trunk, features = ("res.", "res.") if backbone == "resnet50" else ("swin.", "swin.backbone.")
    for ours, theirs in (
        ("backbone.body.", features),
        ("fusion.weigh.", _ATTENTION),
        ("reduce.", "conv1."),
        ("hypernet.last_weight.", "fc5w_fc."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    part, index, parameter = name.rsplit(".", 2)
    layer = int(index) + 1
    layers = {
        "content.project": f"{trunk}lda{layer}_pool.0",
        "content.summarise": f"{trunk}lda{layer}_fc",
        "hypernet.weight_maps": f"fc{layer}w_conv",
        "hypernet.biases": f"fc{layer}b_fc",
    }
    return f"{layers[part]}.{parameter}"


def _check_names(expected: list[str], state_dict: dict[str, Tensor], nearest: str) -> None:
    known = set(expected)
    missing = [f"missing {name!r}" for name in expected if name not in state_dict]
    unexpected = [f"unexpected {name!r}" for name in state_dict if name not in known]
    if problems := missing[:1] + unexpected[:1]:
        raise UserError(f"no published checkpoint (nearest: {nearest}): {', '.join(problems)}")
