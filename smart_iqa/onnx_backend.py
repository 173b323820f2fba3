"""An exported model (.onnx) -> scores by ONNX Runtime: no network of this project is built, and no torch is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from iqa.errors import UserError
from iqa.system import require_packages, usable_cpus

INPUT, OUTPUT = "images", "scores"
MIN_SIDE = 32


_JSON = ("settings", "meaning", "score_range", "higher_is_better")  # of the metadata; the rest is text


class OnnxBackend:
    """Scores batches of images; safe to call from several threads.

    Args:
        model: an .onnx file that `smart-iqa export` wrote, or its bytes.
        threads: that compute; None takes as many as this process may run on.

    Attributes:
        metadata: what the file says of itself: name, version, settings, meaning of its scores.

    Raises:
        UserError: ONNX Runtime is not installed, or the file is not an exported model.
    """

    def __init__(self, model: str | Path | bytes, threads: int | None = None):
        require_packages("the backend onnxruntime", "onnx", ["onnxruntime"])
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cpus()
        # Threads that spin while they wait slow each other down on a machine that does something else too.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = model if isinstance(model, bytes) else str(model)
        where = "the model" if isinstance(model, bytes) else str(model)
        try:
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors derive from nothing narrower
            reason = str(error).splitlines()[0]
            raise UserError(f"{where} cannot be read by ONNX Runtime: {reason}") from error
        names = [[value.name for value in side] for side in (self.session.get_inputs(), self.session.get_outputs())]
        if names != [[INPUT], [OUTPUT]]:
            raise UserError(f"{where} is not a model that `smart-iqa export` wrote: it has no {INPUT} and {OUTPUT}")
        stored = self.session.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = {key: _value(key, text) for key, text in stored.items()}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Scores of RGB images of one size.

        Args:
            images: (B, 3, H, W), uint8, or floats in 0..1; sides of at least 32 pixels.

        Returns:
            (B,) float32, 0..100, higher is better.

        Raises:
            ValueError: the images have another shape or type.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MIN_SIDE:
            raise ValueError(f"expected images (B, 3, H, W) with sides of at least {MIN_SIDE}, got {images.shape}")
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        elif not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"expected uint8, or floats in 0..1, got {images.dtype}")
        return self.session.run([OUTPUT], {INPUT: np.ascontiguousarray(images, dtype=np.float32)})[0]

    def crop_scores(self, crops: np.ndarray) -> np.ndarray:
        """Crops (B, K, 3, H, W) of images -> (B, 1): the mean score over the crops of each."""
        B, K = crops.shape[:2]
        return self(crops.reshape(B * K, *crops.shape[2:])).reshape(B, K).mean(axis=1, keepdims=True)


def _value(key: str, text: str) -> Any:
    return json.loads(text) if key in _JSON else text
