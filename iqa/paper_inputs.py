"""Recorded results of every kind -> what figures and tables are drawn from. Needs no torch.

A file is recognised by its content: results of a run, of its ridge baseline or of `evaluate.py`; a summary over
splits; a table of `run_ablations.py`; costs of `complexity.py`; stage weights of `analyze_attention.py`; generated
weights of `analyze_weights.py`; shapes of `describe_network.py`.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iqa.errors import UserError
from iqa.history import read_epochs
from iqa.results import check_results

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
    # Written beside results, and nothing to draw from.
    "figures": "no result",
    "fingerprint": "no result",
    "finding": "no result",
}
ANALYSES = ("attention", "weights")
EXPECTED = "results.json, summary.json, table.json, complexity.json, attention_analysis.json, target_weights.json"
# Settings that figures are sorted and named by, and their kinds.
USED_SETTINGS = {
    "dataset": str,
    "also_train_on": list,
    "backbone": str,
    "fusion": str,
    "loss_type": str,
    "select_on": str,
    "lr": int | float,
    "ranking_loss_alpha": int | float,
}
# Settings that say where and as what a run was made, not what was trained.
PLACE = {"name", "seed", "results_dir", "data_root", "num_workers", "device", "train_test_num"}


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
        """The number at a path, which null is none of.

        Raises:
            UserError: no such field, or no finite number.
        """
        number = self.number(*path)
        if not math.isfinite(number):
            raise UserError(f"{self.file}: field {dotted(path)!r} is {self.field(*path)!r}, expected a number")
        return number

    def rows(self, *path: str | int) -> list:
        """The list at a path.

        Raises:
            UserError: no such field, or no list, or an empty one.
        """
        return self._filled(list, "a list", path)

    def fields(self, *path: str | int) -> dict:
        """The object at a path.

        Raises:
            UserError: no such field, or no object, or an empty one.
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
        """The object at a path whose last field older files lack; empty where it is missing, null or empty.

        Raises:
            UserError: something else is there.
        """
        around = self.field(*path[:-1])
        return self.fields(*path) if isinstance(around, dict) and around.get(path[-1]) not in (None, {}) else {}


@dataclass(frozen=True)
class Run(Record):
    """Recorded results of a run or of `evaluate.py`, and for a run its history and ridge baseline."""

    history: list[dict] = field(default_factory=list)
    baseline: Record | None = None

    @property
    def history_file(self) -> Path:
        """Where the epochs are recorded."""
        return self.file.parent / "history.jsonl"


@dataclass(frozen=True)
class Recorded:
    """Everything that was given, by kind; `left_out` are JSON files in given folders that no kind fits."""

    runs: list[Run]
    evaluations: list[Run]
    splits: list[Record]
    ablations: list[Record]
    complexity: list[Record]
    attention: list[Record]
    weights: list[Record]
    networks: list[Record]
    left_out: list[Path]


@dataclass(frozen=True)
class Score:
    """A value with its interval (of a run: 95 %; over seeds or splits: +- deviation) and where it is recorded.

    `n` counts images of a run, seeds or splits otherwise; `over` says which.
    """

    value: float
    low: float
    high: float
    n: int
    over: str
    sources: tuple[tuple[Path, str], ...]

    @property
    def text(self) -> str:
        """As in a table: `0.8091 [0.774, 0.839]`, `0.8091 ± 0.0040`, or `undefined`."""
        if not math.isfinite(self.value):
            return "undefined"
        if not math.isfinite(self.high - self.low):
            return f"{self.value:.4f}"
        if self.over == "images":
            return f"{self.value:.4f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.4f} ± {self.high - self.value:.4f}"

    @property
    def as_values(self) -> dict:
        """As in the manifest."""
        value = {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "n_of": self.over}
        return value | {"recorded": [{"file": str(file), "field": name} for file, name in self.sources]}


@dataclass(frozen=True)
class Row:
    """One thing that was measured: a run, a baseline, a run over splits, or a row of an ablation table.

    `scores` holds scores by part and statistic. The part of the training database is called `test`.
    """

    name: str
    experiment: str
    settings: dict
    scores: dict[str, dict[str, Score]]
    protocol: str
    parameters: float = math.nan

    @property
    def label(self) -> str:
        """Its name where rows of several experiments stand together."""
        own = self.experiment in ("runs", "baselines", "evaluations", "splits")
        return self.name if own else f"{self.experiment}: {self.name}"

    @property
    def others(self) -> list[str]:
        """The databases it was tested on and not trained on."""
        return [part for part in self.scores if part not in ("test", *(self.settings.get("also_train_on") or []))]

    @property
    def database(self) -> str:
        """The database it was trained on, as far as that is recorded."""
        return self.settings.get("dataset", "not recorded")


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
    """File, kind and content of all that a file or folder holds.

    The folder of a run also gives the analyses in its sub-folders. A folder that holds nothing itself stands for
    its sub-folders.
    """
    if not path.is_dir():
        content = _load(path)
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
        content = _load(file)
        yield file, _kind(file, content), content


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error


def _kind(file: Path, content: Any) -> str:
    if isinstance(content, dict):
        for sign, kind in SIGNS.items():
            if sign in content:
                return kind
    return "results" if file.name == "results.json" else "unknown"


def _role(record: Record) -> str:
    """Whose results: a baseline's (it says its model), a run's (it has a part `test`) or an evaluation's."""
    if "model" in record.fields("protocol"):
        return "baseline"
    return "run" if "test" in record.fields("metrics") else "evaluation"


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
        content = check_results(_load(baseline_file), baseline_file)
        baseline = Record(f"{record.name}: ridge", baseline_file, content)
    return Run(record.name, record.file, record.content, history, baseline)


def _check_names(records: Sequence[Record]) -> None:
    first: dict[str, Record] = {}
    for record in records:
        if (other := first.setdefault(record.name, record)) is not record:
            raise UserError(
                f"two of the results are named {record.name!r}, {other.file} and {record.file}: figures could not "
                "tell them apart; rename a folder or give one of them"
            )


def measured_rows(recorded: Recorded) -> list[Row]:
    """Every row with scores: runs, their baselines, evaluations, runs over splits, and rows of ablations."""
    rows = []
    for run in recorded.runs:
        rows.append(_row_of_results(run, "runs"))
        if run.baseline is not None:
            rows.append(_row_of_results(run.baseline, "baselines"))
    rows += [row for run in recorded.evaluations for row in _rows_of_evaluation(run)]
    rows += [_row_of_splits(record) for record in recorded.splits]
    return rows + [row for table in recorded.ablations for row in ablation_rows(table)]


def _row_of_results(record: Record, experiment: str) -> Row:
    settings = _settings(record, "config")
    scores: dict[str, dict[str, Score]] = {}
    for part in record.field("metrics"):
        name = "test" if part == settings.get("dataset") else part
        scores[name] = {key: _score_of_results(record, part, key) for key in ("srcc", "plcc", "krcc", "rmse")}
    protocol = record.fields("protocol")
    if experiment == "baselines":
        says = str(protocol["model"])
    else:
        split = [f"split {protocol['split']}"] if protocol.get("split") else []
        says = ", ".join([*split, f"selected on {protocol.get('selected_on', 'not recorded')}"])
    parameters = record.number("training", "parameters") if "parameters" in record.optional("training") else math.nan
    return Row(record.name, experiment, settings, scores, says, parameters)


def _settings(record: Record, *path: str | int) -> dict:
    """The settings at a path, empty where there are none; those that figures use are of their kind, or left out."""
    settings = record.optional(*path)
    for key, kind in USED_SETTINGS.items():
        if settings.get(key) is not None and not isinstance(settings[key], kind):
            where = dotted((*path, key))
            raise UserError(f"{record.file}: field {where!r} is {settings[key]!r}, which is no such setting")
    return {key: value for key, value in settings.items() if value is not None or key not in USED_SETTINGS}


def _rows_of_evaluation(record: Run) -> list[Row]:
    """A row for each checkpoint that was tested; the database it was trained on is its part `test`."""
    if "parts" not in record.content:
        return [_row_of_results(record, "evaluations")]
    rows = []
    for name in record.fields("checkpoints"):
        checkpoint = record.fields("checkpoints", name)
        trained_on = checkpoint.get("trained_on") or []
        names = [trained_on] if isinstance(trained_on, str) else list(trained_on)
        scores = {}
        for part in record.fields("parts"):
            if record.fields("parts", part).get("checkpoint") == name:
                database = record.field("parts", part, "database")
                key = "test" if database in names[:1] else database
                scores[key] = {k: _score_of_results(record, part, k) for k in ("srcc", "plcc", "krcc", "rmse")}
        several = len(record.content["checkpoints"]) > 1
        settings = {"dataset": names[0] if names else "not recorded", "also_train_on": names[1:]}
        says = f"selected on {checkpoint.get('selected_on', 'not recorded')}"
        label = f"{record.name}: {name}" if several else record.name
        rows.append(Row(label, "evaluations", settings, scores, says))
    return rows


def _score_of_results(record: Record, part: str, key: str) -> Score:
    low = high = math.nan
    interval = record.field("metrics", part).get(f"{key}_ci95")
    if interval is not None:
        low, high = (record.number("metrics", part, f"{key}_ci95", i) for i in range(2))
    value, n = record.number("metrics", part, key), record.finite("metrics", part, "n")
    return Score(value, low, high, int(n), "images", ((record.file, dotted(("metrics", part, key))),))


def _row_of_splits(record: Record) -> Row:
    scores = {
        part: {key: _mean_score(record, "splits", "summary", part, key) for key in record.fields("summary", part)}
        for part in record.fields("summary")
    }
    settings = _settings(record, "config")
    return Row(record.name, "splits", settings, scores, f"selected on {settings.get('select_on', 'not recorded')}")


def _mean_score(record: Record, over: str, *path: str | int) -> Score:
    mean, deviation = record.number(*path, "mean"), record.number(*path, "std")
    n = int(record.finite(*path, "n"))
    source = (record.file, dotted((*path, "mean")))
    return Score(mean, mean - deviation, mean + deviation, n, over, (source,))


def ablation_rows(table: Record) -> list[Row]:
    """The rows of one table of `run_ablations.py`."""
    rows = []
    for i in range(len(table.rows("rows"))):
        name = str(table.field("rows", i, "row"))
        scores = {
            part: {key: _mean_score(table, "seeds", "rows", i, "parts", part, key) for key in ("srcc", "plcc")}
            for part in table.fields("rows", i, "parts")
        }
        settings = _settings(table, "rows", i, "config") or _settings_in_name(name)
        selected = f"selected on {settings['select_on']}" if "select_on" in settings else "selection not recorded"
        parameters = table.number("rows", i, "parameters")
        rows.append(Row(name, table.name, settings, scores, selected, parameters))
    return rows


def _settings_in_name(name: str) -> dict:
    """What a row's name says where its table does not record settings, as in `configs/ablations/`."""
    if match := re.fullmatch(r"(alpha|lr)_([0-9.]+(?:e-?\d+)?)", name):
        return {{"alpha": "ranking_loss_alpha", "lr": "lr"}[match[1]]: float(match[2])}
    if name in ("l1", "l2", "plcc", "rank", "fidelity"):
        return {"loss_type": name}
    return {"backbone": name} if name in ("nano", "tiny", "small", "base") else {}


@dataclass(frozen=True)
class Sweep:
    """Rows that differ in one setting alone: their rows by its value, seeds put together."""

    name: str
    rows: dict[Any, Row]


def sweeps(rows: Sequence[Row], setting: str) -> list[Sweep]:
    """Groups of at least two values of a setting, all else equal: those of ablation tables, else those of runs."""
    groups: dict[tuple[str, str], dict[Any, list[Row]]] = {}
    for row in rows:
        if row.experiment in ("baselines", "evaluations") or setting not in row.settings or "test" not in row.scores:
            continue
        experiment = "runs" if row.experiment == "splits" else row.experiment
        rest = {key: value for key, value in row.settings.items() if key not in PLACE | {setting}}
        group = groups.setdefault((experiment, json.dumps(rest, sort_keys=True, default=str)), {})
        group.setdefault(row.settings[setting], []).append(row)
    several = [(name, group) for (name, _), group in groups.items() if len(group) > 1]
    tables = [(name, group) for name, group in several if name != "runs"]
    return [Sweep(name, {value: _pooled(same) for value, same in group.items()}) for name, group in tables or several]


def _pooled(rows: Sequence[Row]) -> Row:
    """Rows of the same settings as one: mean and deviation over seeds."""
    if len(rows) == 1:
        return rows[0]
    scores = {key: _pooled_score([row.scores["test"][key] for row in rows]) for key in ("srcc", "plcc")}
    return replace(rows[0], scores={"test": scores})


def _pooled_score(scores: Sequence[Score]) -> Score:
    values = [score.value for score in scores if math.isfinite(score.value)]
    mean = statistics.mean(values) if values else math.nan
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    sources = tuple(source for score in scores for source in score.sources)
    return Score(mean, mean - deviation, mean + deviation, len(values), "seeds", sources)
