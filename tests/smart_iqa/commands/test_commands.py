"""The commands as a user types them: what they write, and their one line on bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trees
from helpers import ROOT, SMALL, command, empty_checkpoint, fill
from PIL import Image

from iqa.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> Path:
    """A finished run."""
    results = tmp_path_factory.mktemp("results")
    assert train(pictures, results, "--name", "run", "--attention_fusion") == 0
    return results / "run"


def train(pictures: Path, results: Path, *more: object) -> int:
    table = pictures / "table.csv"
    return command("train_swin", "--dataset", "csv", "--data_path", table, *SMALL, "--results_dir", results, *more)


def test_a_run_leaves_everything_that_is_promised(run):
    written = {path.name for path in run.iterdir()}
    promised = {"config.yaml", "history.jsonl", "best.safetensors", "last.safetensors", "results.json", "split.json"}
    assert promised | {"tensorboard", ".lock"} == written
    results = json.loads((run / "results.json").read_text())
    metrics, predictions = results["metrics"]["test"], results["predictions"]["test"]
    assert {"n", "srcc", "plcc", "krcc", "rmse", "srcc_ci95"} <= metrics.keys()
    assert metrics["n"] == len(predictions) == 8
    assert {"image", "mos", "score"} <= predictions[0].keys()
    assert results["config"]["fusion"] == "channel"
    assert len((run / "history.jsonl").read_text().splitlines()) == 2


def test_the_test_part_shares_no_content_with_the_rest(run):
    split = json.loads((run / "split.json").read_text())
    scenes = {part: {name.split("_")[0] for name in split[part]} for part in ("train", "val", "test")}
    assert not scenes["train"] & scenes["test"] and not scenes["val"] & scenes["test"]
    assert not scenes["train"] & scenes["val"]


def test_a_checkpoint_remembers_how_it_was_made(run):
    _, records = read_checkpoint(run / "best.safetensors")
    assert records["made"]["architecture"]["backbone"] == "nano"
    assert records["made"]["architecture"]["fusion"] == "channel"


def test_an_existing_run_is_never_written_over(run, pictures, capsys):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert train(pictures, run.parent, "--name", "run") == 2
    assert "--resume" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}


def test_resuming_a_complete_run_changes_nothing(run, pictures):
    before = (run / "results.json").read_bytes()
    assert command("train_swin", "--resume", run) == 0
    assert before == (run / "results.json").read_bytes()


def test_resuming_with_another_setting_is_refused(run, capsys):
    assert command("train_swin", "--resume", run, "--lr", "0.5") == 2
    assert "lr is 0.0001" in capsys.readouterr().err


def test_a_killed_run_resumes_to_the_bits_of_one_that_was_not(pictures, tmp_path):
    long = ["--epochs", "3", "--no_early_stopping", "--train_patch_num", "4"]
    assert train(pictures, tmp_path, "--name", "whole", *long) == 0
    flags = ["--dataset", "csv", "--data_path", pictures / "table.csv", *SMALL, *long]
    flags += ["--results_dir", tmp_path, "--name", "killed"]
    started = [sys.executable, str(ROOT / "train_swin.py"), *map(str, flags)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in these tests: sums depend on the number of threads
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=one_thread)
    last, deadline = tmp_path / "killed" / "last.safetensors", time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert last.exists() and not (tmp_path / "killed" / "results.json").exists()
    assert command("train_swin", "--resume", tmp_path / "killed") == 0
    tensors = [read_checkpoint(tmp_path / name / "last.safetensors")[0] for name in ("whole", "killed")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    scores = [json.loads((tmp_path / n / "results.json").read_text())["predictions"] for n in ("whole", "killed")]
    assert scores[0] == scores[1]


@pytest.fixture
def stopped(run, pictures, tmp_path) -> tuple[Path, Path]:
    """A run that was killed before its test, and the folder of its images."""
    shutil.copytree(pictures, tmp_path / "data")
    assert train(tmp_path / "data", tmp_path, "--name", "run", "--epochs", "1") == 0
    (tmp_path / "run" / "results.json").unlink()
    return tmp_path / "run", tmp_path / "data"


def test_a_run_goes_on_only_with_the_data_it_has_learned_from(stopped, capsys):
    run, data = stopped
    split, config = (run / "split.json").read_bytes(), (run / "config.yaml").read_bytes()
    table = pd.read_csv(data / "table.csv")
    table[~table.content.isin(["scene3", "scene4"])].to_csv(data / "table.csv", index=False)
    capsys.readouterr()
    assert command("train_swin", "--resume", run) == 2
    assert "error: csv: its labels or images are not those that" in capsys.readouterr().err
    assert (run / "split.json").read_bytes() == split and (run / "config.yaml").read_bytes() == config
    table.to_csv(data / "table.csv", index=False)
    Image.new("RGB", (48, 40)).save(data / "scene3_0.png")
    assert command("train_swin", "--resume", run) == 2
    assert not (run / "results.json").exists()


def test_a_run_goes_on_with_its_split_wherever_the_data_lies(stopped, tmp_path, monkeypatch):
    run, data = stopped
    split = (run / "split.json").read_bytes()
    data.rename(tmp_path / "moved")
    monkeypatch.setattr("smart_iqa.training_data.split_database", None)  # another version may split otherwise
    assert command("train_swin", "--resume", run, "--data_path", tmp_path / "moved" / "table.csv") == 0
    assert (run / "split.json").read_bytes() == split and (run / "results.json").exists()


def test_a_run_without_its_split_does_not_go_on(stopped, capsys):
    run, _ = stopped
    (run / "split.json").unlink()
    assert command("train_swin", "--resume", run) == 2
    assert "split.json is gone" in capsys.readouterr().err


def test_what_changes_nothing_that_is_computed_may_change_on_the_way(stopped, tmp_path):
    run, data = stopped
    flags = ["--num_workers", "1", "--no_cache", "--checkpoint_every", "1", "--batch_size", "16"]
    assert command("train_swin", "--resume", run, "--epochs", "2", *flags) == 2  # the cosine would be another
    assert command("train_swin", "--resume", run, *flags) == 0
    (run / "results.json").unlink()
    assert command("train_swin", "--resume", run, "--lr_scheduler", "none") == 2


def test_a_run_with_a_constant_rate_may_go_on_for_more_epochs_but_not_fewer(pictures, tmp_path):
    constant = ["--lr_scheduler", "none", "--train_patch_num", "2"]
    assert train(pictures, tmp_path, "--name", "long", "--epochs", "3", *constant) == 0
    assert train(pictures, tmp_path, "--name", "short", "--epochs", "2", *constant) == 0
    (tmp_path / "short" / "results.json").unlink()
    assert command("train_swin", "--resume", tmp_path / "short", "--epochs", "1") == 2
    assert command("train_swin", "--resume", tmp_path / "short", "--epochs", "3") == 0
    long, short = (read_checkpoint(tmp_path / name / "last.safetensors")[0] for name in ("long", "short"))
    assert all(torch.equal(long[name], short[name]) for name in long)


def test_a_terminated_run_says_how_to_go_on(pictures, tmp_path):
    flags = [
        "--dataset",
        "csv",
        "--data_path",
        pictures / "table.csv",
        *SMALL,
        "--epochs",
        "9",
        "--train_patch_num",
        "3",
    ]
    started = [sys.executable, ROOT / "train_swin.py", *flags, "--results_dir", tmp_path, "--name", "run"]
    with subprocess.Popen(list(map(str, started)), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "epoch 1/9" in line:
                process.terminate()
                break
        said = process.stderr.read().strip().splitlines()[-1]
    assert process.returncode == 128 + signal.SIGTERM
    assert said.startswith("stopped in epoch 2 after ") or said.startswith("stopped after epoch 1")
    assert said.endswith(f"; go on with: python train_swin.py --resume {tmp_path / 'run'}")
    assert command("train_swin", "--resume", tmp_path / "run", "--num_workers", "1") == 0


def test_one_folder_takes_one_run_at_a_time(stopped, pictures, tmp_path, capsys):
    run, _ = stopped
    holder = "import sys, time; from iqa.system import lock_folder; from pathlib import Path\n"
    holder += "with lock_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", holder, run], stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout.readline() == b"held\n"
        capsys.readouterr()
        assert command("train_swin", "--resume", run) == 2
        assert "run is being written by another process" in capsys.readouterr().err
        other.kill()
    (run / ".last.safetensors.77.tmp").write_text("left by a killed run")
    assert command("train_swin", "--resume", run) == 0
    assert not list(run.glob(".*.tmp"))


def test_a_folder_that_a_run_killed_at_its_start_has_left_takes_a_new_run(pictures, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".config.yaml.77.tmp").write_text("half")
    assert train(pictures, tmp_path, "--name", "new", "--epochs", "1") == 0


def test_several_splits_give_one_folder_each_and_a_summary(pictures, tmp_path):
    assert train(pictures, tmp_path, "--name", "many", "--epochs", "1", "--train_test_num", "2") == 0
    tests = [json.loads((tmp_path / f"many/split_{i:02d}/split.json").read_text())["test"] for i in range(2)]
    assert tests[0] != tests[1]
    summary = json.loads((tmp_path / "many" / "summary.json").read_text())["summary"]["test"]["srcc"]
    assert summary["n"] == 2 and {"mean", "median", "std"} <= summary.keys()
    (tmp_path / "many" / "summary.json").unlink()
    (tmp_path / "many" / "split_01" / "results.json").unlink()  # as if killed in the second split
    first = (tmp_path / "many" / "split_00" / "results.json").stat().st_mtime_ns
    assert command("train_swin", "--resume", tmp_path / "many") == 0
    assert (tmp_path / "many" / "split_00" / "results.json").stat().st_mtime_ns == first
    again = json.loads((tmp_path / "many" / "summary.json").read_text())["summary"]["test"]["srcc"]
    assert again == summary


def test_splits_that_cannot_be_made_leave_nothing_behind(pictures, tmp_path, capsys):
    assert train(pictures, tmp_path, "--name", "many", "--folds", "99") == 2
    assert "cannot be split into 99 parts" in capsys.readouterr().err
    assert not (tmp_path / "many").exists()
    assert train(pictures, tmp_path, "--name", "many", "--epochs", "1", "--folds", "3") == 0
    tests = [json.loads((tmp_path / f"many/split_{i:02d}/split.json").read_text())["test"] for i in range(3)]
    assert sorted(image for test in tests for image in test) == sorted(pd.read_csv(pictures / "table.csv")["image"])


def test_splits_whose_statistics_are_undefined_are_tabulated_all_the_same(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    rows = [{"image": f"{i}.png", "mos": 10.0 * i, "content": f"c{i}"} for i in range(6)]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)  # one test image has no correlation
    assert train(tmp_path, tmp_path / "results", "--name", "few", "--epochs", "1", "--train_test_num", "2") == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["test", "SRCC", "0", "-", "-", "-"] in printed


def test_print_config_needs_no_data(capsys):
    assert command("train_swin", "--dataset", "spaq", "--data_root", "/nowhere", "--print_config") == 0
    assert "dataset: spaq" in capsys.readouterr().out


def test_an_absent_database_for_the_cross_test_stops_before_the_first_step_unless_it_may_be_skipped(
    pictures, tmp_path, caplog, capsys
):
    arguments = ["--name", "cross", "--epochs", "1", "--cross_datasets", "kadid-10k", "--data_root", tmp_path]
    assert train(pictures, tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert f"no database at {tmp_path / 'kadid-10k'}; get it from https://" in said and "--skip_absent" in said
    assert not (tmp_path / "cross").exists()
    assert train(pictures, tmp_path, *arguments, "--skip_absent") == 0
    assert f"going on without: to test on kadid-10k: no database at {tmp_path / 'kadid-10k'}" in caplog.text


def test_images_of_a_cross_test_that_are_among_those_of_training_are_said_and_counted(pictures, tmp_path, caplog):
    trees.spaq(tmp_path / "spaq", [(f"{i}.png", 10.0 * i) for i in range(9)])
    for i, scene in enumerate(("scene0_0", "scene1_0", "scene2_0", "scene3_0", "scene4_0")):  # some of them trained on
        shutil.copy(pictures / f"{scene}.png", tmp_path / "spaq" / "TestImage" / f"{i}.png")
    arguments = ["--name", "cross", "--epochs", "1", "--cross_datasets", "spaq", "--data_root", tmp_path]
    assert train(pictures, tmp_path, *arguments) == 0
    names = json.loads((tmp_path / "cross" / "split.json").read_text())["train"]
    copied = sum(f"scene{i}_0.png" in names for i in range(5))
    protocol = json.loads((tmp_path / "cross" / "results.json").read_text())["protocol"]
    found = protocol["images_in_training"]["spaq"]
    assert copied and found["identical_images"] == copied and found["images"] == 9
    assert any(f"spaq: {copied} of 9 images are byte-identical" in note for note in protocol["notes"])
    assert f"spaq: {copied} of 9 images are byte-identical" in caplog.text


def test_predict_scores_files_and_folders_and_writes_csv(run, pictures, tmp_path, capsys):
    one = pictures / "scene0_0.png"
    assert command("predict", one, pictures, "--checkpoint", run, "--output", tmp_path / "scores.csv") == 0
    table = pd.read_csv(tmp_path / "scores.csv")
    assert len(table) == 40 and table["score"].between(0, 100).all()
    assert str(one) in capsys.readouterr().out


def test_a_score_depends_on_the_picture_only(run, pictures):
    from smart_iqa.scorer import load_model

    scorer = load_model(run, device="cpu")
    paths = [pictures / f"scene{i}_0.png" for i in range(4)]
    together = scorer.score(paths)
    assert isinstance(scorer.score(str(paths[2])), float)
    assert scorer.score(paths[2]) == pytest.approx(together[2], abs=1e-4)


def test_predict_scores_what_it_can_and_names_what_it_cannot(run, pictures, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    assert command("predict", tmp_path, pictures / "scene1_0.png", "--checkpoint", run) == 2
    said = capsys.readouterr()
    assert "scene1_0.png" in said.out and "broken.jpg" in said.err


def test_evaluate_repeats_the_test_of_the_run(run, tmp_path):
    output = tmp_path / "evaluation.json"
    assert command("evaluate", "--checkpoint", run, "--datasets", "csv", "--device", "cpu", "--output", output) == 0
    again = json.loads(output.read_text())["metrics"]["csv"]
    before = json.loads((run / "results.json").read_text())["metrics"]["test"]
    assert again["srcc"] == pytest.approx(before["srcc"], abs=1e-9) and again["n"] == before["n"]


def test_the_ridge_baseline_is_tested_on_the_same_images(run):
    assert command("ridge-baseline", "--checkpoint", run) == 0
    ridge = json.loads((run / "ridge_baseline.json").read_text())["predictions"]["test"]
    ours = json.loads((run / "results.json").read_text())["predictions"]["test"]
    assert [row["image"] for row in ridge] == [row["image"] for row in ours]


def test_figures_show_what_the_results_hold(run, tmp_path, capsys):
    assert command("generate_paper_figures", run, "--output", tmp_path) == 0
    manifest = json.loads((tmp_path / "figures.json").read_text())
    metrics = json.loads((run / "results.json").read_text())["metrics"]["test"]
    assert manifest["figures"]["prediction_scatter"]["values"]["run"]["srcc"] == metrics["srcc"]
    assert (tmp_path / "training_curves.pdf").stat().st_size > 1000
    assert "cross_database" in manifest["missing"]
    assert "missing  cross_database" in capsys.readouterr().out


def test_attention_analysis_writes_weights_that_sum_to_one(run, tmp_path):
    arguments = ["--checkpoint", run, "--dataset", "csv", "--num_samples", 2, "--crops", 3, "--device", "cpu"]
    assert command("analyze_attention", *arguments, "--output", tmp_path) == 0
    analysis = json.loads((tmp_path / "attention_analysis.json").read_text())
    assert list(analysis["levels"]) == ["Very Low", "Low", "Mid", "High", "Very High"]
    for row in analysis["images"]:
        assert sum(row[f"stage {i}"] for i in range(4)) == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "attention_by_level.png").exists()


def test_bad_input_is_one_line_and_exit_code_two(pictures, run, tmp_path, capsys):
    table = pictures / "table.csv"
    bad_yaml = tmp_path / "bad.yaml"
    bad_yaml.write_text("learning_rate: 0.1\n")
    wrong = pd.read_csv(table)
    wrong.loc[3, "mos"] = np.nan
    nan_table = pictures / "nan.csv"
    wrong.to_csv(nan_table, index=False)
    wrong.loc[3, "mos"] = 120.0
    range_table = pictures / "range.csv"
    wrong.to_csv(range_table, index=False)
    cases = {
        ("--dataset", "koniq-10k", "--data_root", tmp_path): str(tmp_path / "koniq-10k"),
        ("--dataset", "csv", "--data_path", table, "--mos_column", "quality"): "image, mos, content",
        ("--dataset", "csv", "--data_path", nan_table): "not a number",
        ("--dataset", "csv", "--data_path", range_table): "--mos_range",
        ("--dataset", "nonsense"): "known",
        ("--attention_fusion", "--no_multiscale"): "attention_fusion",
        ("--fusion", "concat", "--no_multiscale"): "contradict",
        ("--model_size", "tiny", "--backbone", "resnet50"): "contradict",
        ("--config", bad_yaml): "learning_rate",
        ("--config", tmp_path / "absent.yaml"): "absent.yaml",
        ("--resume", tmp_path / "nothing"): "nothing to resume",
        ("--dataset", "csv", "--data_path", table, "--backbone", "resnet5O"): "resnet50",
    }  # fmt: skip
    for arguments, expected in cases.items():
        assert command("train_swin", *arguments, "--results_dir", tmp_path / "none") == 2, arguments
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ") and len(said.splitlines()) == 1, said
        assert expected in said, (arguments, said)
    assert not (tmp_path / "none").exists()


def test_compile_without_a_compiler_is_one_line_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no_such_compiler")
    assert train(tmp_path, tmp_path, "--name", "compiled", "--compile") == 2
    assert "no no_such_compiler here" in capsys.readouterr().err


def test_a_checkpoint_of_another_architecture_is_refused(run, tmp_path, capsys):
    from iqa.checkpoint import save_checkpoint

    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    made = read_checkpoint(run / "best.safetensors")[1]["made"]
    save_checkpoint(tmp_path / "best.safetensors", torch.nn.Linear(2, 2), made)
    assert command("predict", ROOT / "README.md", "--checkpoint", tmp_path) == 2
    assert "another architecture" in capsys.readouterr().err


def test_a_published_file_is_a_checkpoint_like_any_other(pictures, tmp_path):
    file = tmp_path / "published.pth"
    torch.save({name: fill(name, tuple(t.shape)) for name, t in empty_checkpoint().items()}, file)
    assert command("predict", pictures / "scene0_0.png", "--checkpoint", file, "--output", tmp_path / "s.csv") == 0
    assert len(pd.read_csv(tmp_path / "s.csv")) == 1


def test_a_run_chosen_on_the_test_part_says_so_in_its_results(pictures, tmp_path, caplog):
    assert train(pictures, tmp_path, "--name", "marked", "--epochs", "1", "--select_on", "test") == 0
    assert "chosen on the test split" in caplog.text
    protocol = json.loads((tmp_path / "marked" / "results.json").read_text())["protocol"]
    assert protocol["selected_on"] == "test" and protocol["name"] == "ours, selected on test"
