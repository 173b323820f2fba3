"""What of a backbone learns: all of it, its later stages, or adapters of low rank; and at what cost in memory.

Adapters leave a layer's weight W (out, in) as it is and add B A to it, A (rank, in) and B (out, rank). B starts at
zero. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. A checkpoint with adapters
loads into a plain network: see `iqa.checkpoint.merge_adapters`.
"""

from __future__ import annotations

import torch
from torch import nn

from iqa.errors import UserError

_LEAST_SIDE = 32


def limit_learning(
    backbone: nn.Module, freeze_stages: int = 0, lora_rank: int = 0, grad_checkpointing: bool = False
) -> None:
    """Say what of a backbone learns, and whether its blocks are computed again in the backward pass.

    Args:
        backbone: images (B, 3, H, W) -> four stages; its `body` is timm's feature extractor.
        freeze_stages: all that stages 0 .. freeze_stages - 1 are computed from stays as it is.
        lora_rank: of the adapters that learn in place of the backbone; 0 for none.
        grad_checkpointing: spend time, keep memory.

    Raises:
        UserError: the backbone cannot do it, or peft is not installed.
    """
    if freeze_stages:
        freeze_first_stages(backbone, freeze_stages)
    if lora_rank:
        add_adapters(backbone, lora_rank)
    if grad_checkpointing:
        checkpoint_gradients(backbone)


def freeze_first_stages(backbone: nn.Module, count: int) -> None:
    """Freeze every parameter that the first `count` stages are computed from; the graph of an image tells which."""
    parameters = list(backbone.parameters())
    with torch.enable_grad():
        stages = backbone.eval()(torch.zeros(1, 3, _LEAST_SIDE, _LEAST_SIDE, device=parameters[0].device))
        together = torch.stack([stage.sum() for stage in stages[:count]]).sum()
        gradients = torch.autograd.grad(together, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is None)


def checkpoint_gradients(backbone: nn.Module) -> None:
    """Keep only what goes into each block (of a CNN: each stage) and compute the rest again in the backward pass."""
    body = backbone.body
    inner = [module for module in body.modules() if module is not body and hasattr(module, "grad_checkpointing")]
    able = inner or [module for module in (body,) if hasattr(module, "grad_checkpointing")]
    if not able:
        raise UserError(f"grad_checkpointing: backbone {backbone.name!r} cannot compute its blocks again: leave it out")
    for module in able:
        module.grad_checkpointing = True


def add_adapters(backbone: nn.Module, rank: int) -> None:
    """Freeze a backbone and give every linear layer of it an adapter."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora_rank needs peft: pip install 'smart-iqa[lora]', or pip install peft") from error
    layers = [name for name, module in backbone.body.named_modules() if isinstance(module, nn.Linear)]
    # EVA with a bias reads the weight of its first layer without calling the layer: an adapter there would do nothing.
    uncalled = {
        f"{name}.qkv" for name, module in backbone.body.named_modules() if getattr(module, "q_bias", None) is not None
    }
    layers = [name for name in layers if name not in uncalled]
    if not layers:
        raise UserError(f"lora_rank: backbone {backbone.name!r} has no linear layers to adapt: give --freeze_stages")
    backbone.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), backbone.body)


def merge_adapters_in_place(backbone: nn.Module) -> None:
    """Add the adapters to the weights, so that the network computes what its checkpoint gives when it is loaded."""
    for module in backbone.modules():
        if hasattr(module, "base_layer"):
            module.merge()
