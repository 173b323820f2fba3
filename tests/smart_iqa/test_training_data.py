"""Several databases at once: one scale, pairs within one database, sampling in proportion or balanced."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
import trees
from helpers import SMALL, command

from data_loader import EpochSampler
from iqa.config import resolve
from iqa.data import Database
from iqa.errors import UserError
from iqa.losses import make_loss
from smart_iqa.scorer import load_model
from smart_iqa.training_data import Scale, make_training_data


def database(name: str, mos: list[float], folder="/nowhere", same_bytes: bool = False) -> Database:
    table = pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(len(mos))],
            "path": [f"{folder}/{name}/{i}.png" for i in range(len(mos))],
            "mos": mos,
            "mos_std": 4.0,
            "content": [f"c{i}" for i in range(len(mos))],
            "distortion": "",
            "split": "",
            "file_hash": [f"{'' if same_bytes else name}{i}" for i in range(len(mos))],
        }
    )
    return Database(name, folder, table, (0.0, 100.0), False)


FIRST = database("first", list(np.linspace(10, 90, 40)))
SECOND = database("second", list(np.linspace(40, 60, 20)))
CONFIG = resolve({"dataset": ["first", "second"]})


def test_training_parts_have_one_mean_and_deviation_and_the_first_keeps_its_scale():
    data = make_training_data([FIRST, SECOND], CONFIG, official=True)
    train = data.parts["train"].groupby("database")["mos"]
    assert train.mean()[1] == pytest.approx(train.mean()[0]) and train.std()[1] == pytest.approx(train.std()[0])
    assert data.scales["first"] == Scale(1.0, 0.0)
    alone = make_training_data([FIRST], CONFIG, official=True)
    pd.testing.assert_frame_equal(alone.parts["val"], data.parts["val"][data.parts["val"]["database"] == 0])


def test_deviations_are_scaled_as_the_scores_are():
    data = make_training_data([FIRST, SECOND], CONFIG, official=True)
    deviations = data.parts["train"].groupby("database")["mos_std"].first()
    assert deviations[1] == pytest.approx(4.0 * data.scales["second"].slope)


def test_test_tables_keep_each_databases_own_scale():
    tables = make_training_data([FIRST, SECOND], CONFIG, official=True).test_tables()
    assert set(tables["second"]["mos"]) <= set(SECOND.table["mos"])


def test_a_database_of_one_mos_has_no_scale_to_map():
    with pytest.raises(UserError, match="flat: all training images have one mos"):
        make_training_data([FIRST, database("flat", [50.0] * 20)], CONFIG, official=True)


def test_test_images_that_another_database_trains_on_are_noted():
    twins = [database(name, list(np.linspace(10, 90, 40)), same_bytes=True) for name in ("first", "second")]
    config = resolve({"dataset": ["first", "second"]})
    notes = make_training_data(twins, config, official=True).notes
    same_split = all("byte-identical" not in note for note in notes)
    shifted = database("second", list(np.linspace(10, 90, 40)), same_bytes=True)
    shifted.table["content"] = [f"other{i}" for i in range(40)]  # another split of the same images
    notes = make_training_data([twins[0], shifted], config, official=True).notes
    assert same_split and any("test images are byte-identical to another database's training" in n for n in notes)


def drawn(numbers: np.ndarray, crops: int, balanced: bool) -> list[tuple[int, int, int]]:
    sampler = EpochSampler(numbers, crops, seed=0, balanced=balanced)
    sampler.set_epoch(1)
    return list(sampler)


def test_sampling_in_proportion_takes_every_crop_once_and_balanced_as_many_of_each_database():
    numbers = np.array([0] * 12 + [1] * 3)
    assert sorted(drawn(numbers, 2, balanced=False)) == [(row, 1, crop) for row in range(15) for crop in range(2)]
    items = drawn(numbers, 2, balanced=True)
    assert len(items) == len(set(items)) == 30
    assert Counter(numbers[row] for row, _, _ in items) == {0: 15, 1: 15}
    per_image = Counter(row for row, _, _ in items)
    assert {per_image[row] for row in (12, 13, 14)} == {5} and {per_image[row] for row in range(12)} == {1, 2}


@pytest.mark.parametrize("loss_type", ["rank", "fidelity", "plcc"])
def test_losses_of_pairs_and_correlations_compare_within_a_database_only(loss_type):
    torch.manual_seed(0)
    loss = make_loss(loss_type, alpha=0.0, margin=0.1, databases=2)
    scores, mos = torch.randn(8, dtype=torch.float64) * 20 + 50, torch.rand(8, dtype=torch.float64) * 100
    number = torch.tensor([0, 0, 1, 1, 0, 1, 0, 0])
    together = loss(scores, mos, None, number)
    moved = loss(scores + 500.0 * number, mos, None, number)  # no effect, where nothing is compared across
    assert together.item() == pytest.approx(moved.item())
    assert make_loss(loss_type, 0.0, 0.1)(scores + 500.0 * number, mos).item() != pytest.approx(together.item())


def test_a_run_on_two_databases_tests_the_unseen_part_of_each_on_its_own_scale(tmp_path):
    trees.koniq(tmp_path / "koniq-10k", trees.koniq_rows(40), size=(48, 40))
    table = [(f"I{i:02d}_01_01.png", f"I{i:02d}.png", 1 + 4 * i / 19, 0.5) for i in range(20)]
    trees.kadid(tmp_path / "kadid-10k", table)
    flags = [*SMALL, "--dataset", "koniq-10k", "kadid-10k", "--sampling", "balanced", "--ranking_loss_alpha", "1"]
    place = ["--data_root", tmp_path, "--results_dir", tmp_path / "results", "--name", "two"]
    assert command("train_swin", *flags, *place, "--epochs", 1) == 0
    run = tmp_path / "results" / "two"
    results = json.loads((run / "results.json").read_text())
    assert results["metrics"].keys() == {"test", "kadid-10k"}
    held_out = set(json.loads((run / "split_kadid-10k.json").read_text())["test"])
    assert {row["image"] for row in results["predictions"]["kadid-10k"]} == held_out
    assert results["protocol"]["trained_on"]["koniq-10k"] == {"slope": 1.0, "offset": 0.0}
    slope, offset = results["protocol"]["trained_on"]["kadid-10k"].values()
    scorer = load_model(run, "cpu")
    assert scorer.scales["kadid-10k"] == [slope, offset]
    rows = pd.DataFrame(results["predictions"]["kadid-10k"]).set_index("image")
    one = rows.index[0]
    path = next((tmp_path / "kadid-10k").rglob(one))
    unmapped = scorer.score_table(pd.DataFrame({"image": [one], "path": [path], "mos": [0.0], "mos_std": [0.0]}))[0]
    assert rows.loc[one, "score"] == pytest.approx((unmapped - offset) / slope, abs=0.05)
