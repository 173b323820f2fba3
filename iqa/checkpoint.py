"""Checkpoints: one safetensors file each, written whole or not at all, read strictly.

A file holds tensors by name and, as JSON in its header, how it was made. `best.safetensors` holds a model;
`last.safetensors` holds in addition everything that continuing needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from iqa.errors import UserError
from iqa.system import write_atomically

_MODEL, _OPTIMIZER = "model.", "optimizer."


def save_checkpoint(
    path: Path,
    model: nn.Module,
    made: dict,
    optimizer: torch.optim.Optimizer | None = None,
    extra: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        path: file to write.
        model: its state dict is stored.
        made: JSON-ready record of how it was made; `load_model_state` checks its `architecture`.
        optimizer: its tensors are stored too, so that training can go on.
        extra: further tensors by name (random number states).
    """
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    header = {"made": json.dumps(made)}
    if optimizer is not None:
        state = optimizer.state_dict()
        for index, values in state["state"].items():
            tensors |= {f"{_OPTIMIZER}{index}.{key}": torch.as_tensor(v) for key, v in values.items()}
        header["param_groups"] = json.dumps(state["param_groups"])
    tensors |= extra or {}
    # Tied or strided tensors do not fit the format; a contiguous copy does.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON records of a checkpoint file.

    Raises:
        UserError: no such file, or not written by `save_checkpoint`.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            records = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is no checkpoint of this project: {error}") from error
    if "made" not in records:
        raise UserError(f"{path} is no checkpoint of this project: it does not say how it was made")
    return tensors, records


def load_model_state(model: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Load a checkpoint's model tensors; every name and shape must agree.

    Raises:
        UserError: the first missing, unexpected or differently shaped tensor.
    """
    theirs = {name.removeprefix(_MODEL): t for name, t in tensors.items() if name.startswith(_MODEL)}
    ours = model.state_dict()
    for name, tensor in ours.items():
        if name not in theirs:
            raise UserError(f"{source} is of another architecture: it has no {name!r}")
        if theirs[name].shape != tensor.shape:
            raise UserError(
                f"{source} is of another architecture: {name!r} is {tuple(theirs[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    if foreign := next((name for name in theirs if name not in ours), None):
        raise UserError(f"{source} is of another architecture: unexpected {foreign!r}")
    model.load_state_dict(theirs)


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], param_groups: list[dict]
) -> None:
    """Give an optimizer the state that a checkpoint stored."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, key = name.removeprefix(_OPTIMIZER).split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})
