"""Recorded results of every kind -> what figures and tables are drawn from. Needs no torch.

A file is recognised by its content: results of a run, of its ridge baseline or of `smart-iqa evaluate`; a summary over
splits; a table of `run_ablations.py`; costs of `smart-iqa complexity`; stage weights of `analyze_attention.py`;
generated weights of `smart-iqa analyze-weights`; shapes of `smart-iqa describe-network`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iqa.errors import UserError
from iqa.metrics import STATISTICS, Place, Statistic, shown_in
from iqa.results.building import TEST_PART, part_name
from iqa.results.recorded import Record, Recorded, Run, dotted

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
PLACE = {"name", "seed", "results_dir", "data_root", "data_paths", "num_workers", "device", "train_test_num"}


@dataclass(frozen=True)
class Score:
    """A value with its interval (of a run: 95 %; over seeds or splits: +- deviation) and where it is recorded.

    `n` counts images of a run, seeds or splits otherwise; `over` says which. The interval is shown with one decimal
    fewer than the value.
    """

    value: float
    low: float
    high: float
    n: int
    over: str
    sources: tuple[tuple[Path, str], ...]
    decimals: int = 4

    @property
    def text(self) -> str:
        """As in a table: `0.8091 [0.774, 0.839]`, `0.8091 ± 0.0040`, or `undefined`."""
        if not math.isfinite(self.value):
            return "undefined"
        text, fewer = f"{self.value:.{self.decimals}f}", self.decimals - 1
        if not math.isfinite(self.high - self.low):
            return text
        if self.over == "images":
            return f"{text} [{self.low:.{fewer}f}, {self.high:.{fewer}f}]"
        return f"{text} ± {self.high - self.value:.{self.decimals}f}"

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
        return [part for part in self.scores if part not in (TEST_PART, *(self.settings.get("also_train_on") or []))]

    @property
    def database(self) -> str:
        """The database it was trained on, as far as that is recorded."""
        return self.settings.get("dataset", "not recorded")

    def tested_on(self, part: str) -> str:
        """The database that a part of its scores is of."""
        return self.database if part == TEST_PART else part


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
        name = part_name(part, settings.get("dataset", ""))
        scores[name] = _scores_of_results(record, part)
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
                key = part_name(database, trained_on=names[0] if names else "")
                scores[key] = _scores_of_results(record, part)
        several = len(record.content["checkpoints"]) > 1
        settings = {"dataset": names[0] if names else "not recorded", "also_train_on": names[1:]}
        says = f"selected on {checkpoint.get('selected_on', 'not recorded')}"
        label = f"{record.name}: {name}" if several else record.name
        rows.append(Row(label, "evaluations", settings, scores, says))
    return rows


def _scores_of_results(record: Record, part: str) -> dict[str, Score]:
    """The scores of a part by statistic; a file may be older than a statistic."""
    recorded = record.field("metrics", part)
    return {key: _score_of_results(record, part, row) for key, row in STATISTICS.items() if key in recorded}


def _score_of_results(record: Record, part: str, statistic: Statistic) -> Score:
    key, low, high = statistic.key, math.nan, math.nan
    if record.field("metrics", part).get(f"{key}_ci95") is not None:
        low, high = (record.number("metrics", part, f"{key}_ci95", i) for i in range(2))
    value, n = record.number("metrics", part, key), record.finite("metrics", part, "n")
    source = (record.file, dotted(("metrics", part, key)))
    return Score(value, low, high, int(n), "images", (source,), statistic.decimals)


def _row_of_splits(record: Record) -> Row:
    scores = {part: _mean_scores(record, "splits", "summary", part) for part in record.fields("summary")}
    settings = _settings(record, "config")
    return Row(record.name, "splits", settings, scores, f"selected on {settings.get('select_on', 'not recorded')}")


def _mean_scores(record: Record, over: str, *path: str | int) -> dict[str, Score]:
    """The scores at a path by statistic, which may hold other things too."""
    recorded = record.fields(*path)
    return {key: _mean_score(record, over, row, *path, key) for key, row in STATISTICS.items() if key in recorded}


def _mean_score(record: Record, over: str, statistic: Statistic, *path: str | int) -> Score:
    mean, deviation = record.number(*path, "mean"), record.number(*path, "std")
    n = int(record.finite(*path, "n"))
    source = (record.file, dotted((*path, "mean")))
    return Score(mean, mean - deviation, mean + deviation, n, over, (source,), statistic.decimals)


def ablation_rows(table: Record) -> list[Row]:
    """The rows of one table of `run_ablations.py`."""
    rows = []
    for i in range(len(table.rows("rows"))):
        name = str(table.field("rows", i, "row"))
        scores = {
            part: _mean_scores(table, "seeds", "rows", i, "parts", part) for part in table.fields("rows", i, "parts")
        }
        settings = _settings(table, "rows", i, "config")
        selected = f"selected on {settings['select_on']}" if "select_on" in settings else "selection not recorded"
        parameters = table.number("rows", i, "parameters")
        rows.append(Row(name, table.name, settings, scores, selected, parameters))
    return rows


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
    of_rows = [row.scores["test"] for row in rows]
    brief = [each.key for each in shown_in(Place.BRIEF) if all(each.key in scores for scores in of_rows)]
    scores = {key: _pooled_score([scores[key] for scores in of_rows]) for key in brief}
    return replace(rows[0], scores={"test": scores})


def _pooled_score(scores: Sequence[Score]) -> Score:
    values = [score.value for score in scores if math.isfinite(score.value)]
    mean = statistics.mean(values) if values else math.nan
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    sources = tuple(source for score in scores for source in score.sources)
    return Score(mean, mean - deviation, mean + deviation, len(values), "seeds", sources, scores[0].decimals)
