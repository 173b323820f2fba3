"""Experiments as data: what is run, what is skipped, and what the table may say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, command

from iqa.errors import UserError
from run_ablations import ablate, compare_rows, read_ablation

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_committed_file_resolves(file, tmp_path):
    ablation = read_ablation(str(file), None, None, str(tmp_path))
    assert ablation.baseline in ablation.configs
    networks = {repr(config) for configs in ablation.configs.values() for config in configs}
    assert len(networks) == sum(len(configs) for configs in ablation.configs.values())


@pytest.fixture
def small_file(image_folder, tmp_path):  # noqa: F811
    file = tmp_path / "small.yaml"
    shared = (
        f"{{dataset: csv, data_path: {image_folder / 'table.csv'}, backbone: {TINY}, pretrained: false, "
        "patch_size: 32, resize: none, epochs: 1, train_patch_num: 1, test_patch_num: 1, num_workers: 0, device: cpu, "
        "spaq: false}"
    )
    file.write_text(f"baseline: a\nseeds: [0, 1]\nshared: {shared}\nrows:\n  a: {{}}\n  b: {{fusion: scale}}\n")
    return file


def test_rows_are_run_once_and_tabulated(small_file, tmp_path):
    assert command("run_ablations", small_file, "--results_dir", tmp_path / "out") == 0
    runs = sorted((tmp_path / "out" / "small").glob("*/results.json"))
    assert len(runs) == 4
    before = [run.stat().st_mtime_ns for run in runs]
    (runs[0].parent / "results.json").unlink()  # as if killed before its test
    (table,) = ablate([small_file], results_dir=tmp_path / "out")
    after = [run.stat().st_mtime_ns for run in runs]
    assert after[1:] == before[1:] and after[0] > before[0]
    assert table == json.loads((tmp_path / "out" / "small" / "table.json").read_text())
    rows = table["rows"]
    srccs = [json.loads(run.read_text())["metrics"]["test"]["srcc"] for run in runs[:2]]
    assert rows[0]["parts"]["test"]["srcc"]["mean"] == pytest.approx(np.mean(srccs))
    assert rows[0]["parts"]["test"]["srcc"]["std"] == pytest.approx(np.std(srccs, ddof=1))


def test_a_finished_run_of_other_settings_is_not_taken_for_this_rows(small_file, tmp_path, capsys):
    arguments = ["--results_dir", tmp_path / "out", "--seeds", "0"]
    assert command("run_ablations", small_file, *arguments) == 0
    small_file.write_text(small_file.read_text().replace("fusion: scale", "fusion: channel"))
    assert command("run_ablations", small_file, *arguments) == 2
    assert "b_seed0 was run with other settings" in capsys.readouterr().err


def test_another_database_has_its_own_folder(small_file, tmp_path):
    assert read_ablation(str(small_file), "demo", None, "out").name == "small_demo"
    config = read_ablation(str(small_file), "demo", None, "out").configs["a"][0]
    assert (config.dataset, config.results_dir) == ("demo", "out/small_demo")


@pytest.mark.parametrize(
    "text, said",
    [
        ("rows: {a: {}}", "baseline"),
        ("baseline: a\nrows: {a: {}}\nepochs: 3", "expected baseline"),
        ("baseline: a\nrows: {a: {fusion: sum}}", "row a"),
        ("baseline: a\nrows: {a: 3}", "row a: expected settings"),
        ("baseline: a\nrows: {a: {}}\nshared: [x]", "row a: expected settings"),
        ("baseline: a\nrows: {a: {}}\nseeds: 3", "seeds: expected a list"),
        ("baseline: a\nrows: {a: {}}\nseeds: [0, 0]", "different whole numbers"),
        ("baseline: a\nrows: {a: {train_test_num: 2}}", "row a: a row is one split a seed"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(text, said, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        read_ablation(str(file), None, None, str(tmp_path))


def results_of(scores, mos):
    rows = [
        {"image": str(i), "mos": m, "score": s, "content": str(i)}
        for i, (s, m) in enumerate(zip(scores, mos, strict=True))
    ]
    return {"predictions": {"test": rows}}


def test_a_row_is_better_only_if_every_seed_says_so():
    rng = np.random.default_rng(0)
    mos = rng.uniform(0, 100, 60)
    good, bad = results_of(mos + rng.normal(0, 3, 60), mos), results_of(rng.uniform(0, 100, 60), mos)
    assert compare_rows([good, good], [bad, bad])["verdict"] == "better"
    assert compare_rows([bad, bad], [good, good])["verdict"] == "worse"
    assert compare_rows([good, bad], [bad, good])["verdict"] == "no difference shown"


def test_rows_tested_on_different_images_are_not_compared():
    one, other = results_of([1, 2, 3], [1, 2, 3]), results_of([1, 2], [1, 2])
    with pytest.raises(UserError, match="same split"):
        compare_rows([one], [other])
