"""Rows of figures and tables, from what was really recorded."""

from __future__ import annotations

import json

from helpers import ROOT

from iqa.results import measured_rows, read_recorded


def test_a_run_over_splits_is_a_row_also_where_its_summary_holds_groups():
    folder = ROOT / "benchmarks" / "results" / "agiqa3k" / "lite0_frozen"
    summary = json.loads((folder / "summary.json").read_text())["summary"]["test"]
    assert summary["groups"]
    (row,) = measured_rows(read_recorded([str(folder)]))
    score = row.scores["test"]["srcc"]
    assert (score.value, score.n, score.over) == (summary["srcc"]["mean"], summary["srcc"]["n"], "splits")
    assert "groups" not in row.scores["test"]
