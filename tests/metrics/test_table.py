"""A statistic is one row: the table's own rows are consistent, and a row that is added is seen everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import command

import run_ablations
from iqa.figures import ablation_table, cross_database_table, draw_scatter, in_database_table
from iqa.metrics import STATISTICS, Place, Statistic, across_splits, shown_in
from iqa.results import (
    PublishedResults,
    groups_table,
    metrics_table,
    part_metrics,
    read_recorded,
    verify,
    write_results,
)
from train_swin import splits_table

NONE_PUBLISHED = PublishedResults({})


def concordance(scores: np.ndarray, mos: np.ndarray) -> float:
    """Lin's concordance correlation."""
    covariance = np.mean((scores - scores.mean()) * (mos - mos.mean()))
    return float(2 * covariance / (scores.var() + mos.var() + (scores.mean() - mos.mean()) ** 2))


@pytest.fixture
def added(monkeypatch) -> Statistic:
    """A new row, whose resamples all have the value 0.5."""
    row = Statistic("ccc", "CCC", 3, True, "Lin's concordance", concordance, lambda s, m, drawn: np.full(9, 0.5))
    monkeypatch.setitem(STATISTICS, "ccc", row)
    return row


def predictions(seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    mos = rng.uniform(0, 100, 60).round(4)
    scores = (mos + rng.normal(0, 15, 60)).round(4)
    return [
        {"image": f"{i}.png", "mos": m, "score": s, "content": f"{i % 12}"}
        for i, (m, s) in enumerate(zip(mos.tolist(), scores.tolist(), strict=True))
    ]


def write_run(folder: Path) -> dict:
    """A run tested on its own database and on another one; its metrics."""
    rows = {"test": predictions(0), "spaq": predictions(1)}
    metrics = {part: part_metrics(of_part, (1, 5), seed=0, resamples=20) for part, of_part in rows.items()}
    config = {"dataset": "koniq-10k", "seed": 0, "backbone": "nano", "fusion": "concat"}
    nothing: dict = {"provenance": {}, "protocol": {"selected_on": "val"}, "timings": {}}
    folder.mkdir()
    write_results(folder / "results.json", nothing | {"config": config, "metrics": metrics, "predictions": rows})
    return metrics


def write_ablation(folder: Path, results: list[dict]) -> dict:
    """A table of one row over these results, as `run_ablations` records it; the row."""
    costs = dict.fromkeys(("parameters", "macs", "cpu_latency_ms", "seconds_per_epoch", "epochs_to_best"), 1.0)
    row = {"row": "A1", "config": {}, **run_ablations._scores(results), **costs, "versus_baseline": None}
    folder.mkdir()
    (folder / "table.json").write_text(json.dumps({"name": "a", "baseline": "A1", "rows": [row]}))
    return row


def test_an_added_statistic_is_computed_of_a_part_its_groups_and_across_splits(added, tmp_path):
    metrics = write_run(tmp_path / "run")["test"]
    scores, mos = (np.array([row[key] for row in predictions(0)]) for key in ("score", "mos"))
    assert metrics["ccc"] == concordance(scores, mos) and metrics["ccc_ci95"] == [0.5, 0.5]
    assert all("ccc" in group for group in metrics["groups"]["quality_level"].values())
    condensed = across_splits([metrics, metrics])
    assert condensed["ccc"]["mean"] == metrics["ccc"]
    assert condensed["groups"]["quality_level"]["Mid"]["ccc"]["n"] == 2
    found = verify(tmp_path / "run")
    assert not found.differences and not found.unchecked


def test_an_added_statistic_is_printed(added, tmp_path):
    metrics = write_run(tmp_path / "run")
    value = f"{metrics['test']['ccc']:.3f}"
    for text in (metrics_table(metrics), splits_table({"test": across_splits([metrics["test"]])})):
        assert "CCC" in text and value in text
    level = metrics["test"]["groups"]["quality_level"]["Mid"]["ccc"]
    assert "CCC" in groups_table(metrics) and f"{level:.3f}" in groups_table(metrics)


def test_an_added_statistic_is_on_the_page_with_its_interval_meaning_and_direction(added, tmp_path):
    metrics = write_run(tmp_path / "run")
    assert command("report", tmp_path / "run") == 0
    html = (tmp_path / "run" / "report.html").read_text()
    for part in metrics.values():
        assert f'<td class="number">{part["ccc"]:.3f}<small>0.50..0.50</small></td>' in html
    assert f"<dt>CCC</dt><dd>{metrics['test']['ccc']:.2f}<small>0.50..0.50</small></dd>" in html
    assert "CCC: Lin&#39;s concordance." in html and 'title="Lin&#39;s concordance; higher is better">CCC</th>' in html
    assert f"{metrics['test']['groups']['quality_level']['Mid']['ccc']:.3f}" in html


def test_an_added_statistic_is_in_the_tables_and_figures_of_the_paper(added, tmp_path):
    metrics = write_run(tmp_path / "run")
    row = write_ablation(tmp_path / "ablation", [{"metrics": metrics}] * 2)
    recorded = read_recorded([str(tmp_path / "run"), str(tmp_path / "ablation")])
    test, spaq = (f"{metrics[part]['ccc']:.3f}" for part in ("test", "spaq"))
    assert in_database_table(recorded, NONE_PUBLISHED).cells["CCC"][0] == f"{test} [0.50, 0.50]"
    assert cross_database_table(recorded, NONE_PUBLISHED).cells["spaq CCC"][0] == f"{spaq} [0.50, 0.50]"
    assert ablation_table(recorded, NONE_PUBLISHED).cells["test CCC"][0] == f"{test} ± 0.000"
    assert run_ablations.to_table([row])["spaq CCC"][0] == f"{spaq} ± 0.000"
    assert f"CCC {test}" in draw_scatter(recorded, NONE_PUBLISHED).figure.axes[0].get_title()


def test_every_row_stands_under_its_key_and_what_is_shown_first_is_shown_everywhere():
    assert all(key == row.key for key, row in STATISTICS.items())
    assert len({row.title for row in STATISTICS.values()}) == len(STATISTICS)
    for place, next_place in zip(Place, list(Place)[1:], strict=False):
        assert {row.key for row in shown_in(place)} <= {row.key for row in shown_in(next_place)}


@pytest.mark.parametrize("row", STATISTICS.values(), ids=STATISTICS)
def test_the_direction_of_a_statistic_is_that_of_better_scores(row):
    mos = np.linspace(0, 100, 50)
    noise = np.random.default_rng(0).normal(0, 1, 50)
    needs = [{"mos_std": np.full(50, 5.0), "scale": 0.04}[need] for need in row.needs]
    close, far = (row.function(mos + size * noise, mos, *needs) for size in (1, 30))
    assert (close > far) is row.higher_is_better
