"""Experiments as data: what is run, what is skipped, and what the table may say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, command, forking

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


@pytest.fixture
def finished(written, tmp_path) -> Path:
    """The file of an experiment of two rows, A1 and E6_scale, whose runs are in the folder `ablations` beside it."""
    there, here = written.folder / "ablations", tmp_path / "ablations"
    shutil.copytree(there, here)
    for file in here.rglob("config.yaml"):
        file.write_text(file.read_text().replace(str(there), str(here)))
    return Path(shutil.copy(written.folder / "two.yaml", tmp_path))


@pytest.mark.long
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


@pytest.mark.long
def test_two_jobs_share_the_runs_of_one_table(small_file, tmp_path):
    """Started at the same moment, on one table: every row is run once, by one of them."""
    with forking():
        assert command("run_ablations", small_file, "--results_dir", tmp_path / "out", "--jobs", 2) == 0
    folder = tmp_path / "out" / "small"
    table = json.loads((folder / "table.json").read_text())
    assert [row["row"] for row in table["rows"]] == ["a", "b"] and [row["seeds"] for row in table["rows"]] == [2, 2]
    for run in folder.glob("*_seed*"):
        assert len((run / "history.jsonl").read_text().splitlines()) == 1
        assert len(list((run / "tensorboard").iterdir())) == 1  # one process has trained here


def test_a_run_that_another_process_is_at_is_left_to_it_and_the_table_too(finished, tmp_path):
    held, other = (tmp_path / "ablations" / "two" / row for row in ("A1_seed0", "E6_scale_seed0"))
    for file in (held / "results.json", other / "results.json", held.parent / "table.json"):
        file.unlink()
    lock = f"from filelock import FileLock; import sys; lock = FileLock({str(held / '.lock')!r}); lock.acquire(); "
    holder = subprocess.Popen(
        [sys.executable, "-c", lock + "print('held', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    try:
        assert ablate([finished], results_dir=tmp_path / "ablations") == []
        assert (other / "results.json").is_file()
        assert not (held / "results.json").exists() and not (held.parent / "table.json").exists()
    finally:
        holder.communicate()
    (table,) = ablate([finished], results_dir=tmp_path / "ablations")
    assert [row["row"] for row in table["rows"]] == ["A1", "E6_scale"]
    assert all(row["flops"] == 2 * row["macs"] for row in table["rows"])
    assert "GFLOPs" in (held.parent / "table.md").read_text()


def test_a_job_that_fails_is_said(small_file, tmp_path, capfd):
    small_file.write_text(small_file.read_text().replace("spaq: false", "spaq: false, cross_datasets: [bid]"))
    flags = ["--results_dir", tmp_path / "out", "--seeds", 0, "--jobs", 2]
    with forking():
        assert command("run_ablations", small_file, *flags) == 2
    assert "2 of 2 jobs have failed" in capfd.readouterr().err
    assert read_ablation(str(small_file), None, [0], "out").configs["a"][0].cross_datasets == ["bid"]


def test_the_experiments_on_koniq_name_the_cross_databases_of_the_design():
    read = [read_ablation(str(file), None, [0], "out") for file in FILES]
    on_koniq = [a for a in read if a.configs[a.baseline][0].dataset == "koniq-10k"]
    assert {"demo", "agiqa3k_fusions"} == {a.name for a in read} - {a.name for a in on_koniq}
    for configs in (configs for ablation in on_koniq for configs in ablation.configs.values()):
        assert configs[0].cross_datasets == ["spaq", "kadid-10k", "agiqa-3k"]


def test_a_finished_run_of_other_settings_is_not_taken_for_this_rows(finished, tmp_path, capsys):
    finished.write_text(finished.read_text().replace("fusion: scale", "fusion: channel"))
    assert command("run_ablations", finished, "--results_dir", tmp_path / "ablations") == 2
    assert "E6_scale_seed0 was run with other settings" in capsys.readouterr().err


def test_what_is_finished_is_not_run_again_and_what_is_not_goes_on(finished, written, tmp_path):
    runs = sorted((tmp_path / "ablations" / "two").glob("*/results.json"))
    before = [run.stat().st_mtime_ns for run in runs]
    runs[0].unlink()  # as if killed before its test
    (table,) = ablate([finished], results_dir=tmp_path / "ablations")
    after = [run.stat().st_mtime_ns for run in runs]
    assert len(runs) == 2 and after[1] == before[1] and after[0] > before[0]
    assert [row["parts"] for row in table["rows"]] == [row["parts"] for row in written.ablation["rows"]]


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


def test_a_row_is_better_if_its_difference_over_all_seeds_is_on_one_side_of_zero():
    rng = np.random.default_rng(0)
    mos = rng.uniform(0, 100, 60)
    good, bad = results_of(mos + rng.normal(0, 3, 60), mos), results_of(rng.uniform(0, 100, 60), mos)
    compared = compare_rows([good, good], [bad, bad])
    assert (compared["verdict"], compared["ahead"]) == ("better", 2)
    low, high = compared["bootstrap"]["difference_ci95"]
    assert 0 < low < compared["difference"] < high
    assert compare_rows([bad, bad], [good, good])["verdict"] == "worse"
    assert compare_rows([good, bad], [bad, good])["verdict"] == "no difference shown"


def test_rows_tested_on_different_images_are_not_compared():
    one, other = results_of([1, 2, 3], [1, 2, 3]), results_of([1, 2], [1, 2])
    with pytest.raises(UserError, match="same split"):
        compare_rows([one], [other])
