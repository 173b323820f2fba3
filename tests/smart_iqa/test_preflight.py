"""What a run needs to its end is looked for before its first step, and all that is absent is said at once."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest
import trees

from iqa.config import Config
from iqa.errors import UserError
from smart_iqa import preflight
from smart_iqa.preflight import check_needs
from train_swin import architecture_of


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run on a tiny KonIQ, whose folder has the name of its archive."""
    trees.koniq(tmp_path / "koniq10k", trees.koniq_rows(10))
    places = {"data_root": str(tmp_path), "results_dir": str(tmp_path / "results"), "cache_dir": str(tmp_path / "c")}
    return Config(backbone="nano", pretrained=False, patch_size=32, resize="none", **places)


def needs(config: Config, **changes: object) -> list[str]:
    config = dataclasses.replace(config, **changes)
    return check_needs(config, architecture_of(config))


def test_all_that_is_absent_is_in_one_line_with_where_it_is_had(config, tmp_path) -> None:
    labels = tmp_path / "koniq10k" / "koniq10k_distributions_sets.csv"
    labels.unlink()
    trees.koniq_without_split(tmp_path / "koniq10k", [("1000.jpg", 3.0, 0.5, 60.0)])
    with pytest.raises(UserError) as stop:
        needs(config, cross_datasets=["kadid-10k", "agiqa-3k"])
    for part in (
        "koniq10k_distributions_sets.csv is not there",
        f"to test on kadid-10k: no database at {tmp_path / 'kadid-10k'}; get it from https://database.mmsp-kn.de/kadid",
        "to test on agiqa-3k: no database at",
        "--skip_absent goes on without",
    ):
        assert part in str(stop.value)
    assert needs(config, cross_datasets=["kadid-10k", "agiqa-3k"], skip_absent=True) == []


def test_spaq_is_only_mentioned_unless_it_is_asked_for_by_name(config, caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert needs(config) == []
    assert "not tested on spaq: no database at" in caplog.text
    with pytest.raises(UserError, match="to test on spaq: no database at .*github.com/h4nwei/SPAQ"):
        needs(config, cross_datasets=["spaq"])


def test_what_is_there_is_listed_and_given_back(config, tmp_path, caplog) -> None:
    trees.spaq(tmp_path / "SPAQ zip", [("1.jpg", 40.0), ("2.jpg", 60.0)])
    trees.kadid(tmp_path / "elsewhere", [("I01_01_01.png", "I01.png", 4.57, 0.496)])
    named = [f"kadid-10k={tmp_path / 'elsewhere'}"]
    with caplog.at_level(logging.INFO):
        assert needs(config, cross_datasets=["kadid-10k"], data_paths=named) == ["spaq", "kadid-10k"]
    for line in (
        f"needed: koniq-10k to learn from: 10 images in {tmp_path / 'koniq10k'}",
        f"needed: spaq to test on: 2 images in {tmp_path / 'SPAQ zip'}",
        f"needed: kadid-10k to test on: 1 images in {tmp_path / 'elsewhere'}",
        "GB for checkpoints in",
        "GB for the caches in",
    ):
        assert line in caplog.text


def test_a_wrong_layout_of_a_database_for_the_end_stops_at_the_start(config, tmp_path) -> None:
    trees.kadid(tmp_path / "kadid10k", [("I01_01_01.png", "I01.png", 4.57, 0.496)])
    shutil.rmtree(tmp_path / "kadid10k" / "images")
    with pytest.raises(UserError, match="kadid-10k.*1 of 1 labels cannot be used: .*image is missing"):
        needs(config, cross_datasets=["kadid-10k"])


def test_a_split_that_is_made_needs_no_official_one(config, tmp_path) -> None:
    (tmp_path / "koniq10k" / "koniq10k_distributions_sets.csv").unlink()
    trees.koniq_without_split(tmp_path / "koniq10k", [(f"{i}.jpg", 3.0, 0.5, 60.0 + i) for i in range(9)])
    assert needs(config, folds=3) == needs(config, train_test_num=2) == []


def test_a_disk_without_room_for_the_checkpoints_is_said_with_both_sizes(config, monkeypatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10**7)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"need 0.2\d GB and 0.01 GB are free: make room or give another --results_dir"):
        needs(config)
    assert check_needs(config, architecture_of(config), resume=True) == []


def test_features_of_a_frozen_backbone_are_counted_as_the_cache_will_reserve_them(config, caplog) -> None:
    with caplog.at_level(logging.INFO):
        needs(config, freeze_backbone=True, fusion="concat", train_patch_num=3000)
    # nano's maps: 48 (8x8, 7x7, 1), 96 (4x4, 7x7, 1), 192 (2x2, 7x7, 1), 384 (7x7, 1), in half precision.
    size = 48 * (64 + 49 + 1) + 96 * (16 + 49 + 1) + 192 * (4 + 49 + 1) + 384 * (49 + 1)
    assert f"{2 * size * 10 * (2 * 3000 + 20) / 1e9:.2f} GB for the caches" in caplog.text
