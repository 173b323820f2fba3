"""Each database is read in its official layout, in the right direction and range, and bad input stops."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import trees

import folders
from data_loader import resized_sizes
from folders import DatabaseNotFound, read_database, read_run_database
from iqa.config import Config
from iqa.data import check_image, check_images
from iqa.errors import UserError

# True rows, typed from the databases' own label files. Made up: KADID's deviations but the first, the third
# row of AGIQA-3K, and BID's grades.
KONIQ = [
    ("10004473376.jpg", 77.3836206897, 0.527277894494, "training"),
    ("10007357496.jpg", 68.7285714286, 0.580003024795, "test"),
    ("10043785683.jpg", 71.2043269231, 0.497974333332, "validation"),
]
SPAQ = [("00001.jpg", 48.86), ("00002.jpg", 62.5), ("11125.jpg", 10.8)]
KADID = [
    ("I01_01_01.png", "I01.png", 4.57, 0.496),
    ("I01_01_04.png", "I01.png", 1.67, 0.6),
    ("I81_25_05.png", "I81.png", 3.27, 0.9),
]
AGIQA = [
    ("AttnGAN_normal_000.jpg", "statue of a man", 0.965602553, 0.223270101),
    ("AttnGAN_normal_001.jpg", "a tray of sushi", 1.361853219, 0.645422466),
    ("xl2.2_normal_000.jpg", "statue of a man", 3.5, 0.5),
]
LIVE = [
    ("jp2k/img2.bmp", "studentsculpture.bmp", 15.512954417537026),
    ("jpeg/img57.bmp", "lighthouse.bmp", -2.640015016409613),
    ("wn/img20.bmp", "churchandcapitol.bmp", 111.7746935263145),
    ("gblur/img1.bmp", "caps.bmp", 42.12776536144956),
    ("fastfading/img145.bmp", "sailing4.bmp", 34.05021940048932),
]
CSIQ = [
    ("1600.AWGN.1.png", 0.061989),
    ("boston.JPEG.1.png", 0.0),
    ("sunsetcolor.jpeg2000.5.png", 1.0),
    ("woman.contrast.4.png", 0.468556),
]
TID = [
    (5.51429, "I01_01_1.bmp", "I01_01_1.bmp"),
    (5.56757, "i01_01_2.bmp", "I01_01_2.BMP"),
    (7.21429, "I04_17_4.bmp", "i04_17_4.bmp"),
]
LIVEC = [("101.bmp", 66.3595), ("102.bmp", 44.695), ("1164.JPG", 72.7539)]
BID = [(1, 2.5), (10, 4.75), (586, 0.5)]

OFFICIAL = {
    "koniq-10k": (trees.koniq, KONIQ),
    "spaq": (trees.spaq, SPAQ),
    "kadid-10k": (trees.kadid, KADID),
    "agiqa-3k": (trees.agiqa, AGIQA),
    "live": (trees.live, LIVE),
    "csiq": (trees.csiq, CSIQ),
    "tid2013": (trees.tid, TID),
    "livec": (trees.livec, LIVEC),
    "bid": (trees.bid, BID),
}


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "smart_iqa"


def read_tree(name: str, parent: Path, rows: list | None = None, **options: object) -> folders.Database:
    build, true_rows = OFFICIAL[name]
    build(parent / name, true_rows if rows is None else rows)
    return read_database(name, data_root=parent, **options)


def column(database: folders.Database, name: str) -> dict:
    """Column of the table by bare file name."""
    return {Path(image).name: value for image, value in zip(database.table.image, database.table[name], strict=True)}


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_layout_gives_the_same_kind_of_table(name: str, tmp_path: Path) -> None:
    database = read_tree(name, tmp_path)
    table = database.table
    assert list(table.columns[:8]) == "image path mos mos_std content distortion split file_hash".split()
    assert len(table) == len(OFFICIAL[name][1])
    assert table.mos.between(0, 100).all() and table.image.is_monotonic_increasing
    assert all(Path(path).is_file() and Path(path).is_absolute() for path in table.path)
    assert (table.content != "").all() and table.split.isin(["", "train", "val", "test"]).all()
    assert any("are published" in note for note in database.notes)


def test_koniq_takes_mos_from_the_file_with_the_split_and_scales_sd_from_five_points(tmp_path: Path) -> None:
    database = read_tree("koniq-10k", tmp_path)
    assert column(database, "mos")["10004473376.jpg"] == pytest.approx(77.3836206897)
    assert column(database, "mos_std")["10004473376.jpg"] == pytest.approx(25 * 0.527277894494)
    assert list(column(database, "split").values()) == ["train", "test", "val"]


def test_koniq_without_the_split_file_takes_the_z_score_and_says_that_it_has_no_split(tmp_path: Path) -> None:
    trees.koniq_without_split(tmp_path / "koniq-10k", [("10004473376.jpg", 3.828571, 0.527, 77.38)])
    database = read_database("koniq-10k", data_root=tmp_path)
    assert database.table.mos.tolist() == [77.38] and database.table.split.tolist() == [""]
    (note,) = (note for note in database.notes if "split" in note)
    assert "koniq10k_distributions_sets.csv is not there" in note
    assert not any("split" in note for note in read_tree("koniq-10k", tmp_path / "whole").notes)


def test_koniq_prefers_the_larger_images(tmp_path: Path) -> None:
    trees.koniq(tmp_path / "koniq-10k", KONIQ, images="1024x768")
    assert read_tree("koniq-10k", tmp_path).table.image.str.startswith("1024x768/").all()


def test_kadid_is_higher_is_better_and_its_var_is_a_deviation(tmp_path: Path) -> None:
    database = read_tree("kadid-10k", tmp_path)
    assert not database.lower_is_better
    assert column(database, "mos")["I01_01_01.png"] == pytest.approx(100 * 3.57 / 4)
    assert column(database, "mos")["I01_01_04.png"] == pytest.approx(100 * 0.67 / 4)
    assert column(database, "mos_std")["I01_01_01.png"] == pytest.approx(25 * 0.496)
    assert list(column(database, "distortion").values()) == ["gaussian_blur", "gaussian_blur", "contrast"]
    assert list(column(database, "level").values()) == ["1", "4", "5"]
    assert list(column(database, "content").values()) == ["I01.png", "I01.png", "I81.png"]


def test_agiqa_has_the_prompt_as_content_and_knows_the_generator(tmp_path: Path) -> None:
    database = read_tree("agiqa-3k", tmp_path)
    assert column(database, "mos")["AttnGAN_normal_000.jpg"] == pytest.approx(20 * 0.965602553)
    assert column(database, "mos_std")["AttnGAN_normal_000.jpg"] == pytest.approx(20 * 0.223270101)
    assert list(column(database, "content").values()) == [
        "statue of a man",
        "a tray of sushi",
        "statue of a man",
    ]
    assert list(column(database, "generator").values()) == ["AttnGAN", "AttnGAN", "xl2.2"]


def test_agiqa_takes_any_one_image_folder_but_not_two(tmp_path: Path) -> None:
    trees.agiqa(tmp_path / "agiqa-3k", AGIQA, images="drawings")
    assert len(read_database("agiqa-3k", data_root=tmp_path).table) == 3
    trees.image_files(tmp_path / "agiqa-3k" / "others", ["a.jpg"])
    with pytest.raises(UserError, match="found drawings, others"):
        read_database("agiqa-3k", data_root=tmp_path)


def test_live_dmos_is_turned_round_between_its_published_extremes(tmp_path: Path) -> None:
    database = read_tree("live", tmp_path)
    mos = column(database, "mos")
    assert database.lower_is_better and database.stored_range == pytest.approx((-2.64, 111.77), abs=0.005)
    assert mos["img57.bmp"] == pytest.approx(100, abs=1e-3) and mos["img20.bmp"] == pytest.approx(0, abs=1e-3)
    assert mos["img2.bmp"] == pytest.approx(100 * (111.77 - 15.51295) / 114.41, abs=0.01)
    assert column(database, "content")["img2.bmp"] == "studentsculpture.bmp"
    assert set(database.table.distortion) == set(trees.LIVE_FOLDERS)


@pytest.mark.parametrize("by_kind", [False, True])
def test_csiq_dmos_is_turned_round_in_both_folder_layouts(by_kind: bool, tmp_path: Path) -> None:
    trees.csiq(tmp_path / "csiq", CSIQ, by_kind)
    database = read_database("csiq", data_root=tmp_path)
    assert database.lower_is_better
    assert column(database, "mos") == pytest.approx({name: 100 * (1 - score) for name, score in CSIQ})
    assert column(database, "content")["sunsetcolor.jpeg2000.5.png"] == "sunsetcolor"
    assert column(database, "distortion")["1600.AWGN.1.png"] == "awgn"


def test_tid_finds_images_whose_letter_case_differs_from_the_labels(tmp_path: Path) -> None:
    database = read_tree("tid2013", tmp_path)
    assert column(database, "mos")["I01_01_1.bmp"] == pytest.approx(100 * 5.51429 / 9)
    assert set(database.table.content) == {"I01", "I04"}
    assert sorted(Path(path).name for path in database.table.path) == [
        "I01_01_1.bmp",
        "I01_01_2.BMP",
        "i04_17_4.bmp",
    ]
    assert column(database, "distortion")["I04_17_4.bmp"] == "contrast"


def test_livec_leaves_out_the_seven_training_examples(tmp_path: Path) -> None:
    database = read_tree("livec", tmp_path)
    assert column(database, "mos") == pytest.approx(dict(LIVEC))
    assert set(database.table.mos_std) == {18.0} and set(database.table.distortion) == {"authentic"}


def test_deviations_are_read_where_the_originals_have_them(tmp_path: Path) -> None:
    scale = 100 / (111.7747 + 2.6401)
    assert read_tree("live", tmp_path).table.mos_std.tolist() == pytest.approx([5 * scale] * 5)
    assert read_tree("bid", tmp_path).table.mos_std.tolist() == pytest.approx([20 * 0.7] * 3)
    assert read_tree("livec", tmp_path).table.mos_std.tolist() == [18] * 3
    trees.tid(tmp_path / "tid2013", TID)
    (tmp_path / "tid2013" / "mos_std.txt").write_text("0.18\n0.09\n0.27\n")
    assert column(read_database("tid2013", data_root=tmp_path), "mos_std") == pytest.approx(
        {"I01_01_1.bmp": 2, "i01_01_2.bmp": 1, "I04_17_4.bmp": 3}
    )


def test_live_without_deviations_is_read_with_unknown_ones(tmp_path: Path) -> None:
    root = trees.live(tmp_path / "live", LIVE)
    content = scipy.io.loadmat(root / "dmos_realigned.mat")
    scipy.io.savemat(root / "dmos_realigned.mat", {key: content[key] for key in ("dmos_new", "orgs")})
    assert read_database("live", data_root=tmp_path).table.mos_std.isna().all()


@pytest.mark.parametrize("images", ["", "ImageDatabase"])
def test_bid_grades_are_on_five_points_wherever_the_images_lie(images: str, tmp_path: Path) -> None:
    trees.bid(tmp_path / "bid", BID, images)
    table = read_database("bid", data_root=tmp_path).table
    assert table.mos.tolist() == pytest.approx([50, 95, 10])
    assert table.image.tolist() == [str(Path(images, f"DatabaseImage{n:04d}.JPG")) for n in (1, 10, 586)]


def test_bid_columns_are_found_by_name_or_else_are_the_first_two(tmp_path: Path) -> None:
    book = trees.bid(tmp_path / "bid", BID) / "DatabaseGrades.xlsx"
    moved = [["std", "Average Subjective Grade", "Image Number"], *[(0.7, grade, number) for number, grade in BID]]
    unnamed = [["a", "b", "c"], *[(*row, 1) for row in BID], [None, None, "a remark below the table"]]
    for rows in (moved, unnamed):
        trees.workbook(book, rows)
        assert read_database("bid", data_root=tmp_path).table.mos.tolist() == pytest.approx([50, 95, 10])


# --------------------------------------------------------------------------------------------------
# Tables


ROWS = [{"image": f"photos/{i}.png", "mos": 10.0 * i} for i in range(1, 8)]


def test_csv_range_and_direction_are_said_by_flags(tmp_path: Path) -> None:
    rows = [{"file": f"{i}.png", "image": f"{i}.png", "dmos": i, "scene": i % 2} for i in range(1, 6)]
    file = trees.table(tmp_path / "labels.csv", rows)
    database = read_database(
        "csv", data_path=file, image_column="file", mos_column="dmos", mos_range=(1, 5), lower_is_better=True,
        content_column="scene",
    )  # fmt: skip
    assert database.table.mos.tolist() == [100, 75, 50, 25, 0]
    assert database.table.content.tolist() == ["1", "0", "1", "0", "1"]


def test_csv_split_deviation_and_other_columns_are_used_when_present(tmp_path: Path) -> None:
    parts = ["training", "validation", "Test"]
    rows = [row | {"split": part, "mos_std": 2, "camera": "a"} for row, part in zip(ROWS, parts, strict=False)]
    table = read_database("csv", data_path=trees.table(tmp_path / "labels.csv", rows)).table
    assert table.split.tolist() == ["train", "val", "test"]
    assert table.mos_std.tolist() == [2, 2, 2] and table.camera.tolist() == ["a"] * 3


def test_scores_in_a_small_corner_of_the_assumed_range_are_noted(tmp_path: Path) -> None:
    rows = [row | {"mos": row["mos"] / 20} for row in ROWS]
    file = trees.table(tmp_path / "labels.csv", rows)
    assert any("--mos_range" in note for note in read_database("csv", data_path=file).notes)
    assert not read_database("csv", data_path=file, mos_range=(0, 5)).notes


def test_row_order_of_the_labels_changes_nothing(tmp_path: Path) -> None:
    first = read_database("csv", data_path=trees.table(tmp_path / "a.csv", ROWS))
    second = read_database("csv", data_path=trees.table(tmp_path / "b.csv", ROWS[::-1]))
    pd.testing.assert_frame_equal(first.table, second.table)
    assert first.fingerprint() == second.fingerprint()


def test_json_list_parts_and_folder_hold_the_same_database(tmp_path: Path) -> None:
    records = [{"image": row["image"], "score": row["mos"]} for row in ROWS]
    whole = read_database("json", data_path=trees.table(tmp_path / "all.json", records)).table
    (tmp_path / "parts.json").write_text(json.dumps({"train": records[:5], "test": records[5:]}))
    (tmp_path / "train.json").write_text(json.dumps(records[:5]))
    (tmp_path / "test.json").write_text(json.dumps(records[5:]))
    in_parts = read_database("json", data_path=tmp_path / "parts.json").table
    in_folder = read_database("json", data_path=tmp_path).table
    assert whole.split.tolist() == [""] * 7 and in_parts.split.tolist() == ["train"] * 5 + ["test"] * 2
    pd.testing.assert_frame_equal(in_parts, in_folder)
    pd.testing.assert_frame_equal(whole.drop(columns="split"), in_parts.drop(columns="split"))


def test_demo_reads_its_labels_and_names_the_script_when_absent(tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotFound, match="smart-iqa make-demo-database"):
        read_database("demo", data_root=tmp_path)
    row = {
        "image": "images/a.png",
        "mos": 40.5,
        "content": "coffee",
        "distortion": "jpeg",
        "level": 2,
        "split": "test",
    }
    trees.table(tmp_path / "demo" / "labels.csv", [row])
    table = read_database("demo", data_root=tmp_path).table
    assert table.loc[0, ["mos", "content", "distortion", "level", "split"]].tolist() == [
        40.5,
        "coffee",
        "jpeg",
        "2",
        "test",
    ]


# --------------------------------------------------------------------------------------------------
# Fingerprint, identical images, cache


def test_fingerprint_follows_pixels_and_mos_but_not_the_place(tmp_path: Path) -> None:
    trees.csiq(tmp_path / "a", CSIQ)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    print_of = lambda folder, **o: read_database("csiq", data_path=tmp_path / folder, **o).fingerprint()  # noqa: E731
    original = print_of("a")
    assert print_of("b") == original == print_of("b", check_images=False)
    trees.image_file(tmp_path / "b" / "dst_imgs_all" / CSIQ[0][0], size=(20, 20))
    assert print_of("b") != original
    trees.csiq(tmp_path / "a", [(CSIQ[0][0], 0.5), *CSIQ[1:]])
    assert print_of("a") != original


def test_the_table_knows_the_sizes_that_the_check_saw(tmp_path: Path) -> None:
    data = trees.table(tmp_path / "a.csv", [{"image": "a.png", "mos": 1}, {"image": "b.png", "mos": 2}], size=(40, 36))
    trees.image_file(tmp_path / "b.png", size=(7, 9))
    sizes = [[40, 36], [7, 9]]
    assert read_database("csv", data_path=data).table[["image_width", "image_height"]].to_numpy().tolist() == sizes
    again = read_database("csv", data_path=data)  # from the cache
    assert again.table[["image_width", "image_height"]].to_numpy().tolist() == sizes
    assert resized_sizes(again.table, None, 8).tolist() == [[40, 36], [8, 10]]
    (tmp_path / "a.png").unlink()  # nothing is read
    assert resized_sizes(again.table, None, 8).tolist() == [[40, 36], [8, 10]]
    unchecked = read_database("csv", data_path=data, check_images=False, skip_bad_images=True).table
    assert unchecked[["image_width", "image_height"]].to_numpy().tolist() == [[0, 0]]
    assert resized_sizes(unchecked, None, 8).tolist() == [[8, 10]]


def test_byte_identical_images_are_grouped(tmp_path: Path) -> None:
    file = trees.table(tmp_path / "labels.csv", ROWS)
    shutil.copy(tmp_path / "photos/1.png", tmp_path / "photos/5.png")
    assert read_database("csv", data_path=file).duplicates == [["photos/1.png", "photos/5.png"]]


def test_cache_saves_the_second_check_and_notices_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_cache: Path
) -> None:
    trees.image_files(tmp_path, ["a.png", "b.png"])
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    decoded: list[Path] = []
    monkeypatch.setattr("iqa.data.images.check_image", lambda path: decoded.append(path) or check_image(path))
    first = check_images(paths, "key")
    assert list(check_images(paths, "key")) == list(first) and len(decoded) == 2
    paths[0].write_bytes(paths[0].read_bytes()[:60])
    assert check_images(paths, "key")[0].problem and len(decoded) == 3
    assert [file.suffix for file in private_cache.iterdir()] == [".npy"]


def test_the_check_keeps_what_it_found_in_the_cache_folder_that_was_given(tmp_path: Path, private_cache: Path) -> None:
    file = trees.table(tmp_path / "labels.csv", ROWS)
    read_run_database(Config(dataset="csv", data_path=str(file), cache_dir=str(tmp_path / "kept")))
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".npy"]
    assert not private_cache.exists()


def test_cache_that_cannot_be_written_costs_one_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    trees.image_file(tmp_path / "a.png")
    assert check_images([tmp_path / "a.png"], "key")[0].problem == ""
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_an_image_cut_anywhere_is_found(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"whole{suffix}"
    trees.image_file(path, size=(64, 48))
    content = path.read_bytes()
    assert check_image(path).problem == ""
    for share in np.linspace(0, 0.98, 25):
        path.write_bytes(content[: int(share * len(content))])
        assert "does not open" in check_image(path).problem, share


# --------------------------------------------------------------------------------------------------
# Where databases lie


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("koniq-10k", "KonIQ-10k"),
        ("koniq-10k", "koniq10k"),
        ("koniq-10k", "koniq10k_1024x768"),
        ("koniq-10k", "koniq10k_512x384"),
        ("spaq", "SPAQ"),
        ("spaq", "SPAQ zip"),
        ("spaq", "SPAQ_fixed"),
        ("spaq", "SPAQ zip/SPAQ"),
        ("kadid-10k", "kadid10k"),
        ("kadid-10k", "KADID-10k/kadid10k"),
        ("agiqa-3k", "AGIQA-3K"),
        ("agiqa-3k", "AGIQA-3k-Database-main"),
        ("live", "databaserelease2"),
        ("csiq", "CSIQ"),
        ("tid2013", "TID2013"),
        ("livec", "ChallengeDB_release"),
        ("livec", "ChallengeDB_release/ChallengeDB_release"),
        ("bid", "BID"),
    ],
)
def test_a_folder_is_found_by_the_name_that_its_archive_gives_it(name: str, folder: str, tmp_path: Path) -> None:
    build, rows = OFFICIAL[name]
    build(tmp_path / folder, rows)
    (tmp_path / "notes").mkdir()
    assert read_database(name, data_root=tmp_path).root == tmp_path / folder
    assert read_database(name, data_path=tmp_path / Path(folder).parts[0]).root == tmp_path / folder


def test_of_several_folders_the_one_with_labels_is_taken_and_else_the_one_of_the_very_name(tmp_path: Path) -> None:
    (tmp_path / "kadid-10k").mkdir()
    with pytest.raises(UserError, match=f"no label file dmos.csv in {tmp_path / 'kadid-10k'}"):
        read_database("kadid-10k", data_root=tmp_path)
    trees.kadid(tmp_path / "kadid10k", KADID)
    assert read_database("kadid-10k", data_root=tmp_path).root == tmp_path / "kadid10k"
    trees.kadid(tmp_path / "kadid-10k", KADID)
    assert read_database("kadid-10k", data_root=tmp_path).root == tmp_path / "kadid-10k"


def test_koniqs_archives_are_read_as_they_unpack_side_by_side(tmp_path: Path) -> None:
    trees.koniq(tmp_path / "koniq-10k", KONIQ, images="koniq10k_1024x768/1024x768")
    labels = tmp_path / "koniq-10k" / "koniq10k_distributions_sets.csv"
    labels.with_suffix("").mkdir()
    labels.rename(labels.with_suffix("") / labels.name)
    table = read_database("koniq-10k", data_root=tmp_path).table
    assert len(table) == 3 and table.split.tolist() == ["train", "test", "val"]


@pytest.mark.parametrize("given", ["list", "text", "environment"])
def test_databases_lie_under_several_roots(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.spaq(tmp_path / "b" / "spaq", SPAQ)
    roots = [str(tmp_path / "a"), str(tmp_path / "b")]
    if given == "environment":
        monkeypatch.setenv("IQA_DATA_ROOT", os.pathsep.join(roots))
    data_root = {"list": roots, "text": os.pathsep.join(roots), "environment": None}[given]
    assert read_database("spaq", data_root=data_root).root == tmp_path / "b" / "spaq"
    with pytest.raises(DatabaseNotFound, match=f"{tmp_path}/a/bid or {tmp_path}/b/bid; get it from https://"):
        read_database("bid", data_root=data_root)


def test_a_root_may_have_the_path_separator_in_its_name(tmp_path: Path) -> None:
    trees.spaq(tmp_path / "a:b" / "spaq", SPAQ)
    assert read_database("spaq", data_root=tmp_path / "a:b").root == tmp_path / "a:b" / "spaq"


def test_a_database_named_with_its_folder_is_read_there_and_others_under_the_roots(tmp_path: Path) -> None:
    trees.spaq(tmp_path / "elsewhere", SPAQ)
    trees.bid(tmp_path / "root" / "bid", BID)
    places = [str(tmp_path / "root"), f"spaq={tmp_path / 'elsewhere'}"]
    assert read_database("spaq", data_root=places).root == tmp_path / "elsewhere"
    assert read_database("bid", data_root=os.pathsep.join(places)).root == tmp_path / "root" / "bid"
    with pytest.raises(UserError, match="--data_path spak=...: unknown database 'spak'; known: koniq-10k, spaq"):
        read_database("spaq", data_root="spak=/x")


def test_a_run_finds_its_databases_where_its_settings_say(tmp_path: Path) -> None:
    trees.kadid(tmp_path / "one", KADID)
    trees.kadid(tmp_path / "root" / "kadid-10k", KADID)
    config = Config(dataset="kadid-10k", data_root=str(tmp_path / "root"))
    named = Config(dataset="kadid-10k", data_root=str(tmp_path / "root"), data_paths=[f"kadid-10k={tmp_path / 'one'}"])
    assert read_run_database(config).root == tmp_path / "root" / "kadid-10k"
    assert read_run_database(named).root == tmp_path / "one"
    for run in (config, dataclasses.replace(named, data_paths=["kadid-10k=/gone"])):
        assert read_run_database(run, f"kadid-10k={tmp_path / 'one'}").root == tmp_path / "one"
    assert read_run_database(config, f"spaq={tmp_path / 'one'}").root == tmp_path / "root" / "kadid-10k"


# --------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("name", [*OFFICIAL, "demo"])
def test_a_database_that_is_not_there_is_its_own_error_and_names_the_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotFound, match=str(tmp_path / name)):
        read_database(name, data_root=tmp_path)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_folder_without_its_label_file_names_the_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="no label file"):
        read_database(name, data_root=tmp_path)


def test_a_column_that_is_absent_is_answered_with_those_there_are(tmp_path: Path) -> None:
    file = trees.table(tmp_path / "labels.csv", [{"image": "a.png", "rating": 3}])
    with pytest.raises(UserError, match="no column mos or score; it has image, rating; name it with --mos_column"):
        read_database("csv", data_path=file)


BAD_ROWS = {
    "is missing": {"image": "nowhere.png", "mos": 20},
    "name is there already in row 2": {"image": "photos/1.png", "mos": 20},
    "score 'nan' is not a number": {"image": "photos/9.png", "mos": "nan"},
    "score 'high' is not a number": {"image": "photos/9.png", "mos": "high"},
    "score 'inf' is not a number": {"image": "photos/9.png", "mos": "inf"},
    "score 101 is outside 0..100, see --mos_range": {"image": "photos/9.png", "mos": 101},
    "split 'dev' is not train, val or test": {"image": "photos/9.png", "mos": 20, "split": "dev"},
    "does not open as an image": {"image": "photos/cut.jpg", "mos": 20},
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_stops_with_its_row_and_can_be_left_out_by_flag(reason: str, tmp_path: Path) -> None:
    rows = [*({"split": "train"} | row for row in ROWS), {"split": "train"} | BAD_ROWS[reason]]
    file = trees.table(tmp_path / "labels.csv", rows)
    (tmp_path / "nowhere.png").unlink(missing_ok=True)
    cut = tmp_path / "photos/cut.jpg"
    if cut.exists():
        cut.write_bytes(cut.read_bytes()[:-60])
    with pytest.raises(UserError) as caught:
        read_database("csv", data_path=file)
    assert reason in str(caught.value) and "row 9" in str(caught.value) and "1 of 8" in str(caught.value)
    assert "\n" not in str(caught.value)
    database = read_database("csv", data_path=file, skip_bad_images=True)
    assert len(database.table) == 7
    assert [(entry["image"], entry["row"]) for entry in database.left_out] == [(rows[-1]["image"], 9)]
    assert reason in database.left_out[0]["reason"]


def test_a_score_outside_the_published_range_stops_and_is_not_clipped(tmp_path: Path) -> None:
    rows = [*TID, (9.5, "I02_01_1.bmp", "I02_01_1.bmp")]
    with pytest.raises(UserError, match=r"I02_01_1.bmp \(row 4: score 9.5 is outside 0..9\)"):
        read_tree("tid2013", tmp_path, rows)


def test_of_many_bad_rows_all_are_counted_and_three_are_named(tmp_path: Path) -> None:
    file = trees.table(tmp_path / "labels.csv", ROWS)
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(UserError) as caught:
        read_database("csv", data_path=file)
    assert "7 of 7" in str(caught.value) and str(caught.value).count("image is missing") == 3
    with pytest.raises(UserError, match="no usable image"):
        read_database("csv", data_path=file, skip_bad_images=True)


def test_a_mat_file_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    root = trees.live(tmp_path / "live", LIVE)
    scipy.io.savemat(root / "dmos_realigned.mat", {"dmos": np.zeros((1, 982))})
    with pytest.raises(UserError, match="no variable dmos_new; it has dmos"):
        read_database("live", data_root=tmp_path)
    scipy.io.savemat(root / "dmos_realigned.mat", {"dmos_new": np.zeros((1, 779)), "orgs": np.zeros((1, 779))})
    with pytest.raises(UserError, match="dmos_new has 779 values, expected 982"):
        read_database("live", data_root=tmp_path)
    (root / "dmos_realigned.mat").write_text("this is not a MATLAB file" * 20)
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        read_database("live", data_root=tmp_path)


def test_a_mat_file_cut_anywhere_is_one_line(tmp_path: Path) -> None:
    scores = trees.live(tmp_path / "live", LIVE) / "dmos_realigned.mat"
    whole = scores.read_bytes()
    for size in range(0, len(whole) - 8, 1999):
        scores.write_bytes(whole[:size])
        with pytest.raises(UserError) as caught:
            read_database("live", data_root=tmp_path)
        assert "\n" not in str(caught.value), size


def test_a_mat_variable_of_another_kind_is_named(tmp_path: Path) -> None:
    root = trees.live(tmp_path / "live", LIVE)
    cells = np.full((1, 982), "text", dtype=object)
    scipy.io.savemat(root / "dmos_realigned.mat", {"dmos_new": cells, "orgs": np.zeros((1, 982))})
    with pytest.raises(UserError, match="dmos_new holds no plain numbers; is it the file of this database?"):
        read_database("live", data_root=tmp_path)
    root = trees.livec(tmp_path / "livec", LIVEC)
    scipy.io.savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": np.zeros((1, 10))})
    with pytest.raises(UserError, match="AllImages_release holds no names"):
        read_database("livec", data_root=tmp_path)


def test_live_references_are_names_also_in_a_character_matrix(tmp_path: Path) -> None:
    root = trees.live(tmp_path / "live", LIVE)
    in_cells = read_database("live", data_root=tmp_path).table
    names = scipy.io.loadmat(root / "refnames_all.mat")["refnames_all"].ravel()
    padded = np.array([str(cell[0]) for cell in names])  # savemat pads the shorter names with blanks
    scipy.io.savemat(root / "refnames_all.mat", {"refnames_all": padded})
    pd.testing.assert_frame_equal(read_database("live", data_root=tmp_path).table, in_cells)


def test_live_with_one_reference_for_all_images_is_refused(tmp_path: Path) -> None:
    root = trees.live(tmp_path / "live", LIVE)
    scipy.io.savemat(root / "refnames_all.mat", {"refnames_all": np.array(["abc"] * 982)})
    with pytest.raises(UserError, match=r"refnames_all.mat: expected the names of several references, got 'abc' 982"):
        read_database("live", data_root=tmp_path)


def test_deviations_that_do_not_fit_the_names_stop(tmp_path: Path) -> None:
    trees.tid(tmp_path / "tid2013", TID)
    (tmp_path / "tid2013" / "mos_std.txt").write_text("0.18\nnone\n")
    with pytest.raises(UserError, match="expected 3 numbers, got 1 in 2 words"):
        read_database("tid2013", data_root=tmp_path)


@pytest.mark.parametrize("deviation", [-0.1, math.inf])
def test_a_deviation_that_cannot_be_one_stops_in_every_database(deviation: float, tmp_path: Path) -> None:
    trees.tid(tmp_path / "tid2013", TID)
    (tmp_path / "tid2013" / "mos_std.txt").write_text("0.18\n0\n-0.27\n")
    trees.koniq(tmp_path / "koniq-10k", [*KONIQ[:2], (*KONIQ[2][:2], deviation, KONIQ[2][3])])
    trees.kadid(tmp_path / "kadid-10k", [*KADID[:2], (*KADID[2][:3], deviation)])
    trees.agiqa(tmp_path / "agiqa-3k", [*AGIQA[:2], (*AGIQA[2][:3], deviation)])
    trees.live(tmp_path / "live", LIVE)
    scores = scipy.io.loadmat(tmp_path / "live" / "dmos_realigned.mat")
    kept = {key: scores[key] for key in ("dmos_new", "orgs", "dmos_std")}
    kept["dmos_std"][0, 56 + 227] = deviation  # of jpeg/img57.bmp
    scipy.io.savemat(tmp_path / "live" / "dmos_realigned.mat", kept)
    rows = [{**row, "mos_std": deviation if row is ROWS[2] else ""} for row in ROWS]
    file = trees.table(tmp_path / "labels.csv", rows)
    for name, row in (("tid2013", 3), ("koniq-10k", 4), ("kadid-10k", 4), ("agiqa-3k", 4), ("live", 284), ("csv", 4)):
        with pytest.raises(UserError, match=rf"1 of \d.*\(row {row}: rating deviation is negative or infinite\)"):
            read_database(name, data_root=tmp_path, data_path=file if name == "csv" else None)


def test_an_old_workbook_under_the_new_name_is_one_line(tmp_path: Path) -> None:
    root = trees.spaq(tmp_path / "spaq", SPAQ)
    old_excel = bytes.fromhex("D0CF11E0A1B11AE1") + bytes(600)  # an OLE container, as .xls files are
    (root / "Annotations" / "MOS and Image attribute scores.xlsx").write_bytes(old_excel)
    with pytest.raises(UserError, match="cannot be read as an Excel workbook") as caught:
        read_database("spaq", data_root=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_wrong_workbook_is_named(tmp_path: Path) -> None:
    spaq = trees.spaq(tmp_path / "spaq", SPAQ) / "Annotations" / "MOS and Image attribute scores.xlsx"
    trees.workbook(spaq, [["Image name", "Contrast"], ["00001.jpg", 50]])
    with pytest.raises(UserError, match="no column MOS; it has Image name, Contrast"):
        read_database("spaq", data_root=tmp_path)
    spaq.write_text("Image name,MOS\n")
    with pytest.raises(UserError, match="cannot be read as an Excel workbook"):
        read_database("spaq", data_root=tmp_path)
    bid = trees.bid(tmp_path / "bid", BID) / "DatabaseGrades.xlsx"
    for rows, where in (([["a", "b"], [1, 2.5], ["text", "more"]], "row 3"), ([["a"], [1]], ""), ([["a", "b"]], "")):
        trees.workbook(bid, rows)
        with pytest.raises(UserError, match=f"{where}: expected image numbers and grades|no labels in it"):
            read_database("bid", data_root=tmp_path)


@pytest.mark.parametrize("number", ["inf", 1.5, 0, -1, 1e300])
def test_an_image_number_of_bid_is_a_whole_one(number: object, tmp_path: Path) -> None:
    book = trees.bid(tmp_path / "bid", BID) / "DatabaseGrades.xlsx"
    trees.workbook(book, [["Image Number", "Average Subjective Grade"], [1, 2.5], [number, 3]])
    with pytest.raises(UserError, match=r"DatabaseGrades.xlsx row 3: .* got '.*' for a whole number from 1") as caught:
        read_database("bid", data_root=tmp_path)
    assert "\n" not in str(caught.value)


def test_options_that_cannot_apply_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="csv and json only"):
        read_tree("koniq-10k", tmp_path, mos_column="SD")
    with pytest.raises(UserError, match="unknown database 'koniq'; known are koniq-10k"):
        read_database("koniq")
    file = trees.table(tmp_path / "labels.csv", ROWS)
    for name in ("csv", "json"):
        with pytest.raises(
            UserError, match=f"{name}: no file named: give --data_path to train_swin.py .*first --dataset"
        ):
            read_database(name, data_root=tmp_path)
    with pytest.raises(UserError, match="the first must be the lower one"):
        read_database("csv", data_path=file, mos_range=(5, 1))
    (tmp_path / "labels.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="expected a list"):
        read_database("json", data_path=tmp_path / "labels.json")


def test_the_command_prints_json_and_ends_with_one_line_and_code_2_on_bad_images(tmp_path: Path) -> None:
    trees.koniq(tmp_path / "koniq-10k", trees.koniq_rows(10))
    (tmp_path / "koniq-10k/512x384/1003.jpg").unlink()

    def run(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, folders.__file__, "koniq-10k", "--data_root", str(tmp_path), *flags]
        return subprocess.run(command, capture_output=True, text=True)

    stopped = run()
    assert stopped.returncode == 2 and stopped.stdout == ""
    assert stopped.stderr.startswith("error: koniq-10k at") and stopped.stderr.count("\n") == 1
    printed = json.loads(run("--skip_bad_images").stdout)
    assert (printed["n"], printed["contents"], printed["missing"]) == (9, 9, 1)
    assert printed["splits"] == {"train": 6, "val": 1, "test": 2}
    assert printed["stored_range"] == [0, 100] and printed["lower_is_better"] is False
    assert printed["mos_min"] == 5 and printed["mos_max"] == 95 and printed["duplicates"] == []


# --------------------------------------------------------------------------------------------------
# True labels, as far as the data folder has them


@pytest.fixture
def true_labels() -> Path:
    root = os.environ.get("IQA_DATA_ROOT")
    if not root or not Path(root, "labels").is_dir():
        pytest.skip("IQA_DATA_ROOT is unset or has no labels/: no true label files")
    return Path(root, "labels")


def true_rows(labels: Path, file: str, step: int) -> pd.DataFrame:
    return pd.read_csv(labels / file).iloc[::step].assign(name=lambda t: t.dis_img_path.str.split("/").str[-1])


def test_koniq_official_split_has_its_published_sizes(true_labels: Path, tmp_path: Path) -> None:
    file = "koniq10k_distributions_sets.csv"
    images = tmp_path / "koniq-10k" / "512x384"
    trees.image_file(tmp_path / "one.jpg")
    images.mkdir(parents=True)
    shutil.copy(true_labels / file, tmp_path / "koniq-10k" / file)
    for name in pd.read_csv(true_labels / file).image_name:
        os.link(tmp_path / "one.jpg", images / name)
    database = read_database("koniq-10k", data_root=tmp_path, check_images=False)
    assert database.table.split.value_counts().to_dict() == {"train": 7058, "test": 2015, "val": 1000}
    assert not any("published" in note for note in database.notes)


def test_live_is_whole_with_its_779_distorted_images(true_labels: Path, tmp_path: Path) -> None:
    true = true_rows(true_labels, "LIVE.txt", 1)
    names = true.dis_type + "/" + true.name
    references = true.ref_img_path.str.split("/").str[-1]
    database = read_tree("live", tmp_path, list(zip(names, references, true.score, strict=True)))
    assert len(database.table) == 779 and database.notes == [] and database.table.content.nunique() == 29
    assert database.table.mos.between(0, 100).all()
    assert dict(zip(database.table.image, 111.7747 - 1.144148 * database.table.mos, strict=True)) == pytest.approx(
        dict(zip(names, true.score, strict=True))
    )


def test_csiq_is_whole_with_its_866_images_and_30_contents(true_labels: Path, tmp_path: Path) -> None:
    pairs = [line.split() for line in (true_labels / "csiq_label.txt").read_text().splitlines()]
    database = read_tree("csiq", tmp_path, pairs)
    assert database.notes == [] and database.table.content.nunique() == 30
    assert column(database, "mos") == pytest.approx({name: 100 * (1 - float(score)) for name, score in pairs})


def test_kadid_and_tid_name_the_distortions_that_the_true_labels_name(true_labels: Path, tmp_path: Path) -> None:
    true = true_rows(true_labels, "KADID-10k.txt", 83)
    references = true.ref_img_path.str.split("/").str[-1]
    kadid = read_tree(
        "kadid-10k", tmp_path, list(zip(true.name, references, true.score, [0.5] * len(true), strict=True))
    )
    assert column(kadid, "mos") == pytest.approx(dict(zip(true.name, 25 * (true.score - 1), strict=True)))
    true_tid = true_rows(true_labels, "TID2013.txt", 37)
    tid = read_tree(
        "tid2013", tmp_path, list(zip(true_tid.score, true_tid.name.str.upper(), true_tid.name, strict=True))
    )
    assert list(column(tid, "mos").values()) == pytest.approx((100 / 9 * true_tid.score).tolist())
    said = {
        "GBLUR": "gaussian_blur",
        "JPEG": "jpeg",
        "JP2K": "jpeg2000",
        "Pixelate": "pixelate",
        "Denoising": "denoise",
    }
    for database, rows in ((kadid, true), (tid, true_tid)):
        found = {name.upper(): kind for name, kind in column(database, "distortion").items()}
        for name, kind in zip(rows.name, rows.dis_type, strict=True):
            assert found[name.upper()] == said.get(kind, found[name.upper()])
            assert found[name.upper()] != ""


@pytest.mark.parametrize(("name", "file", "step"), [("spaq", "SPAQ.txt", 150), ("livec", "LIVE_Challenge.txt", 15)])
def test_photographs_keep_their_true_mos(name: str, file: str, step: int, true_labels: Path, tmp_path: Path) -> None:
    true = true_rows(true_labels, file, step)
    database = read_tree(name, tmp_path, list(zip(true.name, true.score, strict=True)))
    assert column(database, "mos") == pytest.approx(dict(zip(true.name, true.score, strict=True)))


@pytest.mark.long
def test_agiqa_is_whole_with_300_prompts_and_nine_identical_groups(true_labels: Path) -> None:
    if not (true_labels.parent / "agiqa-3k").is_dir():
        pytest.skip("agiqa-3k is not in IQA_DATA_ROOT")
    database = read_database("agiqa-3k", data_root=true_labels.parent)
    assert database.notes == [] and database.table.content.nunique() == 300
    assert len(database.duplicates) == 9 and database.table.generator.nunique() == 6
