"""An exported model in float32 -> the same in int8, whose ranges are set by images.

The backbone's convolutions and linear layers are quantised (8-bit weights per channel, 8-bit activations; Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). The head
stays in float32: it is small, and it generates the weights of the network that gives the score.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from data_loader import load_image
from iqa.config import Config, parse_resize
from iqa.data import find_images
from iqa.demo import dead_leaves
from iqa.distortions import DISTORTIONS, NUM_LEVELS, distort
from iqa.errors import UserError
from smart_iqa.onnx_backend import INPUT

MADE_UP, MADE_UP_SIDE = 24, 224
MOST = 64  # images: further ones change the ranges little
_SCOPE = "pkg.torch.onnx.name_scopes"  # where the exporter keeps the module that a node comes from


def calibration_images(config: Config, paths: Sequence[str]) -> list[np.ndarray]:
    """Images (1, 3, H, W) in 0..1 of files and folders, resized as the settings say; without any, made-up ones.

    Raises:
        UserError: a path is not there, or holds no image that can be read.
    """
    if not paths:
        return [_batch(pixels.transpose(2, 0, 1)) for pixels in _made_up()]
    found = list(find_images(paths))
    if problem := next((each.problem for each in found if each.problem), None):
        raise UserError(f"--calibration: {problem}")
    files = [each.path for each in found]
    chosen = [files[place] for place in np.linspace(0, len(files) - 1, min(MOST, len(files))).astype(int)]
    return [_batch(load_image(file, parse_resize(config.resize), config.patch_size)) for file in chosen]


def _batch(pixels: np.ndarray) -> np.ndarray:
    return pixels[None].astype(np.float32) / 255


def _made_up() -> list[np.ndarray]:
    """Scenes of dead leaves (H, W, 3), each as it is and with a distortion of another kind and level."""
    rng, kinds, images = np.random.default_rng(0), list(DISTORTIONS), []
    for number in range(MADE_UP // 2):
        scene = dead_leaves(MADE_UP_SIDE, rng)
        kind, level = kinds[number % len(kinds)], 1 + number % NUM_LEVELS
        images += [scene, distort(scene, kind, level, rng)]
    return images


class _Reader(CalibrationDataReader):
    def __init__(self, images: Sequence[np.ndarray]):
        self.left = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch as ONNX Runtime's input."""
        batch = next(self.left, None)
        return None if batch is None else {INPUT: batch}


def quantise(model: bytes, images: Sequence[np.ndarray]) -> bytes:
    """An ONNX file in float32 -> one whose backbone is in int8.

    Args:
        model: as `exporting.to_onnx` gives it.
        images: (B, 3, H, W) in 0..1, of any sizes.
    """
    network = onnx.load_model_from_string(model)
    with tempfile.TemporaryDirectory() as folder, _unadvised():
        file = Path(folder) / "int8.onnx"
        quantize_static(
            network,
            file,
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=layers_to_quantise(network),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return file.read_bytes()


@contextlib.contextmanager
def _unadvised() -> Iterator[None]:
    """ONNX Runtime advises, as a warning, a preparation that the exporter has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def layers_to_quantise(network: onnx.ModelProto) -> list[str]:
    """The names of the backbone's convolutions and linear layers: where its weights and its work are.

    The first convolution sees the noise and blur that a score is about, and 8 bits of it shift all scores; those of
    one channel each (depthwise) lose more than they gain.
    """
    weights = {tensor.name for tensor in network.graph.initializer}
    first = next((node for node in network.graph.node if node.op_type == "Conv"), None)
    return [
        node.name
        for node in network.graph.node
        if "model.backbone" in _scope(node)
        and node.op_type in ("Conv", "Gemm", "MatMul")
        and weights.intersection(node.input)
        and node is not first
        and all(attribute.i == 1 for attribute in node.attribute if attribute.name == "group")
    ]


def _scope(node: onnx.NodeProto) -> str:
    return "".join(entry.value for entry in node.metadata_props if entry.key == _SCOPE)
