"""The schema of `results.json`: built by `iqa.results.building`, checked, written and read here. Needs no torch.

    {config, provenance, protocol, databases: {name: {...}},
     metrics: {part: {n, srcc, plcc, krcc, rmse, srcc_ci95, ..., groups, fingerprint}},
     predictions: {part: [{image, mos, score, ...}]}, timings}

A part is a split of the training database (`test`) or the name of another database. Every number under `metrics` is
computed here from the rows under `predictions`, as they are stored; `iqa.results.verification` does it again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iqa.data import Database, file_hash
from iqa.errors import UserError
from iqa.metrics import (
    QUALITY_LEVELS,
    RESAMPLES,
    STATISTICS,
    compare_dependent,
    group_summaries,
    krasula,
    quality_levels,
    summarize,
)
from iqa.system import write_json

PROTOCOLS = {
    "ours": "databases trained on by their test part, others whole",
    "paper": "as the published numbers were tested: crops and resizing of configs/koniq_paper.yaml",
    "playground": "the test images of a list made elsewhere",
}
SELECTED_ON_TEST = ", selected on test"  # ends a protocol's name where the test part chose a checkpoint
REQUIRED = ("config", "provenance", "protocol", "metrics", "predictions", "timings")
REQUIRED_METRICS = ("n", "srcc", "plcc", "krcc", "rmse", "srcc_ci95")
# Fields that a file need not have, and their kinds; null is as good as missing.
OPTIONAL: dict[str, dict[str, type]] = {
    "training": {"best_epoch": int, "parameters": int},
    "protocol": {"n": dict, "contents": dict, "notes": list},
    "provenance": {"command": str, "versions": dict, "machine": dict},
    "timings": {"training_seconds": float},
}
GROUP_COLUMNS = ("generator", "distortion")
COMPARISON_RESAMPLES = 10_000
KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
SCORE_DECIMALS = 7  # fewer would tie scores that single precision tells apart


def prediction_rows(table: pd.DataFrame, scores: np.ndarray) -> list[dict[str, Any]]:
    """Rows image, mos, score (and content, mos_std, distortion, generator, file_hash where known).

    Args:
        table: a database's table, or rows of it.
        scores: predictions (n,) in the table's order; stored with 7 decimals.

    Raises:
        UserError: a score is NaN or infinite (names the first image).
    """
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise UserError(
            f"{bad.size} of {len(scores)} scores are not finite, the first that of {table['image'].iloc[bad[0]]}: "
            "the network has diverged, or its checkpoint is damaged"
        )
    columns = ["image", "mos", "mos_std", "content", *GROUP_COLUMNS]
    kept = table[[c for c in columns if c in table]].assign(score=np.round(scores, SCORE_DECIMALS))
    if "file_hash" in table:
        kept["file_hash"] = [row.file_hash or file_hash(Path(row.path)) for row in table.itertuples()]
    return [
        {k: v for k, v in row.items() if v != "" and not (isinstance(v, float) and math.isnan(v) and k == "mos_std")}
        for row in kept.to_dict("records")
    ]


def part_metrics(rows: Sequence[dict], stored_range: Sequence[float] | None, seed: int, resamples: int = RESAMPLES):
    """Compute everything that a results file says about one part from its stored predictions.

    Args:
        rows: as `prediction_rows` makes them.
        stored_range: lowest and highest score as the database stores it; None leaves errors on its own scale out.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        JSON-safe: what `iqa.metrics.summarize` gives, and `groups` (generator, distortion, quality_level ->
        group -> statistics), `stored_range`, `bootstrap` (its resamples and seed), and `fingerprint` of the list
        of images where their hashes are known.

    Raises:
        UserError: a score or mos is not a finite number, or only some images have a content.
    """
    table = pd.DataFrame(rows, columns=None if rows else ["image", "mos", "score"])
    mos_std = table["mos_std"].to_numpy() if "mos_std" in table and table["mos_std"].notna().all() else None
    scores, mos = table["score"].to_numpy(), table["mos"].to_numpy()
    metrics = summarize(
        scores,
        mos,
        contents=table.get("content"),
        mos_std=mos_std,
        scale=None if stored_range is None else (stored_range[1] - stored_range[0]) / 100,
        resamples=resamples,
        seed=seed,
    )
    metrics["groups"] = {
        kind: group_summaries(scores[order], mos[order], names[order]) for kind, names, order in _groupings(table)
    }
    metrics["bootstrap"] = {"resamples": resamples, "seed": seed}
    if stored_range is not None:
        metrics["stored_range"] = list(stored_range)
    if "file_hash" in table:
        metrics["fingerprint"] = list_fingerprint(table)
    return metrics


def _groupings(table: pd.DataFrame) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Kind, name of each row's group, and an order of the rows that puts the groups in order.

    A column with one name for all is left out: its only group is the part itself.
    """
    found = []
    for kind in GROUP_COLUMNS:
        names = table[kind].fillna("unknown").to_numpy(dtype=object) if kind in table else np.empty(0, dtype=object)
        if len(set(names)) > 1:
            found.append((kind, names, np.argsort(names, kind="stable")))
    levels = quality_levels(table["mos"])
    order = np.argsort([QUALITY_LEVELS.index(level) for level in levels], kind="stable")
    return [*found, ("quality_level", np.array(levels, dtype=object), order)]


def list_fingerprint(table: pd.DataFrame) -> str:
    """SHA-256 over names, mos and bytes of a list of images, in any order.

    Args:
        table: image, mos, file_hash.

    Returns:
        For a whole database what `Database.fingerprint` gives.
    """
    in_order = table.sort_values("image")
    return Database("", Path(), in_order, stored_range=(0, 100), lower_is_better=False).fingerprint()


def compare_predictions(
    rows_a: Sequence[dict],
    rows_b: Sequence[dict],
    seed: int,
    resamples: int = COMPARISON_RESAMPLES,
    ratings: int | None = None,
) -> dict:
    """Compare two sets of stored predictions of the same images; see `iqa.metrics.compare_dependent`.

    Args:
        rows_a: as `prediction_rows` makes them.
        rows_b: the same images in the same order.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        ratings: how many ratings each mos averages; given it, `iqa.metrics.krasula` looks at both too.

    Returns:
        Its dictionary, with `n`, the `resamples` and `seed` of the bootstrap, and given `ratings` those and
        `krasula`, of `a` and of `b`.

    Raises:
        UserError: other images, in another order or with other labels; `ratings` where a mos has no deviation.
    """
    labels_a, labels_b = ([(row["image"], row["mos"]) for row in rows] for rows in (rows_a, rows_b))
    if labels_a != labels_b:
        raise UserError("the two sets of predictions are of other images or labels: they cannot be compared")
    contents = [row["content"] for row in rows_a] if all("content" in row for row in rows_a) else None
    scores_a, scores_b = ([row["score"] for row in rows] for rows in (rows_a, rows_b))
    mos = [row["mos"] for row in rows_a]
    compared = compare_dependent(scores_a, scores_b, mos, contents, resamples=resamples, seed=seed)
    compared = {"n": len(mos), **compared, "resamples": resamples, "seed": seed}
    if ratings is not None:
        deviations = [row.get("mos_std", math.nan) for row in rows_a]
        of_runs = {"a": scores_a, "b": scores_b}
        found = {run: krasula(scores, mos, deviations, ratings) for run, scores in of_runs.items()}
        compared |= {"ratings": ratings, "krasula": found}
    return compared


def predictions_table(results: dict, part: str) -> pd.DataFrame:
    """The stored predictions of one part as a table.

    Raises:
        UserError: the results hold no such part.
    """
    if part not in results["predictions"]:
        raise UserError(f"results hold no part {part!r}; they hold {', '.join(results['predictions'])}")
    return pd.DataFrame(results["predictions"][part])


def paired_scores(ours: dict, theirs: dict, part: str) -> tuple[list, list, list, list]:
    """Both models' scores, mos and contents of the images of one part, as `iqa.metrics.compare_over_splits` takes them.

    Raises:
        UserError: they hold no such part, or other images in it.
    """
    mine, other = (predictions_table(results, part).set_index("image") for results in (ours, theirs))
    if set(mine.index) != set(other.index):
        raise UserError(f"{part}: the two were tested on different images; both need the same split")
    contents = mine["content"] if "content" in mine else mine.index.to_series()
    return list(mine["score"]), list(other["score"][mine.index]), list(mine["mos"]), list(contents)


def digest(results: dict) -> str:
    """SHA-256 over a results file without its digest; the order of keys does not matter."""
    content = {key: value for key, value in results.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_results(path: str | Path, results: dict) -> None:
    """Check results and write them with their digest, which shows any later change.

    Raises:
        UserError: a required field is missing.
    """
    path = Path(path)
    check_results(results, path)
    write_json(path, results)
    stored = json.loads(path.read_text())  # what JSON made of it is what a reader will digest
    write_json(path, stored | {"digest": digest(stored)})


def check_results(results: Any, source: str | Path) -> dict:
    """Check that results have every required field and that each field is of its kind; return them.

    Raises:
        UserError: names the first field that is missing or malformed.
    """
    if not isinstance(results, dict):
        raise UserError(f"{source}: expected the results of a run, got {type(results).__name__}")
    for field in REQUIRED:
        if field not in results:
            raise UserError(f"{source}: no field {field!r}: not the results of a run")
        require_kind(results[field], dict, f"{source}: field {field!r}")
    require_fields(results["config"], {"seed": int, "dataset": str}, f"{source}: config")
    for part, metrics in results["metrics"].items():
        for field in REQUIRED_METRICS:
            if not isinstance(metrics, dict) or field not in metrics:
                raise UserError(f"{source}: no field 'metrics.{part}.{field}'")
        _check_metrics(metrics, f"{source}: metrics.{part}")
        if part not in results["predictions"]:
            raise UserError(f"{source}: no field 'predictions.{part}'")
        _check_rows(results["predictions"][part], f"{source}: predictions.{part}")
    _check_optional(results, source)
    return results


def require_kind(value: Any, kind: type, where: str) -> Any:
    """Return a JSON value if it is of its kind, one of `KINDS`; a whole number is at least 0, a number may be whole.

    Raises:
        UserError: it is of another.
    """
    fits = _is_number(value) if kind is float else isinstance(value, kind) and not isinstance(value, bool)
    if not fits or (kind is int and value < 0):
        raise UserError(f"{where}: expected {KINDS[kind]}, got {json.dumps(value)[:60]}")
    return value


def require_fields(fields: Any, kinds: dict[str, type], where: str) -> None:
    """Check the kinds of the fields that an object has; fields may be missing.

    Raises:
        UserError: it is not an object, or one of the fields is of another kind.
    """
    for field, kind in kinds.items():
        if field in require_kind(fields, dict, where):
            require_kind(fields[field], kind, f"{where}.{field}")


def require_optional(fields: dict, kinds: dict[str, type], where: str) -> None:
    """Like `require_fields`, but null is as good as missing."""
    require_fields(fields, {field: kind for field, kind in kinds.items() if fields.get(field) is not None}, where)


def _check_optional(results: dict, source: str | Path) -> None:
    for field, kinds in OPTIONAL.items():
        if results.get(field) is not None:
            require_optional(require_kind(results[field], dict, f"{source}: {field}"), kinds, f"{source}: {field}")
    for name, database in require_kind(results.get("databases", {}), dict, f"{source}: databases").items():
        where = f"{source}: databases.{name}"
        require_optional(require_kind(database, dict, where), {"notes": list, "left_out": list}, where)
    for field, kinds in (("databases", {}), ("parts", {"database": str})):
        for name, entry in require_kind(results.get(field, {}), dict, f"{source}: {field}").items():
            require_fields(require_kind(entry, dict, f"{source}: {field}.{name}"), kinds, f"{source}: {field}.{name}")
            _check_range(entry, f"{source}: {field}.{name}")
    texts = dict.fromkeys(("database", "a", "b", "part_a", "part_b"), str)
    for number, entry in enumerate(require_kind(results.get("comparisons", []), list, f"{source}: comparisons")):
        where = f"{source}: comparisons[{number}]"
        require_fields(entry, texts | {"resamples": int, "seed": int, "ratings": int}, where)


def _check_metrics(metrics: dict, where: str) -> None:
    require_fields(metrics, {"bootstrap": dict, "groups": dict}, where)
    require_fields(metrics.get("bootstrap", {}), {"resamples": int, "seed": int}, f"{where}.bootstrap")
    require_optional(metrics, {"notes": list}, where)
    _check_range(metrics, where)
    _check_statistics(metrics, where)
    for field, ends in metrics.items():
        if field.endswith("_ci95") and ends is not None:
            _check_interval(ends, f"{where}.{field}")
    for kind, groups in metrics.get("groups", {}).items():
        for group, statistics in require_kind(groups, dict, f"{where}.groups.{kind}").items():
            _check_statistics(statistics, f"{where}.groups.{kind}.{group}")


def _check_statistics(statistics: Any, where: str) -> None:
    for name in STATISTICS:
        if not _is_number(require_kind(statistics, dict, where).get(name, 0)) and statistics[name] is not None:
            raise UserError(f"{where}.{name}: expected a number, got {json.dumps(statistics[name])[:60]}")


def _check_interval(ends: Any, where: str) -> None:
    if not (isinstance(ends, list) and len(ends) == 2 and all(end is None or _is_number(end) for end in ends)):
        raise UserError(f"{where}: expected two numbers or null, got {json.dumps(ends)[:60]}")


def _check_range(entry: dict, where: str) -> None:
    stored_range = entry.get("stored_range", [0, 1])
    numbers = isinstance(stored_range, list) and [value for value in stored_range if _is_number(value)]
    if not numbers or len(numbers) != 2 or numbers != stored_range or not numbers[0] < numbers[1] < math.inf:
        raise UserError(f"{where}.stored_range: expected [lowest, highest], got {json.dumps(stored_range)[:60]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_rows(rows: Any, where: str) -> None:
    if not isinstance(rows, list):
        raise UserError(f"{where}: expected a list of rows, got {type(rows).__name__}")
    texts = dict.fromkeys(("image", "file_hash", *GROUP_COLUMNS), str)
    for number, row in enumerate(rows):
        for field in ("image", "mos", "score"):
            if not isinstance(row, dict) or field not in row:
                raise UserError(f"{where}[{number}]: no field {field!r}")
            if field != "image" and not (_is_number(row[field]) and math.isfinite(row[field])):
                raise UserError(f"{where}[{number}].{field}: expected a number, got {json.dumps(row[field])[:60]}")
        require_fields(row, texts, f"{where}[{number}]")
        if isinstance(row.get("content"), dict | list):
            raise UserError(f"{where}[{number}].content: expected a name, got {json.dumps(row['content'])[:60]}")


def read_results(path: str | Path) -> dict:
    """Read and check results, whichever command wrote them: a run's folder, or a file. Optional nulls are left out.

    Raises:
        UserError: no such file, not JSON, or a field missing or malformed.
    """
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    results = check_results(read_json(file), file)
    for field, kinds in OPTIONAL.items():
        for inner in kinds:
            if inner in (results.get(field) or {}) and results[field][inner] is None:
                del results[field][inner]
    return {field: value for field, value in results.items() if value is not None}


def read_json(file: Path) -> Any:
    """The content of a JSON file of results.

    Raises:
        UserError: no such file, or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"no results at {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a history: {error}") from error
