"""What a run has to beat: ridge regression on the same backbone, frozen and globally pooled.

    smart-iqa ridge-baseline --checkpoint results/demo

Same images, same split, same crops as the run; features are the pretrained backbone's four stages averaged
over positions, mean over crops; the penalty is chosen on validation. Writes `ridge_baseline.json` beside the
run's own results, in the same form.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from folders import Database, read_run_database
from iqa.config import Config
from iqa.data import read_split
from iqa.errors import Parser, UserError
from iqa.metrics import srcc
from iqa.results import TEST_PART, build_results, metrics_table, provenance, read_results, write_results
from iqa.system import start_logging

if TYPE_CHECKING:
    from smart_iqa.scorer import Scorer

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)


def pooled_features(scorer: Scorer, table: pd.DataFrame) -> np.ndarray:
    """Compute features (n, sum C_i) of every image: the mean over the crops that a test would use."""
    from iqa.evaluation import predict
    from smart_iqa.probes import PooledFeatures

    model = PooledFeatures(scorer.model.backbone).to(scorer.accelerator.device)
    return predict(model, scorer.loader(table), scorer.to_images, scorer.accelerator, "features")


def fit_ridge(features: dict[str, np.ndarray], mos: dict[str, np.ndarray]):
    """Fit a standardised ridge on train, with the penalty of the best validation SRCC."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = [make_pipeline(StandardScaler(), Ridge(alpha)).fit(features["train"], mos["train"]) for alpha in PENALTIES]
    return max(models, key=lambda model: np.nan_to_num(srcc(model.predict(features["val"]), mos["val"]), nan=-1.0))


def ridge_results(config: Config, database: Database, split: pd.Series) -> dict:
    """Fit the baseline on a run's split and test it on the test part."""
    from iqa.runtime import make_accelerator
    from models_swin import SmartIQA
    from smart_iqa.scorer import Scorer
    from smart_iqa.testing import scored_part

    started = time.perf_counter()
    model = SmartIQA(config.backbone, config.fusion, config.pretrained, config.backbone_weights)
    scorer = Scorer(model, config, make_accelerator(config.device, config.precision))
    parts = {part: database.table[split.to_numpy() == part].reset_index(drop=True) for part in ("train", "val", "test")}
    features = {part: pooled_features(scorer, table) for part, table in parts.items()}
    mos = {part: table["mos"].to_numpy() for part, table in parts.items()}
    ridge = fit_ridge(features, mos)
    protocol = {
        "model": "ridge on frozen, globally pooled features",
        "penalty": ridge[-1].alpha,
        "selected_on": "val",
        "n": {part: len(table) for part, table in parts.items()},
    }
    return build_results(
        dataclasses.asdict(config),
        provenance() | {"backbone_weights": model.weights_source},
        protocol,
        {TEST_PART: scored_part(database, parts["test"], ridge.predict(features["test"]), config.seed)},
        {"seconds": round(time.perf_counter() - started, 1)},
    )


def ridge_baseline(checkpoint: str | Path, data_root: str | None = None) -> dict:
    """Fit and test the baseline of a run, and write `ridge_baseline.json` beside its results.

    Args:
        checkpoint: folder of the run.
        data_root: holds a folder per database; default as the run.

    Returns:
        The baseline's results, in the form of the run's own.

    Raises:
        UserError: there is no such run or database.
    """
    from smart_iqa.scorer import load_run_config

    run = Path(checkpoint)
    if not run.is_dir():
        raise UserError(f"no run at {run}")
    config = load_run_config(run)
    database = read_run_database(config, data_root)
    results = ridge_results(config, database, read_split(run / "split.json", database))
    write_results(run / "ridge_baseline.json", results)
    run_metrics = read_results(run)["metrics"]["test"]
    print(metrics_table({run.name: run_metrics, f"{run.name}: ridge": results["metrics"]["test"]}))
    return results


def make_parser() -> Parser:
    """Name the command's flags."""
    parser = Parser(description="Ridge regression on a run's frozen backbone, on the run's own split.")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="folder of a run, for example results/demo")
    parser.add_argument("--data_root", help="holds a folder per database (default: as the run)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and test the baseline of the run that the command line names."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    ridge_baseline(arguments.checkpoint, arguments.data_root)
