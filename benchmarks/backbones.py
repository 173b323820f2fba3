"""Measure what a frozen backbone knows of quality: ridge and support vector regression over ten splits of AGIQA-3K.

    python benchmarks/backbones.py nano tf_efficientnet_lite0 --json benchmarks/results/backbones.json

Images at half size, whole. `ridge` and `svr` are those of `smart-iqa baseline`, on each stage's average. `refitted` is
a ridge on roots of averages and deviations, whose penalty val chooses before it learns from train and val together.
A name may carry a file of weights (`nano=results/pretrain_nano/backbone.safetensors`) or none (`nano=random`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.base import RegressorMixin
from torch import Tensor, nn

from folders import read_run_database
from iqa.config import Config, resolve
from iqa.data import split_database
from iqa.errors import Parser, exit_on_user_error
from iqa.evaluation import predict
from iqa.metrics import plcc, srcc
from iqa.results import provenance
from iqa.runtime import make_accelerator
from iqa.system import start_logging, write_json
from models_swin import Backbone, JoinedBackbone
from smart_iqa.commands.baseline import FITS, fit_ridge, signed_root
from smart_iqa.scorer import Scorer
from train_swin import build_model

SPLITS = range(10)
SETTINGS = {
    "dataset": "agiqa-3k", "freeze_backbone": True, "fusion": "vector", "content_vector": "pooled", "resize": "256",
    "patch_size": 256, "train_patch_num": 1, "test_mode": "full", "flip": False, "num_workers": 0, "spaq": False,
}  # fmt: skip


def settings_of(name: str) -> Config:
    """The settings of `BACKBONE`, `BACKBONE=FILE` or `BACKBONE=random`."""
    backbone, _, weights = name.partition("=")
    own = {"pretrained": False} if weights == "random" else {"backbone_weights": weights or None}
    return resolve(SETTINGS | {"backbone": backbone} | own)


class Statistics(nn.Module):
    """Images (B, 3, H, W) -> over positions the average of every channel of four stages, then its deviation (B, 2D)."""

    def __init__(self, backbone: Backbone | JoinedBackbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, 2 * sum C_i)."""
        stages = self.backbone(images)
        return torch.cat([of(s, dim=(2, 3)) for of in (torch.mean, torch.std) for s in stages], dim=1)


def fit_refitted(features: dict[str, np.ndarray], mos: dict[str, np.ndarray]) -> RegressorMixin:
    """Fit a ridge on roots, with the penalty that `fit_ridge` chooses by val, to train and val together."""
    roots = {part: signed_root(of_part) for part, of_part in features.items()}
    model, _ = fit_ridge(roots, mos)
    return model.fit(*(np.concatenate([by_part["train"], by_part["val"]]) for by_part in (roots, mos)))


def measure(name: str) -> dict:
    """Correlations of each kind of regression over the splits, on their test parts."""
    config = settings_of(name)
    database = read_run_database(config)
    model, accelerator = build_model(config), make_accelerator(config.device, config.precision)
    scorer = Scorer(model, config, accelerator)
    statistics = Statistics(model.backbone).to(accelerator.device)
    both = predict(statistics, scorer.loader(database.table), scorer.to_images, accelerator, "features")
    averages, mos = both[:, : both.shape[1] // 2], database.table["mos"].to_numpy()
    found: dict[str, dict[str, list[float]]] = {kind: {"srcc": [], "plcc": []} for kind in (*FITS, "refitted")}
    for seed in SPLITS:
        split = split_database(database, seed=seed, official=False).to_numpy()
        rows = {part: np.flatnonzero(split == part) for part in ("train", "val", "test")}
        truth, test = {part: mos[of_part] for part, of_part in rows.items()}, rows["test"]
        scores = {
            kind: fit({part: averages[r] for part, r in rows.items()}, truth)[0].predict(averages[test])
            for kind, fit in FITS.items()
        }
        refitted = fit_refitted({part: both[of_part] for part, of_part in rows.items()}, truth)
        scores["refitted"] = refitted.predict(signed_root(both[test]))
        for kind, of_kind in scores.items():
            for key, statistic in (("srcc", srcc), ("plcc", plcc)):
                found[kind][key].append(round(float(statistic(of_kind, truth["test"])), 4))
    return {"weights": model.weights_source, "splits": found}


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="What frozen backbones know of quality, on AGIQA-3K at half size.")
    parser.add_argument("names", nargs="+", metavar="BACKBONE", help="a name, NAME=FILE of weights, or NAME=random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the backbones that the command line names, print medians, and write what was found."""
    flags = make_parser().parse_args(argv)
    start_logging()
    found = {name: measure(name) for name in flags.names}
    medians = {
        name: {
            f"{kind} {key}": round(float(np.median(v)), 4) for kind, by in of["splits"].items() for key, v in by.items()
        }
        for name, of in found.items()
    }
    print(pd.DataFrame(medians).T.to_string())
    if flags.json:
        write_json(flags.json, {"kind": "backbones", "backbones": found, "provenance": provenance()})


if __name__ == "__main__":
    exit_on_user_error(main)
