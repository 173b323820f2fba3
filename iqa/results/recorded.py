"""Recorded results of every kind, recognised by their content: files and folders -> `Recorded`. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iqa.errors import UserError
from iqa.results.building import TEST_PART
from iqa.results.history import read_epochs
from iqa.results.schema import check_results, read_json, read_results

# A field that only this kind of file has at its top.
SIGNS = {
    "metrics": "results",
    "predictions": "results",
    "summary": "splits",
    "rows": "ablation",
    "variants": "complexity",
    "trends": "attention",
    "levels": "attention",
    "explained_variance": "weights",
    "models": "weights",
    "networks": "network",
    # Written beside results; nothing is drawn from them.
    "figures": "no result",
    "fingerprint": "no result",
    "finding": "no result",
}
ANALYSES = ("attention", "weights")
EXPECTED = "results.json, summary.json, table.json, complexity.json, attention_analysis.json, target_weights.json"


@dataclass(frozen=True)
class Record:
    """The JSON of one file; a field that is missing is an error that names file and field."""

    name: str
    file: Path
    content: dict

    def field(self, *path: str | int) -> Any:
        """The value at a path of keys and positions.

        Raises:
            UserError: no such field.
        """
        value = self.content
        for depth, key in enumerate(path):
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise UserError(f"{self.file}: no field {dotted(path[: depth + 1])!r}") from None
        return value

    def number(self, *path: str | int) -> float:
        """The number at a path; null, which JSON has for NaN, is NaN.

        Raises:
            UserError: no such field, or neither a number nor null.
        """
        value = self.field(*path)
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.file}: field {dotted(path)!r} is {value!r}, expected a number")
        return float(value)

    def finite(self, *path: str | int) -> float:
        """The number at a path, where null is not allowed.

        Raises:
            UserError: no such field, or not a finite number.
        """
        number = self.number(*path)
        if not math.isfinite(number):
            raise UserError(f"{self.file}: field {dotted(path)!r} is {self.field(*path)!r}, expected a number")
        return number

    def rows(self, *path: str | int) -> list:
        """The list at a path.

        Raises:
            UserError: no such field, not a list, or an empty one.
        """
        return self._filled(list, "a list", path)

    def fields(self, *path: str | int) -> dict:
        """The object at a path.

        Raises:
            UserError: no such field, not an object, or an empty one.
        """
        return self._filled(dict, "an object", path)

    def _filled(self, kind: type, name: str, path: Sequence[str | int]) -> Any:
        value = self.field(*path)
        if not isinstance(value, kind):
            raise UserError(f"{self.file}: field {dotted(path)!r} is {value!r}, expected {name}")
        if not value:
            raise UserError(f"{self.file}: field {dotted(path)!r} holds nothing")
        return value

    def optional(self, *path: str | int) -> dict:
        """The object at a path; empty if the last field is missing, as in older files, or is null or empty.

        Raises:
            UserError: something else is there.
        """
        around = self.field(*path[:-1])
        return self.fields(*path) if isinstance(around, dict) and around.get(path[-1]) not in (None, {}) else {}


@dataclass(frozen=True)
class Run(Record):
    """Recorded results of a run or of `smart-iqa evaluate`, and for a run its history and ridge baseline."""

    history: list[dict] = field(default_factory=list)
    baseline: Record | None = None

    @property
    def history_file(self) -> Path:
        """Where the epochs are recorded."""
        return self.file.parent / "history.jsonl"


@dataclass(frozen=True)
class Recorded:
    """Everything that was given, by kind; `left_out` are the JSON files in given folders that are of no known kind."""

    runs: list[Run]
    evaluations: list[Run]
    splits: list[Record]
    ablations: list[Record]
    complexity: list[Record]
    attention: list[Record]
    weights: list[Record]
    networks: list[Record]
    left_out: list[Path]


def dotted(path: Sequence[str | int]) -> str:
    """`("rows", 0, "row")` -> `rows.0.row`."""
    return ".".join(map(str, path))


def read_recorded(paths: Sequence[str]) -> Recorded:
    """Read everything that files and folders hold.

    Raises:
        UserError: nothing there, not JSON, an unknown kind of file, a missing field, or two of the same name.
    """
    found: dict[Path, tuple[str, dict]] = {}
    left_out: list[Path] = []
    for path in paths:
        for file, kind, content in _recorded_in(Path(path)):
            if kind == "unknown":
                left_out.append(file)
            elif file.resolve() not in {known.resolve() for known in found}:
                found[file] = kind, content
    by_kind: dict[str, list[Record]] = {}
    for file, (kind, content) in found.items():
        by_kind.setdefault(kind, []).append(_named(file, kind, content))
    results = by_kind.get("results", [])
    recorded = Recorded(
        runs=[_whole_run(record) for record in results if _role(record) == "run"],
        evaluations=[Run(r.name, r.file, r.content) for r in results if _role(r) == "evaluation"],
        splits=by_kind.get("splits", []),
        ablations=by_kind.get("ablation", []),
        complexity=by_kind.get("complexity", []),
        attention=by_kind.get("attention", []),
        weights=by_kind.get("weights", []),
        networks=by_kind.get("network", []),
        left_out=left_out,
    )
    _check_names([*recorded.runs, *recorded.splits, *recorded.evaluations])
    for records in (recorded.ablations, recorded.complexity, recorded.attention, recorded.weights):
        _check_names(records)
    return recorded


def _recorded_in(path: Path) -> list[tuple[Path, str, dict]]:
    """File, kind and content of everything in a file or folder.

    The folder of a run also gives the analyses in its sub-folders. A folder that holds nothing itself stands for
    its sub-folders.
    """
    if not path.is_dir():
        content = read_json(path)
        kind = _kind(path, content)
        if kind in ("unknown", "no result"):
            raise UserError(f"{path}: none of the kinds of file that figures are drawn from ({EXPECTED})")
        return [(path, kind, content)]
    here = list(_json_files(path))
    kinds = {kind for _, kind, _ in here} - {"unknown", "no result"}
    if "splits" in kinds:
        here = [found for found in here if found[1] != "results"]  # they are the splits that the summary sums up
    if "results" in kinds:
        deeper = [found for folder in sorted(path.iterdir()) if folder.is_dir() for found in _json_files(folder)]
        here += [found for found in deeper if found[1] in ANALYSES]
    if not kinds:
        here = [found for folder in sorted(path.iterdir()) if folder.is_dir() for found in _below(folder)]
    if not any(kind not in ("unknown", "no result") for _, kind, _ in here):
        raise UserError(f"{path}: no recorded results in this folder ({EXPECTED})")
    return [found for found in here if found[1] != "no result"]


def _below(folder: Path) -> list[tuple[Path, str, dict]]:
    return _recorded_in(folder) if any(folder.rglob("*.json")) else []


def _json_files(folder: Path) -> Iterator[tuple[Path, str, dict]]:
    for file in sorted(folder.glob("*.json")):
        content = read_json(file)
        yield file, _kind(file, content), content


def _kind(file: Path, content: Any) -> str:
    if isinstance(content, dict):
        for sign, kind in SIGNS.items():
            if sign in content:
                return kind
    return "results" if file.name == "results.json" else "unknown"


def _role(record: Record) -> str:
    """`baseline` if the results say their model, `run` if they have a part `test`, else `evaluation`."""
    if "model" in record.fields("protocol"):
        return "baseline"
    return "run" if TEST_PART in record.fields("metrics") else "evaluation"


def _named(file: Path, kind: str, content: dict) -> Record:
    """A record with the name that figures show."""
    if kind == "results":
        check_results(content, file)
        evaluation = file.name != "results.json"
        return Record(f"{file.parent.name} ({file.stem})" if evaluation else file.parent.name, file, content)
    name = file.parent.name
    if kind == "ablation":
        name = str(content.get("name", name))
    elif kind in ANALYSES:
        model = str(content.get("run") or content.get("model") or "")
        name = f"{Path(model).name} on {content.get('dataset', 'not recorded')}".removeprefix(" ")
    return Record(name, file, content)


def _whole_run(record: Record) -> Run:
    history_file, baseline_file = record.file.parent / "history.jsonl", record.file.parent / "ridge_baseline.json"
    history = read_epochs(history_file)
    baseline = None
    if baseline_file.is_file():
        baseline = Record(f"{record.name}: ridge", baseline_file, read_results(baseline_file))
    return Run(record.name, record.file, record.content, history, baseline)


def _check_names(records: Sequence[Record]) -> None:
    first: dict[str, Record] = {}
    for record in records:
        if (other := first.setdefault(record.name, record)) is not record:
            raise UserError(
                f"two of the results are named {record.name!r}, {other.file} and {record.file}: figures could not "
                "tell them apart; rename a folder or give one of them"
            )
