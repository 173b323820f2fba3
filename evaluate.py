"""Test a finished run on databases: one results file, one table.

    python evaluate.py --checkpoint results/demo --datasets demo

The database a run was trained on is tested on its test split, any other one whole.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data_loader import warn_of_small_images
from folders import DATABASES, Database, DatabaseNotFound, read_database
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.files import write_json
from iqa.metrics import summarize
from iqa.results import prediction_rows
from iqa.runtime import provenance, start_logging
from iqa.splits import read_split
from predict import Scorer, load_model, run_folder

log = logging.getLogger(__name__)

COLUMNS = (
    ("srcc", "SRCC"),
    ("plcc", "PLCC"),
    ("plcc_logistic4", "PLCC log4"),
    ("krcc", "KRCC"),
    ("rmse", "RMSE"),
)


def test_part(scorer: Scorer, database: Database, table: pd.DataFrame) -> tuple[dict, list[dict], dict]:
    """Score one table of a database.

    Args:
        scorer: the model.
        database: gives the scale of the scores and its fingerprint.
        table: the rows to test on.

    Returns:
        Metrics with n and intervals, the predictions, and timings.
    """
    started = time.perf_counter()
    scores = scorer.score_table(table, description=f"test {database.name}")
    seconds = time.perf_counter() - started
    metrics = summarize_part(database, table, scores, scorer.config.seed)
    timings = {"seconds": round(seconds, 2), "images_per_s": round(len(table) / seconds, 2)}
    return metrics, prediction_rows(table, scores), timings


def summarize_part(database: Database, table: pd.DataFrame, scores: np.ndarray, seed: int) -> dict:
    """All statistics of scores (n,) on the rows of a database's table; see `iqa.metrics.summarize`."""
    low, high = database.stored_range
    return summarize(
        scores,
        table["mos"].to_numpy(),
        contents=table["content"].to_numpy(),
        mos_std=table["mos_std"].to_numpy() if table["mos_std"].notna().all() else None,
        scale=(high - low) / 100,
        seed=seed,
    )


def describe(database: Database) -> dict:
    """What a results file records about a database."""
    return {
        "n": len(database.table),
        "official_split": bool((database.table["split"] != "").any()),
        "fingerprint": database.fingerprint(),
        "stored_range": list(database.stored_range),
        "lower_is_better": database.lower_is_better,
        "left_out": database.left_out,
        "duplicates": len(database.duplicates),
        "notes": database.notes,
    }


def test_databases(scorer: Scorer, databases: Sequence[Database], trained_on: dict[str, pd.DataFrame]) -> dict:
    """Test on several databases.

    Args:
        scorer: the model.
        databases: read and checked.
        trained_on: test tables of the databases that training has seen, by name.

    Returns:
        `metrics`, `predictions`, `timings` and `databases`, each by database name.
    """
    tested: dict[str, dict] = {"metrics": {}, "predictions": {}, "timings": {}, "databases": {}}
    for database in databases:
        table = trained_on.get(database.name, database.table)
        metrics, rows, timings = test_part(scorer, database, table)
        tested["metrics"][database.name], tested["predictions"][database.name] = metrics, rows
        tested["timings"][database.name] = timings
        tested["databases"][database.name] = describe(database)
    return tested


def read_databases(
    names: Sequence[str], data_root: str | None, skip_bad_images: bool, optional: Sequence[str] = ()
) -> list[Database]:
    """Read several databases; one of `optional` that is absent is said in a line and left out.

    Raises:
        UserError: unknown name, bad labels or images, or a database that is absent and not optional.
    """
    databases = []
    for name in dict.fromkeys(names):
        try:
            databases.append(read_database(name, data_root=data_root, skip_bad_images=skip_bad_images))
        except DatabaseNotFound as error:
            if name not in optional:
                raise
            log.info("not tested on %s: %s", name, error)
    return databases


def metrics_table(metrics: dict[str, dict]) -> str:
    """Metrics by part as an aligned text table: a row a part, n, contents and intervals included."""
    rows = []
    for part, values in metrics.items():
        cells = {"": part, "n": values["n"], "contents": values.get("contents", "")}
        for key, title in COLUMNS:
            cells[title] = "-" if values.get(key) is None else f"{values[key]:.4f}"
        low, high = values["srcc_ci95"] or (None, None)
        cells["SRCC 95 % interval"] = "-" if low is None else f"{low:.3f}..{high:.3f}"
        rows.append(cells)
    lines = [pd.DataFrame(rows).to_string(index=False)]
    for part, values in metrics.items():
        lines += [f"{part}: {note}" for note in values.get("notes", [])]
    return "\n".join(lines)


def trained_test_table(run: Path, database: Database) -> pd.DataFrame:
    """The test split of the database that a run was trained on: as it wrote it down, or for published files official.

    Raises:
        UserError: the split file does not fit the database, or there is neither a file nor an official split.
    """
    file = run / "split.json"
    if not file.is_file() and not (database.table["split"] == "test").any():
        raise UserError(f"{run} has no split.json, and {database.name} no official split: the test part is unknown")
    split = read_split(file, database) if file.is_file() else database.table["split"]
    return database.table[split.to_numpy() == "test"].reset_index(drop=True)


def _parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Test a finished run on databases.")
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="folder of a run, or a published file (.pth, .pkl)"
    )
    parser.add_argument("--datasets", nargs="+", required=True, metavar="NAME", help=", ".join(DATABASES))
    parser.add_argument("--data_root", help="holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave bad rows out and record them")
    parser.add_argument("--test_mode", choices=("random", "center", "grid", "full"), help="default: as the run")
    parser.add_argument("--test_patch_num", type=int, help="crops per image (default: as the run)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--output", metavar="FILE.json", help="default: RUN/evaluation_<names>.json")
    return parser.parse_args()


def main() -> None:
    """Evaluate as the command line says."""
    arguments = _parse_arguments()
    start_logging()
    run = run_folder(arguments.checkpoint)
    output = Path(arguments.output or run / f"evaluation_{'_'.join(arguments.datasets)}.json")
    if output.exists():
        raise UserError(f"{output} exists: name another file with --output")
    changes = {key: getattr(arguments, key) for key in ("test_mode", "test_patch_num")}
    scorer = load_model(arguments.checkpoint, arguments.device, **{k: v for k, v in changes.items() if v is not None})
    databases = _databases_of(scorer, arguments)
    for database in databases:
        warn_of_small_images(database.table, scorer.config, database.name)
    trained_on = {d.name: trained_test_table(run, d) for d in databases if d.name == scorer.config.dataset}
    tested = test_databases(scorer, databases, trained_on)
    record = {"config": vars(scorer.config), "provenance": provenance(), "protocol": {"checkpoint": str(run)}}
    write_json(output, record | tested)
    print(metrics_table(tested["metrics"]))
    print(f"written to {output}")


def _databases_of(scorer: Scorer, arguments: argparse.Namespace) -> list[Database]:
    """The databases asked for; `csv` and `json` are read as the run read them."""
    plain = [name for name in arguments.datasets if name != scorer.config.dataset]
    databases = read_databases(plain, arguments.data_root, arguments.skip_bad_images)
    if scorer.config.dataset in arguments.datasets:
        databases.insert(0, read_run_database(scorer.config, arguments.data_root))
    return databases


def read_run_database(config, data_root: str | None = None) -> Database:
    """The database that a run is trained on, as its settings say."""
    return read_database(
        config.dataset,
        data_root=data_root or config.data_root,
        data_path=config.data_path,
        skip_bad_images=config.skip_bad_images,
        image_column=config.image_column,
        mos_column=config.mos_column,
        mos_range=tuple(config.mos_range) if config.mos_range else None,
        lower_is_better=config.lower_is_better,
        content_column=config.content_column,
    )


if __name__ == "__main__":
    exit_on_user_error(main)
