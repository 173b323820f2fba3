"""Test one model on databases, and find which images of a database may test a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from folders import Database, read_database, read_run_database
from iqa.data import Overlap, find_overlap, read_split
from iqa.errors import UserError
from iqa.results import ScoredPart, part_metrics, prediction_rows, read_json
from models_swin import FUSIONS, SmartIQA
from smart_iqa.scorer import Scorer

log = logging.getLogger(__name__)


def test_part(scorer: Scorer, database: Database, table: pd.DataFrame) -> ScoredPart:
    """Score one table of a database, and compute its metrics.

    Args:
        scorer: the model.
        database: gives the scale of the scores and its fingerprint.
        table: the rows to test on.
    """
    started = time.perf_counter()
    scores = scorer.score_table(table, description=f"test {database.name}", database=database.name)
    seconds = time.perf_counter() - started
    timings = {"seconds": round(seconds, 2), "images_per_s": round(len(table) / seconds, 2)}
    return scored_part(database, table, scores, scorer.config.seed, timings)


def scored_part(
    database: Database, table: pd.DataFrame, scores: np.ndarray, seed: int, timings: dict | None = None
) -> ScoredPart:
    """What results say of scores (n,) on rows of a database's table: predictions, and metrics with n and intervals.

    The metrics are those of the scores as `prediction_rows` stores them; see `iqa.results.part_metrics`.

    Raises:
        UserError: a score is not finite.
    """
    rows = prediction_rows(table, scores)
    metrics = part_metrics(rows, database.stored_range, seed)
    return ScoredPart(database.name, describe(database), metrics, rows, timings or {})


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


def test_databases(scorer: Scorer, databases: Sequence[Database], tables: dict[str, pd.DataFrame]) -> list[ScoredPart]:
    """Test on several databases.

    Args:
        scorer: the model.
        databases: read and checked.
        tables: the rows to test on, by name of the database; without an entry a database is tested whole.
    """
    return [test_part(scorer, database, tables.get(database.name, database.table)) for database in databases]


def compare_with_training(
    databases: Sequence[Database], learned: pd.DataFrame, cache_dir: str | None
) -> dict[str, Overlap]:
    """By name of databases that a run was not trained on: their images among those of training; a find is a warning.

    Args:
        databases: with the images to test on in their tables.
        learned: the images of training: columns image, path, file_hash.
        cache_dir: keeps perceptual hashes.
    """
    found = {database.name: find_overlap(database.table, learned, cache_dir) for database in databases}
    for name, overlap in found.items():
        for line in overlap.in_words():
            log.warning("%s: %s", name, line)
    return found


def read_databases(
    names: Sequence[str], data_root: str | Sequence[str] | None, skip_bad_images: bool, cache_dir: str | None = None
) -> list[Database]:
    """Read several databases, each once.

    Raises:
        UserError: unknown name, bad labels or images, or a database that is absent.
    """
    return [
        read_database(name, data_root=data_root, skip_bad_images=skip_bad_images, cache_dir=cache_dir)
        for name in dict.fromkeys(names)
    ]


def trained_test_table(run: Path, database: Database) -> pd.DataFrame:
    """The test part of a database that a run was trained on: see `trained_part`."""
    return trained_part(run, database, "test")


def trained_part(run: Path, database: Database, part: str) -> pd.DataFrame:
    """A part of a database that a run was trained on: by the run's split file, else the official split.

    Raises:
        UserError: the split file does not fit the database, or there is neither a file nor an official split.
    """
    file = split_file(run, database.name)
    if file is None and not (database.table["split"] == part).any():
        raise UserError(f"{run} has no split.json, and {database.name} no official split: the {part} part is unknown")
    split = read_split(file, database) if file else database.table["split"]
    return database.table[split.to_numpy() == part].reset_index(drop=True)


def unseen_images(scorer: Scorer, run: Path, dataset: str, data_root: str | None) -> tuple[Database, pd.DataFrame]:
    """A database and its rows that a run has not learned from: the test part of its own, any other whole.

    Raises:
        UserError: the database cannot be read, or the run's test part is unknown.
    """
    if dataset == scorer.config.dataset:
        database = read_run_database(scorer.config, data_root)
        return database, trained_test_table(run, database)
    (database,) = read_databases([dataset], data_root, skip_bad_images=False, cache_dir=scorer.config.cache_dir)
    seen = dataset in scorer.config.also_train_on
    return database, trained_test_table(run, database) if seen else database.table


def split_file(run: Path, database: str) -> Path | None:
    """The file in a run's folder that says how this database was split: `split_<name>.json`, or `split.json`."""
    own, first = run / f"split_{database}.json", run / "split.json"
    if own.is_file():
        return own
    content = read_json(first) if first.is_file() else None
    return first if isinstance(content, dict) and content.get("database") == database else None


def fusion_name(model: SmartIQA) -> str:
    """The key of `FUSIONS` that a model was built with."""
    return next(name for name, kind in FUSIONS.items() if type(model.fusion) is kind)


def backbone_names(model: SmartIQA) -> dict[str, str]:
    """A model's backbone in a record: `backbone` is the name that was asked for, `timm_name` the name in timm."""
    return {"backbone": model.backbone.name, "timm_name": model.backbone.timm_name}


def in_full(record: dict) -> str:
    """The backbone and fusion of a record; timm's name stands beside a short one.

    >>> in_full({"backbone": "nano", "timm_name": "swin_tiny_patch4_window7_224", "fusion": "scale"})
    'nano (timm: swin_tiny_patch4_window7_224), fusion scale'
    """
    beside = "" if record["backbone"] == record["timm_name"] else f" (timm: {record['timm_name']})"
    return f"{record['backbone']}{beside}, fusion {record['fusion']}"
