"""A model -> one file that scores without this project: ONNX, or torch.export's .pt2.

A `SmartIQA` -[traceable]-> torch's program, which is a .pt2 -[to_onnx]-> .onnx -[quantising]-> .onnx in int8.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config
from torch import Tensor

import models_swin
import smart_iqa
from iqa.data import cache_folder
from iqa.errors import UserError
from iqa.system import require_packages, write_atomically
from models_swin import MIN_SIDE, SmartIQA
from smart_iqa import traceable
from smart_iqa.onnx_backend import INPUT, OUTPUT, OnnxBackend
from smart_iqa.scorer import Scorer
from smart_iqa.traceable import ScoreImages

TOLERANCE = 1e-4  # of a score, between a file and PyTorch
CHECKED = ((2, 224, 160), (1, 97, 155), (3, 64, 64))  # batches that every export is checked on: images, height, width
MOST_IMAGES, MOST_PIXELS = 4096, 16384  # of a batch; of a side
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `onnx`
METADATA = "metadata.json"  # within a .pt2
OPSET = 18


def describe(scorer: Scorer, name: str) -> dict[str, Any]:
    """What an exported file says of itself, JSON-ready.

    Args:
        scorer: the model.
        name: of the model.
    """
    model, config, meaning = scorer.model, scorer.config, scorer.meaning
    settings = ("resize", "patch_size", "test_mode", "test_patch_num", "dataset")
    return {
        "name": name,
        "version": smart_iqa.__version__,
        "settings": {
            "backbone": model.backbone.timm_name,
            "fusion": config.fusion,
            "content_vector": config.content_vector,
            **{key: getattr(config, key) for key in settings},
        },
        "input": "RGB, float, 0 to 1, (batch, 3, height, width); sides of at least 32; normalised inside",
        "scores": "quality, 0 to 100, higher is better",
        "score_range": [0, 100],
        "higher_is_better": True,
        "meaning": None if meaning is None else meaning._asdict(),
    }


def trace(model: SmartIQA, limits: bool = True) -> torch.export.ExportedProgram:
    """The program of a network for any number and size of images.

    Args:
        model: the network.
        limits: whether scores outside 0..100 are set to its end.

    Raises:
        UserError: torch.export cannot follow this backbone.
    """
    side = functools.partial(torch.export.Dim, min=MIN_SIDE, max=MOST_PIXELS)
    sizes = {0: torch.export.Dim("batch", min=1, max=MOST_IMAGES), 2: side("height"), 3: side("width")}
    images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    try:
        # Without it the exporter takes a side of one place in a coarse map for a case of its own, and refuses it.
        settings: Any = torch.fx.experimental._config
        with torch.no_grad(), settings.patch(backed_size_oblivious=True):
            program = torch.export.export(ScoreImages(model, limits), (images,), dynamic_shapes={INPUT: sizes})
    except Exception as error:  # the exporter raises what its stages raise, of no common kind
        name = model.backbone.timm_name
        raise UserError(f"backbone {name} cannot be exported for images of any size: {_reason(error)}") from error
    # They tell orders of memory apart, which are one where a side has one place: all sizes in range give true scores.
    program._guards_code = []
    return program


def _reason(error: Exception) -> str:
    """The first line of what an exporter says, which may be pages."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()[:200]


def to_onnx(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """An ONNX file of a program, with its metadata: values are JSON texts.

    Raises:
        UserError: ONNX lacks what the network does, or it is over the 2 GB that a file of ONNX holds.
    """
    names: dict[str, Any] = {
        "input_names": [INPUT],
        "output_names": [OUTPUT],
        "opset_version": OPSET,
        "dynamo": True,
        "verbose": False,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own
            exported = torch.onnx.export(program, (), **names)
    except Exception as error:  # as above
        raise UserError(f"the network cannot be written as ONNX, export a .pt2: {_reason(error)}") from error
    assert exported is not None
    network = exported.model_proto
    _name_sizes(network)
    for key, value in metadata.items():
        network.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    try:
        return network.SerializeToString()
    except ValueError as error:
        raise UserError("the network is too large for one ONNX file (2 GB): export a .pt2") from error


def _name_sizes(network: Any) -> None:
    """Call the dynamic sizes of an ONNX network what they are; the exporter numbers them."""
    numbered = [dimension.dim_param for dimension in network.graph.input[0].type.tensor_type.shape.dim]
    names = {old: new for old, new in zip(numbered, ("batch", "", "height", "width"), strict=True) if old}
    for value in (*network.graph.input, *network.graph.output, *network.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]


def kept_backend(scorer: Scorer, checkpoint: Path, threads: int | None = None) -> OnnxBackend:
    """ONNX Runtime for a scorer's network; its file is made once and kept in the user's cache folder.

    Args:
        scorer: the model.
        checkpoint: the file that it is of.
        threads: that compute; None takes as many as this process may run on.
    """
    require_packages("the backend onnxruntime", "onnx", PACKAGES)
    digest = hashlib.sha256(f"{smart_iqa.__version__} {torch.__version__} {version('timm')}".encode())
    for file in (checkpoint, Path(models_swin.__file__), Path(traceable.__file__)):
        digest.update(file.read_bytes())
    kept = cache_folder(None) / f"network_{digest.hexdigest()[:32]}.onnx"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        network = to_onnx(trace(scorer.model, limits=False), describe(scorer, checkpoint.stem))
        write_atomically(kept, lambda temporary: temporary.write_bytes(network))
    return OnnxBackend(kept, threads)


def write_export(
    scorer: Scorer,
    name: str,
    output: Path,
    calibration: list[np.ndarray] | None = None,
    program: torch.export.ExportedProgram | None = None,
) -> dict[str, Any]:
    """Export a model, check the file on images of several sizes, and put it in its place.

    Args:
        scorer: the model.
        name: of the model, for the metadata.
        output: .onnx or .pt2.
        calibration: images (B, 3, H, W) in 0..1 to set the ranges of int8 by; None keeps float32.
        program: of `trace`; None makes it.

    Returns:
        `file`, `bytes`, and `difference`: the largest one of its scores to PyTorch's.

    Raises:
        UserError: the model cannot be exported, or the file's scores are not PyTorch's.
    """
    metadata, program = describe(scorer, name), program or trace(scorer.model)
    metadata["precision"] = "float32" if calibration is None else "int8"
    found: dict[str, Any] = {"file": str(output)}

    def write(temporary: Path) -> None:
        if output.suffix == ".pt2":
            with temporary.open("wb") as file:
                torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata, indent=1)})
        else:
            content = to_onnx(program, metadata)
            if calibration is not None:
                from smart_iqa.quantising import quantise

                content = quantise(content, calibration)
            temporary.write_bytes(content)
        found["bytes"] = temporary.stat().st_size
        found["difference"] = largest_difference(scorer.model, reader(temporary, output.suffix))
        if calibration is None and found["difference"] > TOLERANCE:
            raise UserError(f"{output} is not written: its scores are up to {found['difference']:.2g} off PyTorch's")

    write_atomically(output, write)
    return found


def reader(file: Path, suffix: str) -> Callable[[np.ndarray], np.ndarray]:
    """What scores images (B, 3, H, W) in 0..1 by an exported file."""
    if suffix == ".onnx":
        return OnnxBackend(file)
    with file.open("rb") as opened:
        network = torch.export.load(opened).module()
    return lambda images: network(torch.from_numpy(images)).numpy()


def torch_scores(model: SmartIQA, images: np.ndarray) -> np.ndarray:
    """Scores (B,) on 0..100 by PyTorch of images (B, 3, H, W) in 0..1."""
    with torch.inference_mode():
        batch = torch.from_numpy(images).to(next(model.parameters()).device)
        scores: Tensor = model(model.backbone.normalise(batch))
    return scores.clamp(0, 100).cpu().numpy()


def largest_difference(model: SmartIQA, score: Callable[[np.ndarray], np.ndarray]) -> float:
    """Between an exported file's scores and PyTorch's, on noise of several sizes."""
    return max(float(np.abs(score(images) - torch_scores(model, images)).max()) for images in _noise())


def _noise() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.random((count, 3, height, width), dtype=np.float32) for count, height, width in CHECKED)
