"""No content is in two parts, whatever the seed, the row order or the copies; files say what they hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, strategies as st

from folders import read_database
from iqa.data import (
    PARTS,
    Database,
    check_leakage,
    contents_in_two_parts,
    kfold,
    read_split,
    split_database,
    write_split,
)
from iqa.errors import UserError


def database(contents: list[str], duplicates: list[list[int]] = (), official: list[str] | None = None) -> Database:
    """A database without files: image i has the i-th content; `duplicates` are groups of image numbers."""
    images = [f"photos/{i:04d}.png" for i in range(len(contents))]
    table = pd.DataFrame({"image": images, "path": images, "mos": 50.0, "content": contents})
    table = table.assign(split=official or "", file_hash=images)
    groups = [[images[i] for i in group] for group in duplicates]
    return Database("csv", Path(), table, (0, 100), False, duplicates=groups)


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
    splits = [split_database(of, seed=seed) for seed in range(10)]
    assert len({tuple(split) for split in splits}) == 10
    pd.testing.assert_series_equal(splits[3], split_database(of, seed=3))


def test_every_image_is_tested_once_in_cross_validation() -> None:
    of = database(by_tens(23))
    splits = kfold(of, 5, seed=1)
    tested = pd.concat([(split == "test").astype(int) for split in splits], axis=1).sum(axis=1)
    assert (tested == 1).all()
    assert all(set(split) == set(PARTS) and check_leakage(of, split) == [] for split in splits)
    sizes = [content_counts(of, split)["test"] for split in splits]
    assert sorted(sizes) == [4, 4, 5, 5, 5]


def test_contents_in_two_parts_are_named_with_their_parts_and_images_in_none_do_not_count() -> None:
    of = database(["a", "a", "b", "b"])
    split = pd.Series(["train", "test", "val", ""])
    assert contents_in_two_parts(of, split) == {"a": ["train", "test"]}
    assert contents_in_two_parts(of, pd.Series(["train", "", "val", ""])) == {}


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
    with pytest.raises(UserError, match="1 contents are in two parts, for example 'a'.*--allow_leakage"):
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
        ({"train": ["0000.png"]}, "names no test images"),
        ({"train": [], "test": ["0001.png"]}, "names no train images"),
        ({"train": ["0000.png"], "training": [], "test": ["0001.png"]}, "expected one list of image names under train"),
        ({"train": {"0000.png": 1}, "test": ["0001.png"]}, "expected one list of image names under train"),
        ({"train": [{"score": 3}], "test": ["0001.png"]}, "objects with an `image`, got {'score': 3}"),
        ({"train": [7], "test": ["0001.png"]}, "expected image names, or objects with an `image`, got 7"),
        (
            {"train": [{"image": "0000.png", "score": "good"}], "test": ["0001.png"]},
            "the score of 0000.png is 'good', which is not a number",
        ),
        (
            {"train": ["0000.png"], "test": ["0001.png"], "database": "spaq"},
            "this split is for spaq, not for csv",
        ),
        ([], "names no train and no test images: expected a JSON object"),
        ("0000.png", "names no train and no test images: expected a JSON object"),
    ],
)
def test_a_split_file_that_does_not_fit_is_refused(content: object, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=complaint):
        read_split(tmp_path / "a.json", database(["a", "b"]))


def test_images_in_no_part_stop_unless_the_file_says_it_is_partial(tmp_path: Path) -> None:
    of = database(["a", "b", "c", "d"])
    parts = {"train": ["0000.png"], "val": ["0001.png"], "test": ["0002.png"]}
    (tmp_path / "a.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match="1 images of csv are in no part, for example photos/0003.png"):
        read_split(tmp_path / "a.json", of)
    (tmp_path / "a.json").write_text(json.dumps(parts | {"partial": True}))
    assert read_split(tmp_path / "a.json", of).tolist() == ["train", "val", "test", ""]


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


# --------------------------------------------------------------------------------------------------
# Lists of other papers


def lists(
    folder: Path, of: Database, parts: dict[str, list[int]], score=lambda mos: mos, prefix: str = "their/"
) -> Path:
    """A folder of lists as other papers ship them: records with their own folder names and scores."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        chosen = of.table.loc[rows]
        records = [
            {"image": prefix + Path(image).name, "score": score(mos)}
            for image, mos in zip(chosen.image, chosen.mos, strict=True)
        ]
        (folder / f"csv_{name}.json").write_text(json.dumps(records))
    return folder


def graded(contents: list[str]) -> Database:
    """A database whose images have different scores."""
    of = database(contents)
    of.table["mos"] = [10 + 80 * i / len(contents) for i in range(len(contents))]
    return of


def test_a_folder_of_lists_is_a_split_and_another_scale_is_no_disagreement(tmp_path: Path, caplog) -> None:
    of = graded([f"c{i}" for i in range(10)])
    folder = lists(
        tmp_path / "a", of, {"train": [*range(6)], "val": [6, 7], "test": [8, 9]}, score=lambda mos: f"{1 + mos / 25}"
    )
    assert read_split(folder, of).tolist() == ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    assert caplog.text == ""


@pytest.mark.parametrize("in_a_file", [True, False])
def test_without_a_val_list_an_eighth_of_the_training_contents_validates_and_it_is_said(
    in_a_file: bool, tmp_path: Path, caplog
) -> None:
    of = graded([f"c{i // 5}" for i in range(100)])
    path = lists(tmp_path / "a", of, {"train": [*range(80)], "test": [*range(80, 100)]})
    if in_a_file:
        whole = {part: json.loads((path / f"csv_{part}.json").read_text()) for part in ("train", "test")}
        path = path / "split.txt"
        path.write_text(json.dumps({f"{part}ing": names for part, names in whole.items()}))
    split = read_split(path, of, seed=3)
    assert content_counts(of, split) == {"train": 14, "val": 2, "test": 4} and check_leakage(of, split) == []
    assert "has no val list: 10 of its training images validate" in caplog.text
    assert split.tolist() != read_split(path, of, seed=4).tolist()


def test_a_file_that_says_its_val_list_is_empty_gets_none(tmp_path: Path) -> None:
    of = database(by_tens(5))
    split = split_database(of, fractions=(0.8, 0, 0.2))
    write_split(tmp_path / "a.json", of, split, seed=0)
    assert read_split(tmp_path / "a.json", of).tolist() == split.tolist()


def test_images_that_lists_leave_out_are_in_no_part_and_it_is_said(tmp_path: Path, caplog) -> None:
    of = graded([f"c{i}" for i in range(10)])
    split = read_split(lists(tmp_path / "a", of, {"train": [*range(5)], "val": [5], "test": [6, 7]}), of)
    assert split.tolist()[8:] == ["", ""]
    assert "2 images of csv are in no part, for example photos/0008.png" in caplog.text


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda mos: 100 - mos, "its scores are the mos of csv turned round (SRCC -1.0000, PLCC -1.0000, n = 10)"),
        (lambda mos: mos**4, "its scores are not the mos of csv on another scale (SRCC 1.0000, PLCC 0."),
        (lambda mos: 3, "its scores are not the mos of csv on another scale (SRCC nan, PLCC nan, n = 10)"),
    ],
)
def test_listed_scores_that_are_other_labels_are_said_in_one_line(score, said: str, tmp_path: Path, caplog) -> None:
    of = graded([f"c{i}" for i in range(10)])
    read_split(lists(tmp_path / "a", of, {"train": [*range(6)], "val": [6, 7], "test": [8, 9]}, score), of)
    assert said in caplog.text and len(caplog.records) == 1


def test_the_end_of_a_listed_name_decides_in_any_letter_case_where_it_names_one_image(tmp_path: Path) -> None:
    of = database(["a", "b", "c"])
    of.table["image"] = ["jp2k/img1.bmp", "jpeg/img1.bmp", "jpeg/img2.bmp"]
    parts = {
        "train": ["/data/LIVE/JP2K/img1.bmp"],
        "val": [{"img_path": "live\\jpeg\\img1.bmp"}],
        "test": ["x/IMG2.BMP"],
    }
    (tmp_path / "a.json").write_text(json.dumps(parts))
    assert read_split(tmp_path / "a.json", of).tolist() == ["train", "val", "test"]
    (tmp_path / "a.json").write_text(json.dumps(parts | {"val": ["img1.bmp"]}))
    with pytest.raises(UserError, match="1 images could be several: img1.bmp"):
        read_split(tmp_path / "a.json", of)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["train.json"], "names no test images"),
        ([], "names no train and no test images"),
        (
            ["train_1.json", "train_2.json", "test.json"],
            "2 files match \\*train\\*.json \\(train_1.json, train_2.json\\)",
        ),
        (["train_test.json"], "its name says train and test"),
    ],
)
def test_a_folder_needs_one_list_for_each_part(names: list[str], complaint: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text('["0000.png"]')
    with pytest.raises(UserError, match=complaint):
        read_split(tmp_path, database(["a", "b"]))


def test_one_list_is_the_test_part_and_the_rest_is_in_none(tmp_path: Path, caplog) -> None:
    of = database(["a", "b", "c"])
    (tmp_path / "test_csv.json").write_text('[{"image": "csv/0001.png"}]')
    assert read_split(tmp_path / "test_csv.json", of).tolist() == ["", "test", ""]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "2 images of csv are in no part, for example photos/0000.png"
    ]


def test_a_list_in_a_folder_that_is_no_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"train": ["0000.png"]}')
    (tmp_path / "test.json").write_text('["0001.png"]')
    with pytest.raises(UserError, match="train.json: expected a JSON list"):
        read_split(tmp_path, database(["a", "b"]))


def test_lists_of_one_training_content_cannot_give_up_a_val_part(tmp_path: Path) -> None:
    of = graded(["same"] * 4 + ["other"] * 2)
    with pytest.raises(UserError, match="1 separate contents cannot be split into 2 parts"):
        read_split(lists(tmp_path / "a", of, {"train": [0, 1, 2, 3], "test": [4, 5]}), of)


def test_the_published_koniq_lists_read_as_the_official_split(tmp_path: Path, caplog) -> None:
    """Records as the lists of the published SMART-IQA code have them, made of true rows."""
    root = os.environ.get("IQA_DATA_ROOT")
    if not root or not Path(root, "labels").is_dir():
        pytest.skip("IQA_DATA_ROOT is unset or has no labels/: no true label files")
    true = pd.read_csv(Path(root, "labels", "koniq10k_distributions_sets.csv"))
    table = pd.DataFrame({"image": "1024x768/" + true.image_name, "mos": true.MOS, "content": true.image_name})
    of = Database("koniq-10k", Path(), table.assign(split="", file_hash="x", path=""), (0, 100), False)
    for part in ("train", "test"):
        rows = true[true.set.str.startswith(part)]
        records = [{"image": f"koniq_{part}/{r.image_name}", "score": r.MOS} for r in rows.itertuples()]
        (tmp_path / f"koniq_{part}.json").write_text(json.dumps(records))
    split = read_split(tmp_path, of)
    assert split.value_counts().to_dict() == {"train": 6176, "test": 2015, "": 1000, "val": 882}
    assert [record.getMessage().split(": ")[1].split(" images")[0] for record in caplog.records] == [
        "1000",
        "882 of its training",
    ]
    assert (split[true.set == "test"] == "test").all() and (split[true.set == "validation"] == "").all()


@pytest.mark.long
def test_agiqa_prompts_and_copies_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.environ.get("IQA_DATA_ROOT")
    if not root or not Path(root, "agiqa-3k").is_dir():
        pytest.skip("IQA_DATA_ROOT is unset or has no agiqa-3k")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    agiqa = read_database("agiqa-3k", data_root=root)
    for split in (split_database(agiqa, seed=seed) for seed in range(5)):
        assert content_counts(agiqa, split) == {"train": 210, "val": 30, "test": 60}
        assert check_leakage(agiqa, split) == []
