"""No content is in two parts, whatever the seed, the row order or the copies; files say what they hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import read_database
from iqa.database import Database
from iqa.errors import UserError
from iqa.splits import (
    PARTS,
    check_leakage,
    kfold,
    read_split,
    split_database,
    splits_many,
    write_split,
)


def database(contents: list[str], duplicates: list[list[int]] = (), official: list[str] | None = None) -> Database:
    """A database without files: image i has the i-th content; `duplicates` are groups of image numbers."""
    images = [f"photos/{i:04d}.png" for i in range(len(contents))]
    table = pd.DataFrame({"image": images, "path": images, "mos": 50.0, "content": contents})
    table = table.assign(split=official or "", file_hash=images)
    groups = [[images[i] for i in group] for group in duplicates]
    return Database("csv", Path("."), table, (0, 100), False, duplicates=groups)


def by_tens(count: int) -> list[str]:
    """`count` contents of ten images each, as a synthetic database has them."""
    return [f"content {i}" for i in range(count) for _ in range(10)]


def content_counts(of: Database, split: pd.Series) -> dict[str, int]:
    return of.table.content.groupby(split).nunique().to_dict()


def test_parts_are_70_10_20_percent_of_the_contents() -> None:
    of = database(by_tens(30))
    assert content_counts(of, split_database(of)) == {"train": 21, "val": 3, "test": 6}


@given(
    images_per_content=st.lists(st.integers(1, 5), min_size=8, max_size=40),
    pairs=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_no_content_and_no_identical_image_is_ever_in_two_parts(
    images_per_content: list[int], pairs: list[tuple[int, int]], seed: int
) -> None:
    contents = [f"c{i}" for i, count in enumerate(images_per_content) for _ in range(count)]
    groups = [[i % len(contents), j % len(contents)] for i, j in pairs]
    of = database(contents, groups)
    split = split_database(of, seed=seed)
    assert set(split) == set(PARTS)
    assert check_leakage(of, split) == []


def test_copies_join_contents_in_chains() -> None:
    contents = [f"c{i}" for i in range(20)]
    of = database(contents, duplicates=[[0, 7], [7, 13], [13, 19]])
    for seed in range(30):
        assert split_database(of, seed=seed)[[0, 7, 13, 19]].nunique() == 1


def test_a_made_split_does_not_depend_on_row_order() -> None:
    of = database(by_tens(20))
    shuffled = Database("csv", of.root, of.table.sample(frac=1, random_state=3), (0, 100), False)
    pd.testing.assert_series_equal(split_database(of), split_database(shuffled).sort_index())


def test_the_split_of_a_seed_is_this_one_on_every_machine() -> None:
    """Golden: ten contents in the order of sha256("0 c<i>"), the first 7 train, then 1 val, 2 test."""
    split = split_database(database([f"c{i}" for i in range(10)]), seed=0)
    assert "".join(part[1] for part in split) == "rerrrrrrea"


def test_many_splits_differ_and_repeat_with_their_seed() -> None:
    of = database(by_tens(30))
    splits = splits_many(of, 10, seed=5)
    assert len({tuple(split) for split in splits}) == 10
    pd.testing.assert_series_equal(splits[3], split_database(of, seed=8))


def test_every_image_is_tested_once_in_cross_validation() -> None:
    of = database(by_tens(23))
    splits = kfold(of, 5, seed=1)
    tested = pd.concat([(split == "test").astype(int) for split in splits], axis=1).sum(axis=1)
    assert (tested == 1).all()
    assert all(set(split) == set(PARTS) and check_leakage(of, split) == [] for split in splits)
    sizes = [content_counts(of, split)["test"] for split in splits]
    assert sorted(sizes) == [4, 4, 5, 5, 5]


def test_an_official_split_is_taken_as_it_is() -> None:
    official = ["train", "val", "test"] * 4
    of = database([f"c{i}" for i in range(12)], official=official)
    assert split_database(of, seed=9).tolist() == official
    assert split_database(of, seed=9, official=False).tolist() != official


def test_an_official_split_without_validation_gives_up_an_eighth_of_its_training_contents() -> None:
    of = database(by_tens(20), official=["train"] * 160 + ["test"] * 40)
    split = split_database(of)
    assert (split[160:] == "test").all() and content_counts(of, split) == {"train": 14, "val": 2, "test": 4}
    assert check_leakage(of, split) == []
    assert not split.equals(split_database(of, seed=1))


def test_an_official_split_with_copies_across_parts_is_reported_and_used() -> None:
    of = database([f"c{i}" for i in range(6)], [[0, 5]], official=["train"] * 3 + ["val"] + ["test"] * 2)
    split = split_database(of)
    assert split[0] == "train" and split[5] == "test"
    assert "1 groups of identical images" in check_leakage(of, split)[0]


def test_a_content_in_two_parts_stops_unless_allowed() -> None:
    of = database(["a", "a", "b", "c"])
    split = pd.Series(["train", "test", "val", "test"])
    with pytest.raises(UserError, match="1 contents are in two parts, for example 'a'"):
        check_leakage(of, split)
    assert len(check_leakage(of, split, allow=True)) == 1


def test_what_cannot_be_split_says_why() -> None:
    with pytest.raises(UserError, match="2 separate contents cannot be split into 3 parts"):
        split_database(database(["a", "b"] * 5))
    with pytest.raises(UserError, match="at least 3 folds"):
        kfold(database(by_tens(5)), 2)
    with pytest.raises(UserError, match="add up to 1"):
        split_database(database(by_tens(5)), fractions=(0.8, 0.8, 0.2))
    with pytest.raises(UserError, match="its official split has no test images"):
        split_database(database(["a", "b"], official=["train", "val"]))
    with pytest.raises(UserError, match="images in no part"):
        split_database(database(["a", "b", "c"], official=["train", "test", ""]))


def test_two_parts_are_enough_when_one_share_is_zero() -> None:
    split = split_database(database(by_tens(10)), fractions=(0.8, 0, 0.2))
    assert split.value_counts().to_dict() == {"train": 80, "test": 20}


def test_a_written_split_reads_back_the_same(tmp_path: Path) -> None:
    of = database(by_tens(10))
    split = split_database(of, seed=4)
    write_split(tmp_path / "splits" / "a.json", of, split, seed=4)
    pd.testing.assert_series_equal(read_split(tmp_path / "splits" / "a.json", of), split, check_names=False)
    written = json.loads((tmp_path / "splits" / "a.json").read_text())
    assert written["fingerprint"] == of.fingerprint() and written["seed"] == 4 and not written["partial"]
    assert [file.name for file in (tmp_path / "splits").iterdir()] == ["a.json"]


def test_a_partial_split_keeps_its_gaps_and_says_so(tmp_path: Path) -> None:
    of = database(["a", "b", "c", "d"])
    split = pd.Series(["train", "", "val", "test"])
    write_split(tmp_path / "a.json", of, split, seed=None)
    assert read_split(tmp_path / "a.json", of).tolist() == split.tolist()


def test_names_without_a_folder_and_records_are_understood(tmp_path: Path) -> None:
    of = database(["a", "b", "c"])
    content = {"train": ["0000.png"], "val": [{"image": "0001.png", "score": 3}], "test": ["photos/0002.png"]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_split(tmp_path / "a.json", of).tolist() == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            {"train": ["0000.png", "gone.png"], "test": ["0001.png"]},
            "1 images are not in the database: gone.png",
        ),
        ({"train": ["0000.png"], "test": ["0000.png", "0001.png"]}, "1 images are named twice: 0000.png"),
        ({"train": ["0000.png"]}, "1 images of csv are in no part, for example photos/0001.png"),
        (
            {"train": ["0000.png"], "test": ["0001.png"], "database": "spaq"},
            "this split is for spaq, not for csv",
        ),
        (["0000.png"], "expected a JSON object"),
    ],
)
def test_a_split_file_that_does_not_fit_is_refused(content: object, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=complaint):
        read_split(tmp_path / "a.json", database(["a", "b"]))


def test_a_split_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.json: cannot be read as a split file"):
        read_split(tmp_path / "none.json", database(["a"]))


def test_a_split_of_other_labels_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    of = database(by_tens(5))
    split = split_database(of)
    write_split(tmp_path / "a.json", of, split, seed=0)
    of.table["mos"] = 60.0
    assert read_split(tmp_path / "a.json", of).tolist() == split.tolist()
    assert "other labels or other pixels" in caplog.text


def test_agiqa_prompts_and_copies_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.environ.get("IQA_DATA_ROOT")
    if not root or not Path(root, "agiqa-3k").is_dir():
        pytest.skip("IQA_DATA_ROOT is unset or has no agiqa-3k")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    agiqa = read_database("agiqa-3k", data_root=root)
    for split in splits_many(agiqa, 5):
        assert content_counts(agiqa, split) == {"train": 210, "val": 30, "test": 60}
        assert check_leakage(agiqa, split) == []
