"""`smart-iqa evaluate`: which images are tested, what the results say of them, who is better, what is verified."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trees
from helpers import TINY, command

import smart_iqa
from folders import Database, read_database
from iqa.checkpoint import save_checkpoint
from iqa.config import Config
from iqa.data import write_split
from iqa.errors import UserError
from iqa.metrics import krcc, mae, plcc, rmse, srcc
from iqa.results import metrics_table, write_results
from iqa.runtime import make_accelerator
from models_swin import SmartIQA
from smart_iqa import comparing as script
from smart_iqa.scorer import Scorer
from smart_iqa.testing import scored_part, split_file, trained_test_table

SMALL = {"backbone": TINY, "pretrained": False, "resize": "none", "patch_size": 32, "test_patch_num": 1}
SMALL |= {"num_workers": 0, "device": "cpu", "spaq": False}
KINDS = ("blur", "noise", "jpeg")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """`demo`, ten contents of three distortions with an official split; `spaq`, nine images; `agiqa-3k`, 16."""
    root, rows = tmp_path_factory.mktemp("data"), []
    parts = ["train"] * 4 + ["val"] * 2 + ["test"] * 4
    for content, part in enumerate(parts):
        for kind in KINDS:
            name = f"images/scene{content}_{kind}.png"
            trees.image_file(root / "demo" / name, (40, 36))
            rows.append({"image": name, "mos": 5 + 3 * len(rows), "content": f"scene{content}", "distortion": kind})
            rows[-1] |= {"level": 1, "split": part, "source": "photograph"}
    pd.DataFrame(rows).to_csv(root / "demo" / "labels.csv", index=False)
    trees.spaq(root / "spaq", [(f"{i}.jpg", 10.0 * i) for i in range(9)])
    generated = [
        (f"{kind}_{i}.jpg", f"prompt {i}", 0.3 * i + 0.1, 0.4) for i in range(8) for kind in ("DALLE2", "sd1.5")
    ]
    trees.agiqa(root / "agiqa-3k", generated)
    return root


@pytest.fixture(scope="module")
def demo(data_root) -> Database:
    return read_database("demo", data_root=data_root)


@pytest.fixture(scope="module")
def runs(data_root, demo, tmp_path_factory) -> Path:
    """Runs that were never trained: a and b on the official split, c on one that shares half of its test part."""
    folder = tmp_path_factory.mktemp("runs")
    contents = demo.table["content"]
    other = contents.map(
        {f"scene{i}": "test" if i in (0, 1, 6, 7) else "val" if i == 2 else "train" for i in range(10)}
    )
    make_run(folder / "a", demo, demo.table["split"], data_root, seed=0)
    make_run(folder / "b", demo, demo.table["split"], data_root, seed=1)
    make_run(folder / "c", demo, other, data_root, seed=2, select_on="test")
    return folder


def make_run(folder: Path, database: Database, split: pd.Series, data_root: Path, **settings: object) -> None:
    """What a finished run leaves that scoring needs."""
    config = Config(name=folder.name, dataset="demo", data_root=str(data_root), **SMALL, **settings)
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    write_split(folder / "split.json", database, split, config.seed)
    torch.manual_seed(config.seed)
    architecture = {"backbone": config.backbone, "fusion": config.fusion, "pretrained": False}
    save_checkpoint(folder / "best.safetensors", SmartIQA(**architecture), {"architecture": architecture})


def evaluate(output: Path, data_root: Path, runs: Sequence[Path], *more: object) -> dict:
    arguments = ["--data_root", data_root, "--device", "cpu", "--output", output, *more]
    assert command("evaluate", "--checkpoint", *runs, *arguments) == 0
    return json.loads(output.read_text())


def refused(capsys, *arguments: object) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert command("evaluate", *arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and "Traceback" not in "".join(said)
    return said[-1]


@pytest.fixture(scope="module")
def one(runs, data_root, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("one") / "results.json"
    return evaluate(output, data_root, [runs / "a"], "--datasets", "demo", "spaq")


@pytest.fixture(scope="module")
def two(runs, data_root, tmp_path_factory) -> Path:
    """The results file of two checkpoints on two databases."""
    output = tmp_path_factory.mktemp("two") / "results.json"
    evaluate(output, data_root, [runs / "a", runs / "b"], "--datasets", "demo", "spaq")
    return output


# What is tested, and what is said of it ----------------------------------------------------------------------


def test_the_database_trained_on_is_tested_on_its_test_part_and_another_whole(one):
    assert one["metrics"]["demo"]["n"] == 12 and one["metrics"]["spaq"]["n"] == 9
    assert {row["content"] for row in one["predictions"]["demo"]} == {f"scene{i}" for i in range(6, 10)}
    assert one["parts"]["demo"]["list"] == "test part" and one["parts"]["demo"]["official"]
    assert one["parts"]["spaq"]["list"] == "whole database"


@pytest.mark.parametrize("part", ["demo", "spaq"])
def test_metrics_are_those_of_the_stored_predictions(one, part):
    rows = pd.DataFrame(one["predictions"][part])
    for name, statistic in {"srcc": srcc, "plcc": plcc, "krcc": krcc, "rmse": rmse, "mae": mae}.items():
        assert one["metrics"][part][name] == pytest.approx(statistic(rows["score"], rows["mos"]), abs=1e-12)
        assert len(one["metrics"][part][f"{name}_ci95"]) == 2


def test_srcc_by_distortion_and_by_quality_level_is_in_the_results(one):
    groups, rows = one["metrics"]["demo"]["groups"], pd.DataFrame(one["predictions"]["demo"])
    assert list(groups["distortion"]) == sorted(KINDS)
    blurred = rows[rows["distortion"] == "blur"]
    assert groups["distortion"]["blur"]["srcc"] == pytest.approx(srcc(blurred["score"], blurred["mos"]))
    assert list(groups["quality_level"]) == ["Very Low", "Low", "Mid", "High", "Very High"]
    assert list(one["metrics"]["spaq"]["groups"]) == ["quality_level"]  # one distortion is no grouping


def test_a_list_tested_whole_has_the_fingerprint_of_its_database_and_a_part_its_own(one, demo):
    assert one["metrics"]["spaq"]["fingerprint"] == one["databases"]["spaq"]["fingerprint"]
    tested = demo.table[demo.table["split"] == "test"]
    assert one["metrics"]["demo"]["fingerprint"] == dataclasses.replace(demo, table=tested).fingerprint()
    assert one["databases"]["demo"]["fingerprint"] == demo.fingerprint()
    assert one["parts"]["demo"]["fingerprint"] == one["metrics"]["demo"]["fingerprint"]


def test_results_say_seed_split_versions_commit_and_what_chose_the_checkpoint(one, runs):
    assert {"seed", "versions", "git_commit", "git_dirty"} <= one["provenance"].keys()
    assert one["parts"]["demo"]["split_files"] == {"a": str(runs / "a" / "split.json")}
    assert one["parts"]["demo"]["split_seeds"] == {"a": 0}
    assert one["protocol"]["name"] == "ours" and one["protocol"]["selected_on"] == "val"


def test_a_checkpoint_chosen_on_test_stays_marked(runs, data_root, tmp_path, capsys):
    results = evaluate(tmp_path / "c.json", data_root, [runs / "c"], "--datasets", "demo")
    assert results["protocol"]["selected_on"] == "test"
    assert results["protocol"]["name"] == "ours, selected on test"
    assert "c was chosen on the test part" in results["protocol"]["notes"][0]
    assert "note: c was chosen on the test part" in capsys.readouterr().out


def test_groups_are_printed_when_asked_for(runs, data_root, tmp_path, capsys):
    for flags, printed in (([], False), (["--groups"], True)):
        capsys.readouterr()
        evaluate(tmp_path / f"{printed}.json", data_root, [runs / "a"], "--datasets", "demo", *flags)
        assert ("quality level" in capsys.readouterr().out) == printed


def test_python_gets_what_the_command_writes_and_names_one_thing_without_a_list(runs, data_root, tmp_path):
    written = evaluate(tmp_path / "r.json", data_root, [runs / "a"], "--datasets", "demo")
    returned = smart_iqa.evaluate(runs / "a", "demo", data_root=str(data_root), device="cpu")
    returned = json.loads(json.dumps(returned))
    assert returned.keys() == written.keys() - {"digest"}
    assert all(returned[key] == written[key] for key in returned.keys() - {"provenance", "timings"})


@pytest.mark.parametrize(
    ("checkpoints", "datasets", "options", "said"),
    [
        ([], "demo", {}, "at least one checkpoint"),
        ("run", [], {}, "one database"),
        ("run", "demo", {"protocol": "paper", "test_patch_num": 3}, "without test_mode and test_patch_num"),
        ("run", "demos", {}, "unknown database 'demos'"),
    ],
)
def test_what_cannot_be_tested_is_refused_before_anything_is_read(checkpoints, datasets, options, said):
    with pytest.raises(UserError, match=said):
        smart_iqa.evaluate(checkpoints, datasets, **options)


def test_the_published_protocol_tests_as_its_configuration_says_and_is_labelled(runs, data_root, tmp_path, monkeypatch):
    cheap = tmp_path / "paper.yaml"  # 20 crops of 224 would only take time
    cheap.write_text("resize: 48x40\npatch_size: 32\ntest_mode: random\ntest_patch_num: 2\nselect_on: test\n")
    published = script.resolve(script.load_yaml(script.PAPER))
    assert (published.resize, published.test_mode, published.test_patch_num) == ("512x384", "random", 20)
    monkeypatch.setattr(script, "PAPER", cheap)
    results = evaluate(tmp_path / "r.json", data_root, [runs / "a"], "--datasets", "demo", "--protocol", "paper")
    assert results["protocol"]["name"] == "paper"
    assert results["protocol"]["test_crops"] == "random, 2" and results["protocol"]["resize"] == "48x40"
    assert results["protocol"]["selected_on"] == "val"


def test_a_list_from_elsewhere_is_tested_and_labelled_but_not_on_what_the_run_has_seen(
    runs, data_root, demo, tmp_path, capsys
):
    images = demo.table["image"]
    unseen, seen = tmp_path / "unseen.json", tmp_path / "seen.json"
    lists = {"train": images[:12].tolist(), "val": [], "test": images[24:].tolist(), "partial": True}
    unseen.write_text(json.dumps(lists))
    seen.write_text(json.dumps(lists | {"train": images[6:12].tolist(), "test": images[:6].tolist()}))
    asked = ["--datasets", "demo", "--protocol", "playground", "--split_file"]
    results = evaluate(tmp_path / "r.json", data_root, [runs / "a"], *asked, unseen)
    assert results["protocol"]["name"] == results["parts"]["demo"]["list"] == "playground"
    assert [row["image"] for row in results["predictions"]["demo"]] == images[24:].tolist()
    said = refused(capsys, "--checkpoint", runs / "a", "--data_root", data_root, *asked, seen)
    assert "a has seen the contents of 6 of the 6 listed test images" in said


# Several checkpoints -------------------------------------------------------------------------------------------


def test_two_checkpoints_are_compared_on_each_database_in_words(two):
    results = json.loads(two.read_text())
    assert list(results["metrics"]) == ["demo: a", "spaq: a", "demo: b", "spaq: b"]
    compared = results["comparisons"]
    assert [(c["database"], c["a"], c["b"], c["n"]) for c in compared] == [
        ("demo", "a", "b", 12),
        ("spaq", "a", "b", 9),
    ]
    for c in compared:
        difference = results["metrics"][c["part_a"]]["srcc"] - results["metrics"][c["part_b"]]["srcc"]
        assert c["difference"] == pytest.approx(difference, abs=1e-12)
    on_demo, on_spaq = (c["words"] for c in compared)
    assert on_demo.startswith(("a is ahead of b: ", "b is ahead of a: "))
    assert on_demo.endswith("but 4 contents are too few to decide, at least 6 are needed")
    assert "paired bootstrap over contents decides" in on_spaq


def test_the_table_has_a_row_for_each_database_and_checkpoint_and_says_who_is_better(runs, data_root, tmp_path, capsys):
    evaluate(tmp_path / "r.json", data_root, [runs / "a", runs / "b"], "--datasets", "spaq", "demo")
    lines = capsys.readouterr().out.splitlines()
    rows = [" ".join(line.split()[:2]) for line in lines if line.strip().startswith(("spaq: ", "demo: "))]
    assert rows[:4] == ["spaq: a", "spaq: b", "demo: a", "demo: b"]
    assert any("significant" in line and line.startswith("spaq: ") for line in lines)
    assert any("too few to decide" in line and line.startswith("demo: ") for line in lines)


def test_the_number_of_ratings_adds_krasulas_areas_and_they_verify(runs, data_root, tmp_path, capsys):
    asked = ["--datasets", "agiqa-3k", "--ratings", 15]
    results = evaluate(tmp_path / "r.json", data_root, [runs / "a", runs / "b"], *asked)
    found = results["comparisons"][0]["krasula"]
    said = capsys.readouterr().out
    area_a, area_b = (found[run]["auc_different_similar"] for run in "ab")
    told = f"different from similar pairs a {area_a:.4f}, b {area_b:.4f}"
    assert f"agiqa-3k: area under the ROC (Krasula et al. 2016), telling {told}" in said
    assert command("evaluate", "--verify", tmp_path / "r.json") == 0
    results["comparisons"][0]["krasula"]["b"]["auc_better_worse"] += 0.01
    (tmp_path / "changed.json").write_text(json.dumps(results))
    assert command("evaluate", "--verify", tmp_path / "changed.json") == 1
    assert "comparisons[0].krasula.b.auc_better_worse" in capsys.readouterr().out


def test_three_checkpoints_are_compared_with_the_first(runs, data_root, tmp_path, capsys):
    paths = [runs / name for name in "bac"]
    results = evaluate(tmp_path / "r.json", data_root, paths, "--datasets", "spaq")
    assert [(c["a"], c["b"]) for c in results["comparisons"]] == [("b", "a"), ("b", "c")]
    assert "not corrected" in capsys.readouterr().out


def test_images_of_another_database_that_a_run_has_learned_from_are_said_and_counted(runs, data_root, demo, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data_root, root)
    learned = demo.table["path"][demo.table["split"] == "train"].tolist()
    shutil.copy(learned[3], root / "spaq" / "TestImage" / "2.jpg")
    results = evaluate(tmp_path / "r.json", root, [runs / "a", runs / "b"], "--datasets", "spaq", "demo")
    for name in ("a", "b"):
        found = results["parts"][f"spaq: {name}"]["images_in_training"]
        assert found["identical_images"] == 1 and found["training_images"] == len(learned)
        assert "images_in_training" not in results["parts"][f"demo: {name}"]  # its own test part
        assert any(note.startswith(f"spaq: {name}: 1 of 9 images are byte-") for note in results["protocol"]["notes"])


def test_training_images_that_are_not_here_are_not_passed_over_in_silence(runs, data_root, tmp_path):
    shutil.copytree(data_root / "spaq", tmp_path / "data" / "spaq")
    results = evaluate(tmp_path / "r.json", tmp_path / "data", [runs / "a"], "--datasets", "spaq")
    (note,) = results["protocol"]["notes"]
    assert note.startswith("spaq: a: not compared with the images of training: demo: no database at")


def test_runs_with_different_splits_are_compared_where_none_has_trained(runs, data_root, tmp_path):
    results = evaluate(tmp_path / "r.json", data_root, [runs / "a", runs / "c"], "--datasets", "demo")
    for part in ("demo: a", "demo: c"):
        assert {row["content"] for row in results["predictions"][part]} == {"scene6", "scene7"}
    assert any("6 of 12 test images left out" in note for note in results["protocol"]["notes"])


def test_runs_without_a_common_test_image_are_refused(runs, data_root, demo, tmp_path, capsys):
    split = demo.table["split"].map({"train": "test", "val": "val", "test": "train"})
    make_run(tmp_path / "d", demo, split, data_root)
    arguments = ["--data_root", data_root, "--datasets", "demo", "--output", tmp_path / "r.json"]
    assert "no image is in the test part of all of a, d" in refused(
        capsys, "--checkpoint", runs / "a", tmp_path / "d", *arguments
    )


def test_checkpoints_of_the_same_name_are_told_apart_by_their_path(runs, data_root, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.copytree(runs / "b", tmp_path / "more" / "a")
    paths = [runs / "a", tmp_path / "more" / "a"]
    results = evaluate(tmp_path / "r.json", data_root, paths, "--datasets", "spaq")
    assert list(results["checkpoints"]) == [str(path) for path in paths]


def test_the_workers_of_a_table_end_when_it_is_scored(demo):
    scorer = Scorer(SmartIQA(TINY, "concat"), Config(**SMALL | {"num_workers": 1}), make_accelerator("cpu"))
    table = pd.concat([demo.table] * 3, ignore_index=True)
    before = set(multiprocessing.active_children())
    for _ in range(2):
        assert np.isfinite(scorer.score_table(table)).all()
        assert set(multiprocessing.active_children()) <= before


# Split files of a run ------------------------------------------------------------------------------------------


def test_a_run_on_several_databases_has_a_split_file_for_each(demo, tmp_path):
    swapped = demo.table["split"].map({"train": "test", "val": "val", "test": "train"})
    write_split(tmp_path / "split.json", demo, demo.table["split"], 0)
    assert split_file(tmp_path, "demo") == tmp_path / "split.json"
    assert split_file(tmp_path, "spaq") is None
    write_split(tmp_path / "split_demo.json", demo, swapped, 0)
    assert set(trained_test_table(tmp_path, demo)["content"]) == {f"scene{i}" for i in range(4)}


def test_a_published_file_is_tested_on_the_official_test_part_and_without_one_not_at_all(demo, tmp_path):
    assert len(trained_test_table(tmp_path, demo)) == 12
    unsplit = dataclasses.replace(demo, table=demo.table.assign(split=""))
    with pytest.raises(UserError, match="the test part is unknown"):
        trained_test_table(tmp_path, unsplit)


def test_a_run_on_two_databases_is_tested_on_the_test_part_of_both(runs, data_root, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "both")
    spaq = read_database("spaq", data_root=data_root)
    parts = pd.Series(["train"] * 4 + ["val"] * 2 + ["test"] * 3, index=spaq.table.index)
    write_split(tmp_path / "both" / "split_spaq.json", spaq, parts, 0)
    file = tmp_path / "both" / "config.yaml"
    file.write_text(file.read_text().replace("also_train_on: []", "also_train_on:\n- spaq"))
    results = evaluate(tmp_path / "r.json", data_root, [tmp_path / "both"], "--datasets", "spaq", "demo")
    assert list(results["metrics"]) == ["spaq", "demo"]
    assert results["metrics"]["spaq"]["n"] == 3 and results["metrics"]["demo"]["n"] == 12
    assert results["metrics"]["spaq"]["fingerprint"] != results["databases"]["spaq"]["fingerprint"]
    assert command("evaluate", "--verify", tmp_path / "r.json") == 0


# Verification --------------------------------------------------------------------------------------------------


def test_untouched_results_verify_and_the_count_of_numbers_is_said(two, capsys):
    assert command("evaluate", "--verify", two) == 0
    said = capsys.readouterr().out
    assert "numbers checked, all agree" in said and int(said.split(": ")[1].split()[0]) > 200


def test_a_changed_value_is_named_with_what_is_stored_and_what_it_should_be(two, tmp_path, capsys):
    results = json.loads(two.read_text())
    results["metrics"]["demo: a"]["krcc"] = 0.987
    (tmp_path / "changed.json").write_text(json.dumps(results))
    assert command("evaluate", "--verify", two, tmp_path / "changed.json") == 1
    said = capsys.readouterr().out
    assert "changed.json: metrics.demo: a.krcc: stored 0.987, recomputed " in said


def test_a_file_that_cannot_be_verified_does_not_hide_the_others(two, tmp_path, capsys):
    (tmp_path / "no.json").write_text("{}")
    assert command("evaluate", "--verify", tmp_path / "no.json", two) == 2
    said = capsys.readouterr()
    assert "no field 'config'" in said.err and "all agree" in said.out


def test_verification_says_what_it_could_not_check(two, tmp_path, capsys):
    assert command("evaluate", "--verify", two) == 0
    assert "not checked" not in capsys.readouterr().out
    results = json.loads(two.read_text())
    results["metrics"]["demo: a"]["stars"] = 5
    write_results(tmp_path / "stars.json", results)
    assert command("evaluate", "--verify", tmp_path / "stars.json") == 0
    assert "metrics.demo: a.stars: cannot be recomputed from this file, not checked" in capsys.readouterr().out


# Bad input -----------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_and_exit_code_two(runs, data_root, tmp_path, capsys):
    run, output = runs / "a", tmp_path / "r.json"
    (tmp_path / "several" / "split_00").mkdir(parents=True)
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "linked").symlink_to(run)
    weights, two_runs = run / "best.safetensors", ("--checkpoint", run, runs / "b")
    cases = {
        (): "required: --checkpoint, --datasets",
        ("--checkpoint", run): "required: --datasets",
        ("--checkpoint", run, "--datasets", "nonsense"): "unknown database 'nonsense'",
        ("--checkpoint", run, "--datasets", "kadid-10k"): str(data_root / "kadid-10k"),
        ("--checkpoint", tmp_path / "absent", "--datasets", "demo"): "absent",
        ("--checkpoint", run, run, "--datasets", "demo"): "given twice",
        ("--checkpoint", run, weights, "--datasets", "demo"): f"{weights} is given twice, first as {run}",
        ("--checkpoint", run, tmp_path / "linked", "--datasets", "demo"): "linked is given twice",
        ("--checkpoint", run, "--datasets", "demo", "--ratings", "9"): "give at least two",
        (*two_runs, "--datasets", "demo", "--ratings", "0"): "at least 1 rating",
        (*two_runs, "--datasets", "spaq", "--ratings", "9"): "spaq does not say how far the ratings",
        ("--checkpoint", tmp_path / "several", "--datasets", "demo"): "split_00",
        ("--checkpoint", run, "--datasets", "demo", "--protocol", "playground"): "--split_file",
        ("--checkpoint", run, "--datasets", "demo", "--split_file", "x.json"): "--protocol playground",
        ("--checkpoint", run, "--datasets", "demo", "--protocol", "paper", "--test_patch_num", "3"): "fixes the crops",
        ("--checkpoint", run, "--datasets", "demo", "--output", tmp_path / "there.json"): "exists",
        ("--checkpoint", run, "--datasets", "demo", "--output", tmp_path / "no" / "r.json"): "no folder",
        ("--verify", run, "--checkpoint", run): "without --checkpoint",
        ("--verify", tmp_path / "absent.json"): "absent.json",
    }
    for arguments, expected in cases.items():
        more = ["--output", output] if "--output" not in arguments else []
        assert expected in refused(capsys, *arguments, "--data_root", data_root, *more), arguments
    assert not output.exists() and (tmp_path / "there.json").read_text() == "{}"


def test_scores_that_are_not_finite_are_refused_with_the_image(demo):
    scores = np.arange(len(demo.table), dtype=float)
    scores[[4, 7]] = np.nan, np.inf
    with pytest.raises(UserError, match=rf"2 of 30 scores are not finite, the first that of {demo.table.image[4]}"):
        scored_part(demo, demo.table, scores, seed=0)


@pytest.mark.parametrize(
    ("rows", "scores", "reason"),
    [(2, [1.0, 2.0], "n = 2"), (12, [50.0] * 12, "scores are all 50"), (3, [1.0, 2.0, 3.0], "no interval: 1 content")],
)
def test_what_cannot_be_computed_is_a_dash_in_the_table_with_the_reason(demo, rows, scores, reason):
    metrics = scored_part(demo, demo.table[:rows], np.array(scores), seed=0).metrics
    table = metrics_table({"demo": metrics})
    assert " - " in table or table.splitlines()[1].endswith("-")
    assert reason in table
