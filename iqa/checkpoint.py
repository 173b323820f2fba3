"""Checkpoints: one safetensors file each, written whole or not at all, read strictly.

A file holds tensors by name and, as JSON in its header, how it was made, the version of this layout and a checksum.
`best.safetensors` holds a model; `last.safetensors` holds in addition everything that continuing needs, and
`previous.safetensors` is the `last` before it.
"""

from __future__ import annotations

import hashlib
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
_ADAPTED = ".base_layer."  # in the name of a layer's own weight, where it has an adapter
SCHEMA = 1  # of the file; those written before there was a number have no checksum either


def save_checkpoint(
    path: Path,
    model: nn.Module,
    made: dict,
    optimizer: torch.optim.Optimizer | None = None,
    extra: dict[str, Tensor] | None = None,
    keep: Path | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        path: file to write.
        model: its state dict is stored.
        made: JSON-ready record of how it was made; `load_model_state` checks its `architecture`.
        optimizer: its tensors are stored too, so that training can go on.
        extra: further tensors by name (random number states).
        keep: what lies at `path` goes here, once the new file is written beside it.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    header = {"made": json.dumps(made), "schema": json.dumps(SCHEMA)}
    if optimizer is not None:
        state = optimizer.state_dict()
        for index, values in state["state"].items():
            tensors |= {f"{_OPTIMIZER}{index}.{key}": torch.as_tensor(v) for key, v in values.items()}
        header["param_groups"] = json.dumps(state["param_groups"])
    tensors |= extra or {}
    # Tied or strided tensors do not fit the format; a contiguous copy does.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header["checksum"] = json.dumps(_checksum(tensors, header))

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        if keep is not None and path.exists():
            path.replace(keep)

    write_atomically(path, write)


def _checksum(tensors: dict[str, Tensor], header: dict[str, str]) -> str:
    """SHA-256 over a file's content: records, names, types, shapes and values, whatever their order."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON records of a checkpoint file.

    Raises:
        UserError: no such file, not written by `save_checkpoint` or by that of a later version, or damaged.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            records = {key: json.loads(text) for key, text in header.items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:  # bytes that are not UTF-8 or not JSON, too
        raise UserError(f"{path} is damaged, or no checkpoint of this project: {error}") from error
    if "made" not in records:
        raise UserError(f"{path} is no checkpoint of this project: it does not say how it was made")
    _check(path, tensors, header, records)
    return tensors, records


def _check(path: Path, tensors: dict[str, Tensor], header: dict[str, str], records: dict[str, Any]) -> None:
    """Compare a file's content with its checksum; files older than checksums have nothing to compare."""
    schema, expected = records.get("schema", 0), records.get("checksum")
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(f"{path} is of a later version of this project (schema {schema}, known: {SCHEMA}): update it")
    content = {key: text for key, text in header.items() if key != "checksum"}
    if (schema or expected) and expected != _checksum(tensors, content):
        raise UserError(f"{path} is damaged: its content is not what was written (checksum)")


def load_model_state(
    model: nn.Module,
    tensors: dict[str, Tensor],
    source: str | Path,
    made: dict | None = None,
    expected: dict | None = None,
) -> None:
    """Load a checkpoint's model tensors; every name and shape must agree, and the architecture where one is expected.

    Names and shapes do not tell all architectures apart: `efficientnet_lite0` and `tf_efficientnet_lite0` pad
    differently and have the same tensors.

    Args:
        model: takes the tensors.
        tensors: of the checkpoint.
        source: what messages call it.
        made: its record of how it was made.
        expected: the `architecture` that `made` must hold; None takes any.

    Raises:
        UserError: the first setting of the architecture that differs, else the first missing, unexpected or
            differently shaped tensor.
    """
    recorded = (made or {}).get("architecture", {})
    for key, value in (expected or {}).items():
        if recorded.get(key) != value:
            raise UserError(f"{source} is of another architecture: {key} is {recorded.get(key)!r}, expected {value!r}")
    ours = model.state_dict()
    theirs = _model_tensors(tensors, ours)
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


def _model_tensors(tensors: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's model tensors, their adapters merged where the model has none."""
    theirs = {name.removeprefix(_MODEL): tensor for name, tensor in tensors.items() if name.startswith(_MODEL)}
    return theirs if any(_ADAPTED in name for name in ours) else merge_adapters(theirs)


def merge_adapters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The plain weights of a network that has learned by adapters: W + B A (see `iqa.learning`), under their own names.

    Args:
        tensors: by name, as peft calls them; others stay as they are.
    """
    plain = {}
    for name, tensor in tensors.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        layer = name.removesuffix(f"{_ADAPTED}weight")
        if layer != name:
            tensor = tensor + tensors[f"{layer}.lora_B.default.weight"] @ tensors[f"{layer}.lora_A.default.weight"]
        plain[name.replace(_ADAPTED, ".")] = tensor
    return plain


def load_fitting_state(model: nn.Module, tensors: dict[str, Tensor], source: str | Path, part: str = "whole") -> str:
    """Load those of a checkpoint's model tensors whose name and shape the model has too.

    Args:
        model: takes the tensors.
        tensors: of the checkpoint.
        source: what messages call it.
        part: which of them, as `init_part` says it: a backbone comes whole or not at all.

    Returns:
        What was taken, in words: the whole network, or how many parameters, and which parts have tensors of their own.

    Raises:
        UserError: none fits, or not the whole backbone.
    """
    ours = model.state_dict()
    theirs = _model_tensors(tensors, ours)
    wanted = [name for name in ours if part == "whole" or (part == "backbone") == name.startswith("backbone.")]
    fitting = {n: theirs[n] for n in wanted if n in theirs and theirs[n].shape == ours[n].shape}
    if other := next((name for name in wanted if name.startswith("backbone.") and name not in fitting), None):
        raise UserError(
            f"the backbone of {source} is not this network's: it has no {other!r} of {tuple(ours[other].shape)}; leave "
            "--backbone out to take its own, or give --init_part head"
        )
    if not fitting:
        raise UserError(f"{source} has no tensor that fits this network: give another one, or leave init_from out")
    model.load_state_dict(fitting, strict=False)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    everything, taken = sum(sizes.values()), sum(size for name, size in sizes.items() if name in fitting)
    if anew := dict.fromkeys(name.split(".")[0] for name in ours if name not in fitting):
        return f"{taken:,} of {everything:,} parameters; not whole: {', '.join(anew)}"
    return f"the whole network, {everything:,} parameters"


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
