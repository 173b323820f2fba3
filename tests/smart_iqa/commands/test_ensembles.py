"""Runs of several networks, and the baselines that a run has to beat, as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL, command, long

from iqa.results import read_results

POOLED = "--fusion vector --content_vector pooled --freeze_backbone --head residual".split()


def train(image_folder: Path, results: Path, *more: object) -> int:
    table = image_folder / "table.csv"
    return command("train", "--dataset", "csv", "--data_path", table, *SMALL, "--results_dir", results, *more)


@pytest.fixture(scope="module")
def ensemble(image_folder, tmp_path_factory) -> Path:
    """A finished run of three networks over two splits."""
    results = tmp_path_factory.mktemp("results")
    several = ["--ensemble", 3, "--train_test_num", 2, "--keep_last", "--epochs", 1]
    assert train(image_folder, results, "--name", "run", *several, *POOLED) == 0
    return results / "run"


def scores(results: dict) -> np.ndarray:
    return np.array([row["score"] for row in results["predictions"]["test"]])


def test_the_scores_of_an_ensemble_are_the_mean_of_its_networks(ensemble, image_folder):
    from smart_iqa import load_model

    run = ensemble / "split_00"
    results = read_results(run)
    files = [image_folder / row["image"] for row in results["predictions"]["test"]]
    alone = [load_model(run / f"network_{i:02d}", device="cpu").score(files) for i in range(3)]
    assert np.std([a[0] for a in alone]) > 0
    assert scores(results) == pytest.approx(np.mean(alone, axis=0), abs=0.05)
    assert load_model(run, device="cpu").score(files) == pytest.approx(scores(results).clip(0, 100), abs=0.05)


def test_results_of_an_ensemble_say_what_each_network_would_reach_alone(ensemble):
    networks = read_results(ensemble / "split_00")["training"]["networks"]
    assert [network["seed"] for network in networks] == [0, 1000, 2000]
    assert all({"best_epoch", "best_srcc", "test"} <= network.keys() for network in networks)
    assert all({"srcc", "plcc"} == network["test"].keys() for network in networks)


def test_the_networks_of_an_ensemble_share_the_runs_split(ensemble):
    split = json.loads((ensemble / "split_00" / "split.json").read_text())
    tested = {row["image"] for row in read_results(ensemble / "split_00")["predictions"]["test"]}
    assert tested == set(split["test"])


def test_a_stopped_ensemble_goes_on_where_it_was(image_folder, tmp_path, ensemble):
    shutil.copytree(ensemble, tmp_path / "run")
    for file in [*(tmp_path / "run").rglob("results.json"), tmp_path / "run" / "summary.json"]:
        if "split_01" in str(file) or file.name == "summary.json":
            file.unlink()
    shutil.rmtree(tmp_path / "run" / "split_01" / "network_02")
    assert command("train", "--resume", tmp_path / "run") == 0
    assert np.array_equal(
        scores(read_results(tmp_path / "run" / "split_01")), scores(read_results(ensemble / "split_01"))
    )


def test_analyses_of_attention_take_one_network_of_an_ensemble(ensemble, tmp_path, capsys):
    run = ensemble / "split_00"
    assert command("analyze-weights", "--checkpoint", run, "--dataset", "csv", "--output", tmp_path) == 2
    said = capsys.readouterr().err
    assert "this run is an ensemble" in said and "network_00" in said and "Traceback" not in said


@pytest.mark.parametrize("kind", ["ridge", "svr", long("mlp")])
def test_baselines_are_tested_on_the_images_of_each_split(ensemble, kind, capsys):
    assert command("baseline", "--checkpoint", ensemble, "--kind", kind) == 0
    for split in ("split_00", "split_01"):
        control = json.loads((ensemble / split / f"{kind}_baseline.json").read_text())
        ours = read_results(ensemble / split)
        assert [r["image"] for r in control["predictions"]["test"]] == [r["image"] for r in ours["predictions"]["test"]]
        assert not np.array_equal(scores(control), scores(ours))
    said = capsys.readouterr().out
    assert "median" in said and f"minus {kind}: SRCC" in said and "of 2 splits" in said


@pytest.mark.long
def test_the_mlp_of_a_fold_is_trained_on_the_folds_split(image_folder, tmp_path):
    assert train(image_folder, tmp_path, "--name", "folds", "--folds", 3, "--epochs", 1, *POOLED) == 0
    fold = tmp_path / "folds" / "split_00"
    assert command("baseline", "--checkpoint", fold, "--kind", "mlp") == 0
    control = json.loads((fold / "mlp_baseline.json").read_text())
    assert [r["image"] for r in control["predictions"]["test"]] == [
        r["image"] for r in read_results(fold)["predictions"]["test"]
    ]


def test_a_baseline_of_nothing_is_refused(tmp_path, capsys):
    assert command("baseline", "--checkpoint", tmp_path / "none", "--kind", "svr") == 2
    assert "no finished run at" in capsys.readouterr().err


def test_an_unknown_kind_is_refused(ensemble, capsys):
    assert command("baseline", "--checkpoint", ensemble, "--kind", "forest") == 2
    assert "forest" in capsys.readouterr().err
