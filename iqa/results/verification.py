"""Are the numbers in a results file those of its predictions? Reads files only; needs no torch and no images.

`results.json` -> every statistic, interval, group, comparison, count and fingerprint computed again from the rows under
`predictions`; `summary.json` -> the numbers across splits from the results of each split beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from iqa.errors import UserError
from iqa.metrics import RESAMPLES, across_splits, in_words
from iqa.results.building import TEST_PART, database_of
from iqa.results.schema import (
    COMPARISON_RESAMPLES,
    check_results,
    compare_predictions,
    digest,
    part_metrics,
    read_json,
    require_fields,
    require_kind,
)

# Fits of the logistic stop at other digits on other machines: their intervals by up to 2e-7.
TOLERANCE = 1e-6


class Difference(NamedTuple):
    """A stored value that is not the one computed again."""

    name: str
    stored: Any
    recomputed: Any


@dataclass
class Verification:
    """What came out of comparing a file with its predictions.

    Attributes:
        checked: how many values were compared.
        differences: those that differ.
        unchecked: names of stored values that cannot be computed from the file's content.
    """

    checked: int = 0
    differences: list[Difference] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def compare(self, name: str, stored: Any, recomputed: Any) -> None:
        """Compare two values of JSON, nested ones by key and place; reasons in words (`notes`) are passed over."""
        if isinstance(stored, dict) and isinstance(recomputed, dict):
            for key in stored:
                if key in recomputed and key != "notes":
                    self.compare(f"{name}.{key}", stored[key], recomputed[key])
                elif key != "notes":
                    self.unchecked.append(f"{name}.{key}")
            absent = {key: value for key, value in recomputed.items() if key not in stored and key != "notes"}
            self.differences += [Difference(f"{name}.{k}", "nothing", _in_short(v)) for k, v in absent.items()]
        elif isinstance(stored, list) and isinstance(recomputed, list) and len(stored) == len(recomputed):
            for place, pair in enumerate(zip(stored, recomputed, strict=True)):
                self.compare(f"{name}[{place}]", *pair)
        else:
            self.checked += 1
            if not _agree(stored, recomputed):
                self.differences.append(Difference(name, stored, recomputed))


def _in_short(value: Any) -> Any:
    return f"{len(value)} values" if isinstance(value, dict | list) else value


def _agree(stored: Any, recomputed: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (stored, recomputed))
    if numbers:
        return math.isclose(stored, recomputed, rel_tol=0, abs_tol=TOLERANCE)
    return stored == recomputed


def verify(path: str | Path) -> Verification:
    """Compute every number of a results file again and compare.

    Args:
        path: `results.json`, any file of that schema, `summary.json`, or the folder of a run.

    Raises:
        UserError: no such file, not of the schema, a field is malformed, or a prediction is not a number.
    """
    path = Path(path)
    if path.is_dir():
        path /= "results.json" if (path / "results.json").is_file() else "summary.json"
    content = read_json(path)
    if isinstance(content, dict) and "summary" in content and "metrics" not in content:
        return _verify_summary(content, path)
    found = Verification()
    _verify_results(found, check_results(content, path), path)
    return found


def _verify_results(found: Verification, results: dict, path: Path) -> None:
    recomputed = {}
    for part, stored in results["metrics"].items():
        try:
            recomputed[part] = _recomputed_part(results, part)
        except UserError as error:
            raise UserError(f"{path}: predictions.{part}: {error}") from error
        found.compare(f"metrics.{part}", stored, recomputed[part])
    for number, stored in enumerate(results.get("comparisons", [])):
        try:
            found.compare(f"comparisons[{number}]", stored, _recomputed_comparison(results, stored))
        except UserError as error:
            found.differences.append(Difference(f"comparisons[{number}]", "a comparison", f"none: {error}"))
    _verify_protocol(found, results, recomputed)
    _verify_databases(found, results, recomputed)
    _verify_split_file(found, results, path.parent)
    found.compare("digest", results.get("digest", "nothing"), digest(results))


def _recomputed_part(results: dict, part: str) -> dict:
    stored = results["metrics"][part]
    bootstrap = {"resamples": RESAMPLES, "seed": results["config"].get("seed", 0)} | stored.get("bootstrap", {})
    database = results.get("databases", {}).get(database_of(results, part), {})
    stored_range = database.get("stored_range", stored.get("stored_range"))
    return part_metrics(results["predictions"][part], stored_range, bootstrap["seed"], bootstrap["resamples"])


def _recomputed_comparison(results: dict, stored: dict) -> dict:
    predictions = results["predictions"]
    for key in ("part_a", "part_b"):
        if stored.get(key) not in predictions:
            raise UserError(f"it names {key} {stored.get(key)!r}, but the file has no predictions of that name")
    settings = {"resamples": COMPARISON_RESAMPLES, "seed": 0} | stored
    settings = {key: settings[key] for key in ("resamples", "seed", "ratings") if key in settings}
    compared = compare_predictions(predictions[stored["part_a"]], predictions[stored["part_b"]], **settings)
    named = {key: stored[key] for key in ("database", "a", "b", "part_a", "part_b") if key in stored}
    return named | compared | {"words": in_words(compared, stored.get("a", "a"), stored.get("b", "b"))}


def _verify_protocol(found: Verification, results: dict, recomputed: dict[str, dict]) -> None:
    """Compare the counts and fingerprints that the file repeats outside `metrics`."""
    for part, metrics in recomputed.items():
        for count in ("n", "contents"):
            said = results["protocol"].get(count)
            if isinstance(said, dict) and part in said:
                together = _parts_together(results, part)
                if together <= recomputed.keys():
                    total = sum(recomputed[each][count] for each in together)
                    found.compare(f"protocol.{count}.{part}", said[part], total)
                else:
                    found.unchecked.append(f"protocol.{count}.{part}")
        for key, value in results.get("parts", {}).get(part, {}).items():
            if key in ("n", "contents", "fingerprint"):
                found.compare(f"parts.{part}.{key}", value, metrics.get(key))


def _parts_together(results: dict, part: str) -> set[str]:
    """The parts that the protocol counts as one: the test parts of all databases trained on are its `test`."""
    trained_on = results["protocol"].get("trained_on")
    others = set(trained_on) - {results["config"].get("dataset")} if isinstance(trained_on, dict) else set()
    return {part} | others if part == TEST_PART else {part}


def _verify_databases(found: Verification, results: dict, recomputed: dict[str, dict]) -> None:
    """Compare the fingerprint of each database that was tested whole with that of its predictions."""
    for part, metrics in recomputed.items():
        name = database_of(results, part)
        database = results.get("databases", {}).get(name, {})
        if "fingerprint" in metrics and metrics["n"] == database.get("n"):
            found.compare(f"databases.{name}.fingerprint", database.get("fingerprint"), metrics["fingerprint"])


def _verify_split_file(found: Verification, results: dict, folder: Path) -> None:
    """Compare the results with the split file beside them: the images tested, and the database."""
    name = results["config"].get("dataset")
    file = next((f for f in (folder / f"split_{name}.json", folder / "split.json") if f.is_file()), None)
    split = read_json(file) if file and TEST_PART in results["metrics"] else {}
    if not split or not isinstance(split, dict) or split.get("database") != name:
        return
    require_fields(split, dict.fromkeys(("train", "val", "test"), list), str(file))
    tested, named = {row["image"] for row in results["predictions"][TEST_PART]}, set(map(str, split.get("test", [])))
    found.compare(f"images in either predictions.test or {file.name}", len(tested ^ named), 0)
    database = results.get("databases", {}).get(name, {})
    known = {"fingerprint": split.get("fingerprint")}
    if not split.get("partial", False):
        known["n"] = sum(len(split.get(part, [])) for part in ("train", "val", "test"))
    for key in known.keys() & database.keys():
        found.compare(f"databases.{name}.{key} against {file.name}", database[key], known[key])


def _verify_summary(content: dict, path: Path) -> Verification:
    found = Verification()
    splits = _split_results(path)
    require_fields(content, {"config": dict, "summary": dict}, str(path))
    for part, statistics in content["summary"].items():
        require_kind(statistics, dict, f"{path}: summary.{part}")
    config = content.get("config", {})
    asked = config.get("folds") or config.get("train_test_num")
    if asked is not None:
        found.compare("splits beside the summary", asked, len(splits))
    for file, results in splits:
        inside = Verification()
        _verify_results(inside, results, file)
        name = file.relative_to(path.parent)
        found.checked += inside.checked
        found.differences += [d._replace(name=f"{name}: {d.name}") for d in inside.differences]
        found.unchecked += [f"{name}: {each}" for each in inside.unchecked]
    of_splits = [results["metrics"] for _, results in splits]
    parts = [part for part in of_splits[0] if all(part in metrics for metrics in of_splits)]
    recomputed = {part: across_splits([metrics[part] for metrics in of_splits]) for part in parts}
    found.compare("summary", content["summary"], recomputed)
    return found


def _split_results(path: Path) -> Sequence[tuple[Path, dict]]:
    """Read the results of each split beside a summary: `split_NN/results.json`, or `split_NN.json`."""
    named = [p for p in sorted(path.parent.iterdir()) if re.fullmatch(r"split_\d+(\.json)?", p.name)]
    files = [p / "results.json" if p.is_dir() else p for p in named]
    if not files:
        raise UserError(f"{path}: no split_NN/results.json or split_NN.json beside it: nothing to verify it from")
    return [(file, check_results(read_json(file), file)) for file in files]
