"""What is in two parts of a split is found: contents, copies, and copies that were encoded again."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from helpers import long
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance

from folders import read_database
from iqa.data import HASH_BITS, NEAR_BITS, close_pairs, perceptual_hash, perceptual_hashes
from iqa.errors import UserError, exit_on_user_error
from smart_iqa.commands import check_splits
from smart_iqa.commands.check_splits import leakage_report


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def scene(seed: int) -> Image.Image:
    """A made-up scene of 320x240 with shapes of several sizes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (18, 24, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)


COPIES = {
    "jpeg_quality_50.jpg": lambda image: image,
    "half_size.png": lambda image: image.resize((160, 120)),
    "brighter.png": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "grey.png": lambda image: image.convert("L"),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twelve scenes of one image each, and in another part, as other contents, changed copies of the first."""
    (tmp_path / "data").mkdir()
    rows = []
    for i in range(12):
        scene(i).save(tmp_path / "data" / f"{i}.png")
        rows.append({"image": f"{i}.png", "mos": 5 * i, "content": f"scene {i}", "split": "train" if i < 9 else "val"})
    for name, change in COPIES.items():
        change(scene(0)).save(tmp_path / "data" / name, quality=50)
        rows.append({"image": name, "mos": 50, "content": name, "split": "test"})
    pd.DataFrame(rows).to_csv(tmp_path / "data" / "table.csv", index=False)
    return tmp_path / "data" / "table.csv"


def command(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the script's main in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["smart-iqa check-splits", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        exit_on_user_error(check_splits.main)
    return stop.value.code


def changed(file: Path, column: str, values: dict[str, str]) -> None:
    rows = pd.read_csv(file, dtype=str)
    rows.loc[rows.image.isin(values), column] = rows.image.map(values)
    rows.to_csv(file, index=False)


# --------------------------------------------------------------------------------------------------
# Hashes and pairs


@given(
    first=arrays(np.uint64, (7, 4), elements=st.integers(0, 2**64 - 1)),
    second=arrays(np.uint64, (5, 4), elements=st.integers(0, 2**64 - 1)),
    threshold=st.integers(0, HASH_BITS),
)
def test_close_pairs_are_those_that_counting_bit_by_bit_finds(first, second, threshold: int) -> None:
    distance = [[sum((int(a) ^ int(b)).bit_count() for a, b in zip(x, y, strict=True)) for y in second] for x in first]
    expected = {(i, j, d) for i, row in enumerate(distance) for j, d in enumerate(row) if d <= threshold}
    found = close_pairs(first, second, threshold)
    assert set(zip(*found, strict=True)) == expected and len(found.first) == len(expected)
    assert (np.diff(found.distance) >= 0).all()


def test_many_rows_are_compared_in_pieces_without_losing_any() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, (300, 4), dtype=np.uint64)
    found = close_pairs(hashes, hashes, 0)
    assert found.first.tolist() == found.second.tolist() == list(range(300))


@pytest.mark.parametrize("threshold", [0, 36, long(7), long(60), long(250)])
def test_comparing_only_what_shares_a_part_misses_no_pair(threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(threshold)
    first, second = (rng.integers(0, 2**64 - 1, (n, 4), dtype=np.uint64) for n in (700, 1500))
    flipped = rng.random((600, HASH_BITS)) < rng.uniform(0, 0.25, (600, 1))
    second[:600] = first[:600] ^ np.packbits(flipped, axis=1).view(np.uint64)
    second[600:620] = first[0]  # a part that many share
    found = close_pairs(first, second, threshold)
    monkeypatch.setattr("iqa.data.near_duplicates._PAIRS_AT_ONCE", 50)
    in_pieces = close_pairs(first, second, threshold) if threshold < 250 else found
    monkeypatch.setattr("iqa.data.near_duplicates._PAIRS_AT_ONCE", 1 << 18)
    monkeypatch.setattr("iqa.data.near_duplicates._plan", lambda *_: [])
    every = close_pairs(first, second, threshold)
    assert all((a == b).all() and (a == c).all() for a, b, c in zip(every, found, in_pieces, strict=True))
    assert len(every.first) > 19


def test_no_hashes_have_no_pairs() -> None:
    none, some = np.zeros((0, 4), dtype=np.uint64), np.zeros((2, 4), dtype=np.uint64)
    assert len(close_pairs(none, some).first) == len(close_pairs(some, none).first) == 0
    assert perceptual_hashes([]).shape == (0, 4)


def test_the_hash_is_the_librarys_own(tmp_path: Path) -> None:
    scene(3).save(tmp_path / "a.png")
    bits = np.unpackbits(perceptual_hash(tmp_path / "a.png").view(np.uint8)).astype(bool)
    assert (bits == imagehash.phash(scene(3), hash_size=16).hash.ravel()).all()


def test_hashes_keep_the_order_of_the_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(20)]
    for i, path in enumerate(paths):
        scene(i).save(path)
    assert (perceptual_hashes(paths) == [perceptual_hash(path) for path in paths]).all()


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(UserError, match="a.jpg: does not open as an image"):
        perceptual_hashes([tmp_path / "a.jpg"])


@pytest.mark.parametrize("name", COPIES)
def test_a_changed_copy_is_near_and_another_scene_is_far(name: str, tmp_path: Path) -> None:
    paths = [tmp_path / "original.png", tmp_path / name, tmp_path / "other.png"]
    for path, image in zip(paths, (scene(0), COPIES[name](scene(0)), scene(1)), strict=True):
        image.save(path, quality=50)
    original, copy, other = perceptual_hashes(paths)
    assert (
        np.bitwise_count(original ^ copy).sum() <= NEAR_BITS < 2 * NEAR_BITS < np.bitwise_count(original ^ other).sum()
    )


# --------------------------------------------------------------------------------------------------
# The report


def test_copies_that_were_encoded_again_are_found_with_their_distance(table: Path) -> None:
    database = read_database("csv", data_path=table)
    near = leakage_report(database, database.table.split)["near_identical_images"]
    assert near["pairs_in_two_parts"] == len(COPIES) and near["by_parts"] == {"train-test": len(COPIES)}
    assert {tuple(example["images"]) for example in near["examples"]} == {("0.png", name) for name in COPIES}
    distances = [example["distance"] for example in near["examples"]]
    assert distances == sorted(distances) and distances[-1] <= NEAR_BITS
    assert not any(example["same_content"] for example in near["examples"])


def test_the_threshold_decides_what_is_near(table: Path) -> None:
    database = read_database("csv", data_path=table)
    near = {t: leakage_report(database, database.table.split, t)["near_identical_images"] for t in (0, HASH_BITS)}
    assert near[0]["pairs_in_two_parts"] < len(COPIES)
    assert near[HASH_BITS]["pairs_in_two_parts"] == 9 * 3 + 9 * 4 + 3 * 4
    assert near[HASH_BITS]["by_parts"] == {"train-val": 27, "train-test": 36, "val-test": 12}
    assert len(near[HASH_BITS]["examples"]) == 10


def test_byte_identical_images_are_counted_by_themselves(table: Path) -> None:
    shutil.copy(table.parent / "0.png", table.parent / "half_size.png")
    shutil.copy(table.parent / "1.png", table.parent / "2.png")
    database = read_database("csv", data_path=table)
    report = leakage_report(database, database.table.split)
    identical = report["identical_images"]
    counts = [identical[key] for key in ("groups", "groups_across_contents", "groups_in_two_parts")]
    assert counts == [2, 2, 1]
    assert identical["examples"][0] == {
        "0.png": {"content": "scene 0", "part": "train"},
        "half_size.png": {"content": "half_size.png", "part": "test"},
    }
    assert report["near_identical_images"]["pairs_in_two_parts"] == len(COPIES) - 1


def test_images_in_no_part_take_no_part_in_the_check(table: Path) -> None:
    database = read_database("csv", data_path=table)
    report = leakage_report(database, database.table.split.replace("test", ""))
    assert report["images_in_no_part"] == len(COPIES) and report["parts"]["test"] == {"images": 0, "contents": 0}
    assert report["near_identical_images"]["pairs_in_two_parts"] == 0


# --------------------------------------------------------------------------------------------------
# The command


def test_an_official_split_with_copies_is_reported_and_is_no_failure(table: Path, monkeypatch, capsys) -> None:
    assert command("csv", "--data_path", table, monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["split"] == "official split"
    assert report["parts"]["val"] == {"images": 3, "contents": 3}
    assert "near-identical pairs in two parts (within 36 of 256 bits): 4" in printed.err


def test_a_content_in_two_parts_is_reported_and_ends_with_one(table: Path, monkeypatch, capsys) -> None:
    changed(table, "content", {"1.png": "a street", "9.png": "a street"})
    assert command("csv", "--data_path", table, monkeypatch=monkeypatch) == 1
    printed = capsys.readouterr()
    contents = json.loads(printed.out)["contents_in_two_parts"]
    assert contents == {"count": 1, "examples": [{"content": "a street", "parts": ["train", "val"]}]}
    assert "contents in two parts: 1" in printed.err


def test_a_split_file_and_a_seed_are_what_is_checked(table: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    rows = pd.read_csv(table).drop(columns="split")
    rows.to_csv(table, index=False)
    reports = []
    for seed in (0, 1):
        assert command("csv", "--data_path", table, "--seed", seed, monkeypatch=monkeypatch) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["split"] == "split by content with seed 0"
    assert reports[0]["near_identical_images"] != reports[1]["near_identical_images"]
    names = rows.image.tolist()
    (tmp_path / "split.json").write_text(json.dumps({"train": names[:10], "val": names[10:12], "test": names[12:]}))
    flags = ("--split_file", tmp_path / "split.json", "--threshold", 0)
    assert command("csv", "--data_path", table, *flags, monkeypatch=monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["split"] == str(tmp_path / "split.json") and report["near_identical_images"]["threshold"] == 0
    assert report["parts"]["test"]["images"] == 4


@pytest.mark.parametrize("flags", [("--threshold", 257), ("--threshold", -1), ("--split_file", "none.json")])
def test_bad_flags_are_one_line_and_code_2(flags: tuple, table: Path, monkeypatch, capsys) -> None:
    assert command("csv", "--data_path", table, *flags, monkeypatch=monkeypatch) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# AGIQA-3K


@pytest.fixture
def agiqa():
    root = os.environ.get("IQA_DATA_ROOT")
    if not root or not Path(root, "agiqa-3k").is_dir():
        pytest.skip("IQA_DATA_ROOT is unset or has no agiqa-3k")
    return read_database("agiqa-3k", data_root=root)


@pytest.mark.long
def test_agiqa_has_nine_identical_groups_across_prompts_that_a_split_by_image_separates(agiqa) -> None:
    shuffled = np.random.default_rng(0).permutation(len(agiqa.table))
    split = pd.Series(np.where(shuffled < 596, "test", "train"), index=agiqa.table.index)
    report = leakage_report(agiqa, split)
    identical, near = report["identical_images"], report["near_identical_images"]
    assert identical["groups"] == identical["groups_across_contents"] == 9 and identical["groups_in_two_parts"] > 0
    assert report["contents_in_two_parts"]["count"] > 250
    assert near["pairs_in_two_parts"] == 0  # no two others look alike, not those of one prompt either


@pytest.mark.long
def test_agiqa_images_of_one_prompt_are_far_apart_and_encoded_again_they_are_near(agiqa, tmp_path: Path) -> None:
    rows = agiqa.table[agiqa.table.content == agiqa.table.content.iloc[0]]
    paths = [Path(path) for path in rows.path]
    hashes, again = perceptual_hashes(paths), []
    for path in paths:
        encoded = io.BytesIO()
        Image.open(path).resize((256, 256)).save(encoded, "JPEG", quality=50)
        (tmp_path / path.name).write_bytes(encoded.getvalue())
        again.append(tmp_path / path.name)
    pairs = close_pairs(hashes, perceptual_hashes(again))
    assert sorted(pairs.first) == sorted(pairs.second) == list(range(len(paths)))
    assert (pairs.first == pairs.second).all()
