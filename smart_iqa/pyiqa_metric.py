"""This package's models as metrics of pyiqa.

    import pyiqa
    from smart_iqa.pyiqa_metric import register
    register()
    pyiqa.create_metric("smart-iqa", device="cpu")

pyiqa looks a metric's name up in its own table before it asks for plug-ins (its entry points are for networks of names
that it knows), so that one line has to be called: no entry point can add a name.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from smart_iqa.scorer import load_model
from smart_iqa.shipped import DEFAULT


class SmartIQAMetric(nn.Module):
    """A model as pyiqa calls one: images (B, 3, H, W) in 0..1 -> scores (B, 1) on 0..100, with gradients.

    Args:
        checkpoint: as `load_model` takes it.
    """

    def __init__(self, checkpoint: str | Path = DEFAULT):
        super().__init__()
        self.scorer = load_model(checkpoint)
        self.network = self.scorer.model  # a part of this module, so that `to` moves it

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), float in 0..1 -> scores (B, 1)."""
        return self.scorer(images)[:, None]


def register(name: str = "smart-iqa", checkpoint: str | Path = DEFAULT) -> None:
    """Make `pyiqa.create_metric(name)` give a model of this package; a second call changes what the name gives.

    Args:
        name: of the metric.
        checkpoint: as `load_model` takes it.

    Raises:
        ModuleNotFoundError: pyiqa is not installed.
    """
    from pyiqa.default_model_configs import DEFAULT_CONFIGS
    from pyiqa.utils.registry import ARCH_REGISTRY

    if SmartIQAMetric.__name__ not in ARCH_REGISTRY:
        ARCH_REGISTRY.register(SmartIQAMetric)
    DEFAULT_CONFIGS[name] = {
        "metric_opts": {"type": SmartIQAMetric.__name__, "checkpoint": str(checkpoint)},
        "metric_mode": "NR",
        "lower_better": False,
        "score_range": "0, 100",
    }
