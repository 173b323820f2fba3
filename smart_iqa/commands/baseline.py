"""What a run has to beat: simpler models on the same backbone, images, split and crops.

    smart-iqa baseline --checkpoint results/demo
    smart-iqa baseline --checkpoint results/agiqa3k --kind svr

`ridge` and `svr` are fitted to the backbone's frozen stages, averaged over positions and crops: a ridge on train with
the penalty that validation chooses, or a support vector regression on train and val with settings fixed beforehand.
`mlp` trains the run once more, head and all settings as they were, but for an MLP in the place of generated weights.
Each writes `KIND_baseline.json` beside the run's own results, in the same form; of a run over several splits, beside
those of every split.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from folders import Database, read_run_database
from iqa.config import Config, resolve
from iqa.data import read_split
from iqa.errors import Parser, UserError
from iqa.metrics import across_splits, srcc
from iqa.results import TEST_PART, build_results, metrics_table, paired_scores, provenance, read_results, write_results
from iqa.system import start_logging

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

KINDS = ("ridge", "svr", "mlp")
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
SVR_C, SVR_EPSILON = 30.0, 3.0  # on mos 0..100; the kernel's gamma is 0.5 / number of features


class FrozenStages(NamedTuple):
    """What a run's backbone sees before it has learned anything: one computation serves every split."""

    features: np.ndarray  # (n, sum C_i): each stage's average, mean over the crops that a test would use
    source: str  # of the backbone's weights
    seconds: float


def frozen_stages(config: Config, table: pd.DataFrame) -> FrozenStages:
    """Compute the features of every image of a table with the backbone that a run starts from."""
    from iqa.data import cache_folder
    from iqa.evaluation import predict
    from iqa.runtime import make_accelerator
    from models_swin import GRID
    from smart_iqa.frozen_features import FrozenFeatures
    from smart_iqa.probes import PooledFeatures
    from smart_iqa.scorer import Scorer
    from train_swin import build_model

    started = time.perf_counter()
    model, accelerator = build_model(config), make_accelerator(config.device, config.precision)
    reads_averages_alone = max(max(grids, default=GRID) for grids in model.branch_grids) == 1
    if config.cache and config.freeze_backbone and reads_averages_alone:  # the run's own features, from its cache
        frozen = FrozenFeatures(cache_folder(config.cache_dir) / config.dataset, table, config, model, accelerator)
        frozen.dataset(table)
        features = np.stack(
            [frozen.read(path, training=False)[:, 0].mean(axis=0, dtype=float) for path in table["path"]]
        )
    else:
        scorer = Scorer(model, config, accelerator)
        pooled = PooledFeatures(model.backbone).to(accelerator.device)
        features = predict(pooled, scorer.loader(table), scorer.to_images, accelerator, "features")
    return FrozenStages(features, model.weights_source, time.perf_counter() - started)


def fit_ridge(features: dict[str, np.ndarray], mos: dict[str, np.ndarray]) -> tuple[Pipeline, dict]:
    """Fit a standardised ridge on train, with the penalty of the best validation SRCC.

    Args:
        features: by part, (n, D).
        mos: by part, (n,).

    Returns:
        The model, and what results say of it.
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = [make_pipeline(StandardScaler(), Ridge(alpha)).fit(features["train"], mos["train"]) for alpha in PENALTIES]
    best = max(models, key=lambda model: np.nan_to_num(srcc(model.predict(features["val"]), mos["val"]), nan=-1.0))
    return best, {"penalty": best[-1].alpha, "selected_on": "val"}


def fit_svr(features: dict[str, np.ndarray], mos: dict[str, np.ndarray]) -> tuple[Pipeline, dict]:
    """Fit a support vector regression with a Gaussian kernel on train and val: nothing is chosen, so val is free.

    Args:
        features: by part, (n, D).
        mos: by part, (n,).

    Returns:
        The model, and what results say of it.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from sklearn.svm import SVR

    learned = np.concatenate([features["train"], features["val"]])
    regression = SVR(C=SVR_C, epsilon=SVR_EPSILON, gamma=0.5 / learned.shape[1])
    model = make_pipeline(FunctionTransformer(signed_root), StandardScaler(), regression)
    model.fit(learned, np.concatenate([mos["train"], mos["val"]]))
    return model, {"C": SVR_C, "epsilon": SVR_EPSILON, "gamma": regression.gamma, "selected_on": "nothing"}


def signed_root(features: np.ndarray) -> np.ndarray:
    """Take the square root of every size, and keep the sign: a few large features else decide the distances."""
    return np.sign(features) * np.sqrt(np.abs(features))


FITS = {"ridge": fit_ridge, "svr": fit_svr}


def fitted_results(kind: str, config: Config, database: Database, split: pd.Series, frozen: FrozenStages) -> dict:
    """Fit a baseline on a run's split and test it on the test part.

    Args:
        kind: a key of `FITS`.
        config: the run's settings.
        database: the run's.
        split: (n,) part of each image.
        frozen: features of all its images.
    """
    from smart_iqa.testing import scored_part

    started = time.perf_counter()
    rows = {part: np.flatnonzero(split.to_numpy() == part) for part in ("train", "val", "test")}
    features = {part: frozen.features[of_part] for part, of_part in rows.items()}
    mos = {part: database.table["mos"].to_numpy()[of_part] for part, of_part in rows.items()}
    fitted, settings = FITS[kind](features, mos)
    protocol = {
        "model": f"{kind} on frozen, globally pooled features",
        **settings,
        "n": {part: len(of_part) for part, of_part in rows.items()},
    }
    tested = database.table.iloc[rows["test"]].reset_index(drop=True)
    return build_results(
        dataclasses.asdict(config),
        provenance() | {"backbone_weights": frozen.source},
        protocol,
        {TEST_PART: scored_part(database, tested, fitted.predict(features["test"]), config.seed)},
        {"seconds": round(time.perf_counter() - started + frozen.seconds, 1)},
    )


def mlp_results(config: Config, database: Database, run: Path) -> dict:
    """Train a run once more with an MLP for a head, in its folder `mlp_baseline`; one that was stopped goes on."""
    from iqa.runtime import make_accelerator
    from train_swin import train_and_test

    split = {"split_file": str(run / "split.json"), "folds": 0}  # the fold's split, if it is one
    control = resolve(
        dataclasses.asdict(config) | split | {"results_dir": str(run), "name": "mlp_baseline", "head": "mlp"}
    )
    if (control.run_dir / "results.json").is_file():
        return read_results(control.run_dir)
    accelerator = make_accelerator(control.device, control.precision, control.accumulate)
    resume = control.run_dir.exists()
    return train_and_test(control, [database], [], accelerator, official=False, resume=resume)


def baseline(checkpoint: str | Path, kind: str = "ridge", data_root: str | None = None) -> list[dict]:
    """Fit and test a baseline of a run, and write `KIND_baseline.json` beside its results.

    Args:
        checkpoint: folder of a finished run, or of one over several splits.
        kind: one of `KINDS`.
        data_root: holds a folder per database; default as the run.

    Returns:
        The baseline's results of each split, in the form of the run's own.

    Raises:
        UserError: there is no such run or database.
    """
    from smart_iqa.scorer import load_run_config

    run = Path(checkpoint)
    splits = [file.parent for file in sorted(run.glob("split_*/results.json"))]
    if not (run / "results.json").is_file() and not splits:
        raise UserError(f"no finished run at {run}: expected a results.json in it, or in its split_* folders")
    runs = splits or [run]
    config = load_run_config(runs[0])
    database = read_run_database(config, data_root)
    frozen = frozen_stages(config, database.table) if kind in FITS else None
    found = []
    for each in runs:
        config = load_run_config(each)
        if frozen is None:
            results = mlp_results(config, database, each)
        else:
            results = fitted_results(kind, config, database, read_split(each / "split.json", database), frozen)
        write_results(each / f"{kind}_baseline.json", results)
        both = {each.name: read_results(each), f"{each.name}: {kind}": results}
        print(metrics_table({name: of_run["metrics"]["test"] for name, of_run in both.items()}))
        found.append(results)
    if splits:
        ours = [read_results(each) for each in splits]
        print(pd.DataFrame({run.name: _summary(ours), f"{run.name}: {kind}": _summary(found)}).T.to_string())
        print(f"{run.name} minus {kind}: {_paired(ours, found)}")
    return found


def _summary(of_splits: Sequence[dict]) -> dict[str, str]:
    """Median, mean and deviation of SRCC and PLCC over splits."""
    across = across_splits([results["metrics"]["test"] for results in of_splits])
    return {
        title: f"median {across[key]['median']:.4f}, mean {across[key]['mean']:.4f} ± {across[key]['std']:.4f}"
        for title, key in (("SRCC", "srcc"), ("PLCC", "plcc"))
    }


def _paired(ours: Sequence[dict], theirs: Sequence[dict]) -> str:
    """How much better our model is than a baseline over the same splits, with its interval over contents."""
    from iqa.metrics import compare_over_splits

    found = compare_over_splits([paired_scores(*pair, TEST_PART) for pair in zip(ours, theirs, strict=True)])
    low, high = found["bootstrap"]["difference_ci95"]
    return (
        f"SRCC {found['difference']:+.4f}, 95 % interval over {found['contents']} contents {low:+.4f} to {high:+.4f}, "
        f"ahead in {found['ahead']} of {found['splits']} splits"
    )


def make_parser(kind: str = "ridge") -> Parser:
    """Name the command's flags."""
    parser = Parser(description="Simpler models on a run's backbone and split: what the run has to beat.")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="folder of a run, for example results/demo")
    parser.add_argument("--kind", choices=KINDS, default=kind, help="default: %(default)s")
    parser.add_argument("--data_root", help="holds a folder per database (default: as the run)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and test the baseline of the run that the command line names."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    baseline(arguments.checkpoint, arguments.kind, arguments.data_root)
