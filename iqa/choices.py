"""What settings choose from: a row for each choice, with what has to be known of it before torch is there.

The work is done elsewhere, by a function or class of the row's name: a loss in `iqa.losses`, a fusion in `models_swin`,
crops in `data_loader`. `iqa.config` takes the allowed values from here, so that mistakes and `--help` need no torch.
"""

from __future__ import annotations

from typing import NamedTuple

BACKENDS = ("torch", "onnxruntime")  # what computes scores in `smart-iqa predict`
ENGINES = ("local", "ray")  # where it computes them
DEVICES = ("auto", "cpu", "cuda", "mps")
HEADS = ("hypernet", "residual", "mlp")
TRACKERS = ("tensorboard", "wandb", "mlflow")  # by the name of their package
MODEL_SIZES = ("nano", "tiny", "small", "base")  # of Swin

QUALITY_LEVELS = ("Very Low", "Low", "Mid", "High", "Very High")  # fifths of the mos distribution

# A primary loss and the function of `iqa.losses` that computes it.
LOSSES = {"l1": "l1_loss", "l2": "l2_loss", "plcc": "plcc_loss", "rank": "ranking_loss", "fidelity": "fidelity_loss"}


class FusionKind(NamedTuple):
    """What settings ask of a fusion; the class in `models_swin.FUSIONS` answers the same, which a test compares."""

    single_stage: bool = False  # reads stage 3 alone: goes with --no_multiscale
    weighs_stages: bool = False  # gives stage weights: --attention_fusion may name it
    pools_first: bool = True  # reads pooled stages: features of a frozen backbone can be kept


FUSION_KINDS = {
    "single": FusionKind(single_stage=True),
    "single_vector": FusionKind(single_stage=True),
    "concat": FusionKind(),
    "vector": FusionKind(),
    "channel": FusionKind(weighs_stages=True),
    "scale": FusionKind(weighs_stages=True),
    "spatial": FusionKind(weighs_stages=True, pools_first=False),
    "cross_scale": FusionKind(weighs_stages=True),
}


class CropPolicy(NamedTuple):
    """How an image is cropped for a test: `data_loader.crop_corners` says where the crops lie."""

    several: bool = True  # as many crops as were asked for, else one
    whole: bool = False  # the one crop is the image itself, whatever its size

    def crops(self, asked: int) -> int:
        """How many crops of an image are scored, where `asked` is `test_patch_num`."""
        return asked if self.several else 1


TEST_MODES = {
    "random": CropPolicy(),
    "center": CropPolicy(several=False),
    "grid": CropPolicy(),
    "full": CropPolicy(several=False, whole=True),
}


def describe_crops(test_mode: str, asked: int) -> str:
    """The crops of a test as results files and pages say it; a mode of other code is taken at its word.

    >>> describe_crops("grid", 4), describe_crops("center", 20)
    ('grid, 4', 'center, 1')
    """
    return f"{test_mode}, {TEST_MODES.get(test_mode, CropPolicy()).crops(asked)}"
