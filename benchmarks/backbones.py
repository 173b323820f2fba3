"""Measure what a frozen backbone knows of quality: ridge and support vector regression over ten splits of AGIQA-3K.

    python benchmarks/backbones.py nano tf_efficientnet_lite0 --json benchmarks/results/backbones.json

Images at half size, whole; each stage's average; the ridge's penalty is chosen on val, the other settings are fixed.
A name may carry a file of weights (`nano=results/pretrain_nano/backbone.safetensors`) or none (`nano=random`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from folders import read_run_database
from iqa.config import Config, resolve
from iqa.data import split_database
from iqa.errors import Parser, exit_on_user_error
from iqa.metrics import plcc, srcc
from iqa.results import provenance
from iqa.system import start_logging, write_json
from smart_iqa.commands.baseline import FITS, frozen_stages

SPLITS = range(10)
SETTINGS = {
    "dataset": "agiqa-3k", "freeze_backbone": True, "fusion": "vector", "content_vector": "pooled", "resize": "256",
    "patch_size": 256, "train_patch_num": 1, "test_mode": "full", "flip": False, "num_workers": 0, "spaq": False,
}  # fmt: skip


def settings_of(name: str, cache_dir: str | None) -> Config:
    """The settings of `BACKBONE`, `BACKBONE=FILE` or `BACKBONE=random`."""
    backbone, _, weights = name.partition("=")
    own = {"pretrained": False} if weights == "random" else {"backbone_weights": weights or None}
    return resolve(SETTINGS | {"backbone": backbone, "cache_dir": cache_dir} | own)


def measure(name: str, cache_dir: str | None = None) -> dict:
    """Correlations of each kind of regression over the splits, on their test parts."""
    config = settings_of(name, cache_dir)
    database = read_run_database(config)
    frozen, mos = frozen_stages(config, database.table), database.table["mos"].to_numpy()
    found: dict[str, dict[str, list[float]]] = {kind: {"srcc": [], "plcc": []} for kind in FITS}
    for seed in SPLITS:
        split = split_database(database, seed=seed, official=False).to_numpy()
        rows = {part: np.flatnonzero(split == part) for part in ("train", "val", "test")}
        for kind, fit in FITS.items():
            model, _ = fit({p: frozen.features[r] for p, r in rows.items()}, {p: mos[r] for p, r in rows.items()})
            scores = model.predict(frozen.features[rows["test"]])
            for key, statistic in (("srcc", srcc), ("plcc", plcc)):
                found[kind][key].append(round(float(statistic(scores, mos[rows["test"]])), 4))
    return {"weights": frozen.source, "splits": found}


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="What frozen backbones know of quality, on AGIQA-3K at half size.")
    parser.add_argument("names", nargs="+", metavar="BACKBONE", help="a name, NAME=FILE of weights, or NAME=random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    parser.add_argument("--cache_dir", help="where features are kept (default: the user's cache folder)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the backbones that the command line names, print medians, and write what was found."""
    flags = make_parser().parse_args(argv)
    start_logging()
    found = {name: measure(name, flags.cache_dir) for name in flags.names}
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
