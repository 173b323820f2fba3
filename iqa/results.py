"""The schema of `results.json`: written here, read here, checked here. Needs no torch.

    {config, provenance, protocol, database: {...}, metrics: {part: {n, srcc, plcc, krcc, rmse, srcc_ci95}},
     predictions: {part: [{image, mos, score}]}, timings}

A part is a split of the training database (`test`) or the name of another database.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iqa.errors import UserError

REQUIRED = ("config", "provenance", "protocol", "metrics", "predictions", "timings")
REQUIRED_METRICS = ("n", "srcc", "plcc", "krcc", "rmse", "srcc_ci95")


def prediction_rows(table: pd.DataFrame, scores: np.ndarray) -> list[dict[str, Any]]:
    """Rows image, mos, score (and content, mos_std, distortion or generator where known)."""
    columns = ["image", "mos", "mos_std", "content", "distortion", "generator"]
    kept = table[[c for c in columns if c in table]].assign(score=np.round(scores, 5))
    return [
        {k: v for k, v in row.items() if v != "" and not (isinstance(v, float) and math.isnan(v) and k == "mos_std")}
        for row in kept.to_dict("records")
    ]


def predictions_table(results: dict, part: str) -> pd.DataFrame:
    """The stored predictions of one part as a table.

    Raises:
        UserError: the results hold no such part.
    """
    if part not in results["predictions"]:
        raise UserError(f"results hold no part {part!r}; they hold {', '.join(results['predictions'])}")
    return pd.DataFrame(results["predictions"][part])


def check_results(results: Any, source: str | Path) -> dict:
    """Results that have every required field.

    Raises:
        UserError: names the first missing field.
    """
    if not isinstance(results, dict):
        raise UserError(f"{source}: expected the results of a run, got {type(results).__name__}")
    for field in REQUIRED:
        if field not in results:
            raise UserError(f"{source}: no field {field!r}: not the results of a run")
    for part, metrics in results["metrics"].items():
        for field in REQUIRED_METRICS:
            if field not in metrics:
                raise UserError(f"{source}: no field 'metrics.{part}.{field}'")
        if part not in results["predictions"]:
            raise UserError(f"{source}: no field 'predictions.{part}'")
    return results


def read_results(path: str | Path) -> dict:
    """Read and check the results of a run: its folder or its `results.json`.

    Raises:
        UserError: no such file, not JSON, or a field missing.
    """
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    try:
        return check_results(json.loads(file.read_text()), file)
    except OSError as error:
        raise UserError(f"no results at {file}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON: {error}") from error


def read_history(path: str | Path) -> list[dict]:
    """The epochs of a run: `history.jsonl`, a line each.

    Raises:
        UserError: no such file, or a line that is not JSON.
    """
    try:
        lines = Path(path).read_text().splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise UserError(f"no history at {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not a history: {error}") from error
