"""Results files: what is stored is what was computed, what is missing is named, and what was changed is found."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, long, refusal
from hypothesis import given, strategies as st

from iqa.data import Database
from iqa.errors import UserError
from iqa.metrics import across_splits, in_words, krasula
from iqa.results import (
    TEST_PART,
    ScoredPart,
    build_results,
    check_results,
    compare_predictions,
    database_of,
    digest,
    list_fingerprint,
    part_metrics,
    part_name,
    prediction_rows,
    predictions_table,
    read_history,
    read_results,
    verify,
    write_results,
)
from iqa.system import write_json

COMMITTED = ROOT / "benchmarks" / "results"
GENERATORS = ("DALLE2", "GLIDE", "Midjourney")


def database(n: int = 60) -> Database:
    """Scores of 0..5 as stored, three generators, three images a content."""
    mos = np.random.default_rng(0).uniform(0, 100, n)
    table = pd.DataFrame({"image": [f"{i:03d}.jpg" for i in range(n)], "path": "", "mos": mos, "mos_std": 10.0})
    table["content"] = [f"prompt {i // 3}" for i in range(n)]
    table["distortion"], table["split"] = "", ""
    table["generator"] = [GENERATORS[i % 3] for i in range(n)]
    table["file_hash"] = [f"{i:032x}" for i in range(n)]
    return Database("agiqa-3k", Path(), table, stored_range=(0.0, 5.0), lower_is_better=False)


def scores_of(of: Database, noise: float, seed: int = 1) -> np.ndarray:
    return of.table["mos"].to_numpy() + np.random.default_rng(seed).normal(0, noise, len(of.table))


def results_of(of: Database, seed: int = 1) -> dict:
    """The results of a run that was tested on the whole database."""
    rows = prediction_rows(of.table, scores_of(of, 15.0, seed))
    described = {"n": len(rows), "fingerprint": of.fingerprint(), "stored_range": [0.0, 5.0]}
    part = ScoredPart(of.name, described, part_metrics(rows, of.stored_range, seed=3, resamples=200), rows, {})
    protocol = {"n": {"test": len(rows)}, "contents": {"test": 20}}
    return build_results({"dataset": of.name, "seed": 3}, {"git_commit": "0" * 40}, protocol, {TEST_PART: part})


@functools.cache
def made_once() -> dict:
    return results_of(database())


@pytest.fixture
def results() -> dict:
    return copy.deepcopy(made_once())


@pytest.mark.parametrize("name", ["agiqa-3k", "spaq"])
def test_the_name_of_a_part_gives_its_database_back(results, name):
    assert database_of(results, part_name(name, trained_on="agiqa-3k")) == name


def test_a_part_of_several_checkpoints_says_which_database_it_is_of(results):
    results["parts"] = {"spaq: one run": {"database": "spaq"}}
    assert database_of(results, "spaq: one run") == "spaq"


def test_optional_fields_that_are_null_read_as_those_that_are_missing(results, tmp_path):
    write_results(tmp_path / "results.json", results | {"training": None})
    results["protocol"]["notes"] = None
    write_results(tmp_path / "nulls.json", results | {"training": {"parameters": None}})
    assert "training" not in read_results(tmp_path)
    nulls = read_results(tmp_path / "nulls.json")
    assert nulls["training"] == {}
    assert "notes" not in nulls["protocol"]


def compared(results: dict, of: Database | None = None, resamples: int = 300, ratings: int | None = None) -> dict:
    """The results with those of a second run beside them, and the comparison of both."""
    of = of or database()
    worse = prediction_rows(of.table, scores_of(of, 30.0))
    results["metrics"]["worse"] = part_metrics(worse, of.stored_range, seed=3, resamples=200)
    results["predictions"]["worse"] = worse
    rows = results["predictions"]["test"]
    comparison = compare_predictions(rows, worse, seed=3, resamples=resamples, ratings=ratings)
    names = {"database": of.name, "a": "ours", "b": "theirs", "part_a": "test", "part_b": "worse"}
    results["comparisons"] = [names | comparison | {"words": in_words(comparison, "ours", "theirs")}]
    return results


def small() -> dict:
    """Two runs and their comparison, cheap to verify."""
    results = compared(results_of(database(9)), of=database(9), resamples=20)
    for metrics in results["metrics"].values():
        metrics["bootstrap"]["resamples"] = 20
    return results


# What is stored ------------------------------------------------------------------------------------------------


def test_rows_hold_what_is_known_of_an_image_and_nothing_else():
    of = database(3)
    rows = prediction_rows(of.table.assign(mos_std=[1.0, np.nan, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert set(rows[0]) == {"image", "mos", "mos_std", "content", "generator", "score", "file_hash"}
    assert "mos_std" not in rows[1]


def test_rounding_a_stored_score_never_ties_what_single_precision_tells_apart():
    scores = np.arange(2.0, 2.0 + 1e-4, 2.4e-7, dtype=np.float32)
    scores = np.unique(np.append(scores, np.nextafter(scores, np.float32(100), dtype=np.float32)))
    table = pd.DataFrame({"image": "a.jpg", "mos": np.zeros(len(scores))})
    assert len({row["score"] for row in prediction_rows(table, scores.astype(float))}) == len(scores)


def test_groups_are_the_generators_and_the_quality_levels_each_in_its_order(results):
    groups = results["metrics"]["test"]["groups"]
    assert list(groups) == ["generator", "quality_level"]
    assert list(groups["generator"]) == list(GENERATORS)
    assert list(groups["quality_level"]) == ["Very Low", "Low", "Mid", "High", "Very High"]
    assert all(sum(group["n"] for group in kind.values()) == 60 for kind in groups.values())


def test_a_deviation_that_is_known_of_some_images_only_gives_no_outlier_ratio():
    of, scores = database(), scores_of(database(), 15.0)
    part = of.table.assign(mos_std=[np.nan, *[10.0] * 59])
    assert "outlier_ratio" in part_metrics(prediction_rows(of.table, scores), (0, 5), 0)
    assert "outlier_ratio" not in part_metrics(prediction_rows(part, scores), (0, 5), 0)


def test_no_images_are_no_numbers_and_no_crash():
    empty = part_metrics([], (0, 100), seed=0)
    assert empty["n"] == 0 and empty["srcc"] is None and empty["groups"] == {"quality_level": {}}


@given(st.permutations(range(12)))
def test_a_fingerprint_does_not_depend_on_the_order_of_the_images(order):
    of = database(12)
    assert list_fingerprint(of.table.iloc[list(order)]) == of.fingerprint()


@pytest.mark.parametrize(("column", "value"), [("image", "x.jpg"), ("mos", 1.5), ("file_hash", "f" * 32)])
def test_a_fingerprint_depends_on_every_name_label_and_byte(column, value):
    table = database(12).table
    changed = table.copy()
    changed.loc[5, column] = value
    assert list_fingerprint(changed) != list_fingerprint(table) != list_fingerprint(table[:-1])


def test_predictions_of_other_images_are_not_compared():
    rows = prediction_rows(database(12).table, np.arange(12.0))
    with pytest.raises(UserError, match="other images or labels"):
        compare_predictions(rows, rows[::-1], seed=0)


def test_the_number_of_ratings_adds_krasulas_analyses_of_both_runs_to_a_comparison():
    of = database()
    (comparison,) = compared(results_of(of), ratings=20)["comparisons"]
    for run, noise in (("a", 15.0), ("b", 30.0)):
        expected = krasula(np.round(scores_of(of, noise), 7), of.table["mos"], of.table["mos_std"], 20)
        assert comparison["krasula"][run] == expected
    assert comparison["ratings"] == 20 and "krasula" not in compared(results_of(of))["comparisons"][0]
    rows = prediction_rows(of.table.drop(columns="mos_std"), scores_of(of, 15.0))
    with pytest.raises(UserError, match=r"mos_std\[0\] is nan"):
        compare_predictions(rows, rows, seed=0, ratings=20)


# Reading -------------------------------------------------------------------------------------------------------


def test_results_are_read_back_as_they_were_written_from_the_file_or_its_folder(results, tmp_path):
    write_results(tmp_path / "results.json", results)
    read = read_results(tmp_path)
    assert read == read_results(tmp_path / "results.json")
    assert read.pop("digest") == digest(results) and read == results
    assert predictions_table(read, "test")["score"].tolist() == [r["score"] for r in results["predictions"]["test"]]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("config",), "'config'"),
        (("predictions",), "'predictions'"),
        (("metrics", "test", "krcc"), "'metrics.test.krcc'"),
        (("predictions", "test"), "'predictions.test'"),
        (("predictions", "test", 4, "score"), r"predictions.test\[4\]: no field 'score'"),
    ],
)
def test_a_missing_field_is_named(results, path, named):
    place = results
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    with pytest.raises(UserError, match=named):
        check_results(results, "results.json")


@pytest.mark.parametrize("content", ["[]", "{", "null", '{"config": 1}'])
def test_what_is_no_results_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    for read in (read_results, verify):
        with pytest.raises(UserError, match="results.json"):
            read(tmp_path)


def test_absent_parts_and_files_are_refused_by_name(results, tmp_path):
    with pytest.raises(UserError, match="no part 'spaq'; they hold test"):
        predictions_table(results, "spaq")
    for read in (read_results, read_history):
        with pytest.raises(UserError, match="absent"):
            read(tmp_path / "absent.json")


MALFORMED = {
    "metrics.test.bootstrap": [5, {"resamples": 10, "seed": "x"}, {"resamples": True}],
    "metrics.test.groups": [5, {"generator": []}, {"generator": {"GLIDE": 5}}, {"generator": {"GLIDE": {"srcc": "x"}}}],
    "metrics.test.stored_range": ["x", [5, 0], [0], [0, float("nan")], 5, None],
    "metrics.test.krcc": ["x", [], {}],
    "databases": [[], 5],
    "databases.agiqa-3k": [[], None],
    "databases.agiqa-3k.stored_range": ["x", None],
    "parts": [[], {"test": 5}, {"test": {"database": []}}],
    "comparisons": [5, {}, [5], [{"part_a": []}], [{"resamples": "x"}], [{"seed": -1}]],
    "config.seed": ["x", -1],
    "config.dataset": [5, []],
    "predictions.test": [5, {}, [5]],
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in MALFORMED.items() for value in values])
def test_a_malformed_field_is_refused_by_file_and_name(results, tmp_path, path, value):
    *keys, last = path.split(".")
    place = results
    for key in keys:
        place = place[key]
    place[last] = value
    (tmp_path / "results.json").write_text(json.dumps(results))
    for read in (read_results, verify):
        with pytest.raises(UserError, match=rf"results\.json: .*{path.split('.')[-1]}"):
            read(tmp_path)


JUNK = [None, True, 5, -1, 1.5, "x", [], [5], {}, {"a": 5}]


SMALL = small()


@given(st.data())
def test_no_change_of_a_file_whatsoever_makes_verification_crash(data):
    results = SMALL
    path = []
    while isinstance(results, dict | list) and results and (not path or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(results) if isinstance(results, dict) else range(len(results))))
        path.append(key)
        results = results[key]
    changed = place = copy.deepcopy(SMALL)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = data.draw(st.sampled_from(JUNK))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        file.write_text(json.dumps(changed))
        said = refusal(verify, file)
        assert said is None or str(file) in said


# Verification --------------------------------------------------------------------------------------------------


def verified(results: dict, folder: Path):
    """What is found in these results, with their own digest or, where they have none, a true one."""
    write = write_json if "digest" in results else write_results
    write(folder / "results.json", results)
    return verify(folder)


def test_every_stored_number_agrees_with_the_predictions(results, tmp_path):
    found = verified(compared(results), tmp_path)
    assert found.differences == found.unchecked == []
    assert found.checked > 150


CHANGES = {
    "metrics.test.srcc": ("metrics", "test", "srcc"),
    "metrics.test.n": ("metrics", "test", "n"),
    "metrics.test.contents": ("metrics", "test", "contents"),
    "metrics.test.plcc_logistic5": ("metrics", "test", "plcc_logistic5"),
    "metrics.test.rmse_own_scale": ("metrics", "test", "rmse_own_scale"),
    "metrics.test.outlier_ratio": ("metrics", "test", "outlier_ratio"),
    "metrics.test.krcc_ci95[1]": ("metrics", "test", "krcc_ci95", 1),
    "metrics.test.fingerprint": ("metrics", "test", "fingerprint"),
    "metrics.test.groups.generator.GLIDE.srcc": ("metrics", "test", "groups", "generator", "GLIDE", "srcc"),
    "metrics.test.groups.quality_level.Mid.n": ("metrics", "test", "groups", "quality_level", "Mid", "n"),
    "protocol.n.test": ("protocol", "n", "test"),
    "protocol.contents.test": ("protocol", "contents", "test"),
    "databases.agiqa-3k.fingerprint": ("databases", "agiqa-3k", "fingerprint"),
    "comparisons[0].difference": ("comparisons", 0, "difference"),
    "comparisons[0].bootstrap.p": ("comparisons", 0, "bootstrap", "p"),
    "comparisons[0].williams.t": ("comparisons", 0, "williams", "t"),
    "comparisons[0].better": ("comparisons", 0, "better"),
    "comparisons[0].words": ("comparisons", 0, "words"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("change", ["a little", long("gone")])
def test_a_changed_value_is_found_by_its_name(results, tmp_path, name, change):
    *path, last = CHANGES[name]
    place = compared(results)
    for key in path:
        place = place[key]
    before = place[last]
    little = before + 1e-4 if isinstance(before, float) else before + 1 if isinstance(before, int) else before + "x"
    place[last] = little if change == "a little" else None
    (difference,) = verified(results, tmp_path).differences
    assert difference.name == name and difference.stored == place[last] and difference.recomputed == before


@pytest.mark.parametrize(
    ("column", "value"), [("score", 12.5), ("mos", 12.5), ("content", "other"), ("image", "x.jpg")]
)
def test_a_changed_prediction_is_found(results, tmp_path, column, value):
    results["predictions"]["test"][7][column] = value
    names = {difference.name for difference in verified(results, tmp_path).differences}
    expected = {"score": "rmse", "mos": "fingerprint", "content": "contents", "image": "fingerprint"}[column]
    assert f"metrics.test.{expected}" in names


def test_an_added_and_a_removed_prediction_are_found(results, tmp_path):
    for rows in (
        results["predictions"]["test"][:-1],
        results["predictions"]["test"] + results["predictions"]["test"][:1],
    ):
        changed = results | {"predictions": {"test": rows}}
        names = {difference.name for difference in verified(changed, tmp_path).differences}
        assert {"metrics.test.n", "metrics.test.fingerprint", "protocol.n.test"} <= names


@pytest.mark.parametrize("score", [None, float("nan"), "high"])
def test_a_prediction_that_is_no_number_is_refused_with_its_place(results, tmp_path, score):
    results["predictions"]["test"][7]["score"] = score
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"predictions\.test\[7\]\.score: expected a number"):
        verify(tmp_path)


def test_undefined_numbers_verify_as_undefined(tmp_path):
    results = results_of(database(2))
    assert results["metrics"]["test"]["srcc"] is None
    results["protocol"]["contents"]["test"] = 1
    assert verified(results, tmp_path).differences == []
    results["metrics"]["test"]["srcc"] = 0.9
    assert [d.name for d in verified(results, tmp_path).differences] == ["metrics.test.srcc"]


def test_the_digest_shows_a_change_that_no_prediction_can(results, tmp_path):
    write_results(tmp_path / "results.json", results)
    assert verify(tmp_path).differences == []
    changed = read_results(tmp_path)
    changed["provenance"]["git_commit"] = "1" * 40
    assert [difference.name for difference in verified(changed, tmp_path).differences] == ["digest"]


def test_a_number_that_the_file_cannot_give_is_said_and_not_passed_over(results, tmp_path):
    results["metrics"]["test"]["stars"] = 5
    found = verified(results, tmp_path)
    assert found.unchecked == ["metrics.test.stars"] and found.differences == []


def test_a_value_that_a_file_lacks_is_found(results, tmp_path):
    del results["metrics"]["test"]["groups"]["generator"]["GLIDE"], results["metrics"]["test"]["mae_ci95"]
    names = {difference.name for difference in verified(results, tmp_path).differences}
    assert names == {"metrics.test.groups.generator.GLIDE", "metrics.test.mae_ci95"}
    del results["metrics"]["test"]["groups"]
    assert ("metrics.test.groups", "nothing", "2 values") in verified(results, tmp_path).differences
    write_json(tmp_path / "results.json", results)
    assert ("digest", "nothing", digest(results)) in verify(tmp_path).differences


def test_a_changed_prediction_of_two_runs_is_a_difference_of_their_comparison_and_not_the_end(results, tmp_path):
    compared(results)["predictions"]["worse"].pop()
    named = {difference.name: difference for difference in verified(results, tmp_path).differences}
    assert "other images or labels" in named["comparisons[0]"].recomputed and "metrics.worse.n" in named
    results["comparisons"][0]["part_b"] = "gone"
    named = {difference.name: difference for difference in verified(results, tmp_path).differences}
    assert "'gone', but the file has no predictions of that name" in named["comparisons[0]"].recomputed


def test_the_protocol_counts_the_test_parts_of_all_databases_trained_on_together(results, tmp_path):
    rows = prediction_rows(database(12).table, np.arange(12.0))
    results["metrics"]["spaq"] = part_metrics(rows, None, seed=3, resamples=50)
    results["predictions"]["spaq"] = rows
    results["protocol"] |= {"trained_on": {"agiqa-3k": {}, "spaq": {}}}
    named = {difference.name for difference in verified(results, tmp_path).differences}
    assert named == {"protocol.n.test", "protocol.contents.test"}
    results["protocol"] |= {"n": {"train": 9, "test": 72}, "contents": {"train": 3, "test": 24}}
    assert verified(results, tmp_path).differences == []
    results["protocol"]["trained_on"]["bid"] = {}
    found = verified(results, tmp_path)
    assert found.differences == [] and found.unchecked == ["protocol.n.test", "protocol.contents.test"]


def test_a_split_file_beside_the_results_must_name_the_images_that_were_tested(results, tmp_path):
    of = database()
    names = of.table["image"].tolist()
    split = {"database": of.name, "fingerprint": of.fingerprint(), "train": [], "val": [], "test": names}
    write_json(tmp_path / "split.json", split)
    assert verified(results, tmp_path).differences == []
    write_json(tmp_path / "split.json", split | {"fingerprint": "0", "test": names[:-1], "train": names[-1:]})
    assert {d.name for d in verify(tmp_path).differences} == {
        "images in either predictions.test or split.json",
        "databases.agiqa-3k.fingerprint against split.json",
    }
    write_json(tmp_path / "split.json", split | {"database": "spaq", "test": []})  # of another database: not ours
    assert verify(tmp_path).differences == []


@pytest.mark.parametrize(("folds", "differing"), [(2, []), (3, ["splits beside the summary"])])
def test_a_summary_of_folds_has_as_many_splits_as_folds(tmp_path, folds, differing):
    of_splits = [results_of(database(), seed) for seed in range(2)]
    for number, results in enumerate(of_splits):
        write_results(tmp_path / f"split_{number:02d}.json", results)
    summary = {"test": across_splits([results["metrics"]["test"] for results in of_splits])}
    write_json(tmp_path / "summary.json", {"config": {"folds": folds, "train_test_num": 1}, "summary": summary})
    assert [difference.name for difference in verify(tmp_path).differences] == differing


@pytest.mark.parametrize("content", [{"summary": 5}, {"summary": {"test": []}}, {"summary": {}, "config": []}])
def test_a_malformed_summary_is_refused_by_name(results, tmp_path, content):
    write_results(tmp_path / "split_00.json", results)
    write_json(tmp_path / "summary.json", content)
    with pytest.raises(UserError, match=r"summary\.json.*: expected an object"):
        verify(tmp_path / "summary.json")


@pytest.mark.parametrize("layout", ["split_{:02d}/results.json", "split_{:02d}.json"])
def test_a_summary_is_verified_from_the_results_of_its_splits(tmp_path, layout):
    of_splits = [results_of(database(), seed) for seed in range(3)]
    for number, results in enumerate(of_splits):
        file = tmp_path / layout.format(number)
        file.parent.mkdir(exist_ok=True)
        write_results(file, results)
    summary = {"test": across_splits([results["metrics"]["test"] for results in of_splits])}
    content = {"config": {"train_test_num": 3}, "summary": summary}
    write_json(tmp_path / "summary.json", content)
    assert verify(tmp_path).differences == []
    changed = copy.deepcopy(content)
    changed["summary"]["test"]["srcc"]["median"] += 0.001
    changed["summary"]["test"]["groups"]["generator"]["GLIDE"]["plcc"]["std"] += 0.001
    changed["config"]["train_test_num"] = 4
    write_json(tmp_path / "summary.json", changed)
    assert {d.name for d in verify(tmp_path / "summary.json").differences} == {
        "splits beside the summary",
        "summary.test.srcc.median",
        "summary.test.groups.generator.GLIDE.plcc.std",
    }
    of_splits[1]["metrics"]["test"]["krcc"] = 0.5
    write_json(tmp_path / "summary.json", content)
    write_json(tmp_path / layout.format(1), of_splits[1])
    names = [d.name for d in verify(tmp_path).differences]
    assert f"{layout.format(1)}: metrics.test.krcc" in names and "summary.test.krcc.mean" in names


def test_a_summary_alone_cannot_be_verified(tmp_path):
    write_json(tmp_path / "summary.json", {"config": {}, "summary": {}})
    with pytest.raises(UserError, match="nothing to verify it from"):
        verify(tmp_path)


FILES = sorted(COMMITTED.rglob("*.json"))
FIRST = {file.parent: file for file in reversed(FILES)}  # of each folder


@pytest.mark.parametrize(
    "file", [file if FIRST[file.parent] == file else long(file) for file in FILES],
    ids=[str(file.relative_to(COMMITTED)) for file in FILES],
)  # fmt: skip
def test_every_committed_result_is_what_its_predictions_give(file):
    if {"metrics", "summary"} & json.loads(file.read_text()).keys():
        assert verify(file).differences == []
