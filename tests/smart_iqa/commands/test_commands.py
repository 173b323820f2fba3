"""The commands as a user types them: what they write, and their one line on bad input."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trees
from helpers import ROOT, SMALL, TINY, command, empty_checkpoint, fill, in_forks
from PIL import Image

from benchmarks.kills import differences
from HyperIQASolver_swin import HyperIQASolver
from iqa.checkpoint import read_checkpoint
from smart_iqa import testing


@pytest.fixture(scope="module")
def run(image_folder, tmp_path_factory) -> Path:
    """A finished run."""
    results = tmp_path_factory.mktemp("results")
    assert train(image_folder, results, "--name", "run", "--attention_fusion") == 0
    return results / "run"


def train(image_folder: Path, results: Path, *more: object) -> int:
    table = image_folder / "table.csv"
    return command("train_swin", "--dataset", "csv", "--data_path", table, *SMALL, "--results_dir", results, *more)


def test_a_run_leaves_everything_that_is_promised(run):
    written = {path.name for path in run.iterdir()}
    promised = {"config.yaml", "history.jsonl", "best.safetensors", "results.json", "split.json"}
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
    assert records["made"]["architecture"]["backbone"] == TINY
    assert records["made"]["architecture"]["fusion"] == "channel"


def test_an_existing_run_is_never_written_over(run, image_folder, capsys):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert train(image_folder, run.parent, "--name", "run") == 2
    assert "--resume" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}


def test_resuming_a_complete_run_changes_nothing(run, image_folder):
    before = (run / "results.json").read_bytes()
    assert command("train_swin", "--resume", run) == 0
    assert before == (run / "results.json").read_bytes()


def test_resuming_with_another_setting_is_refused(run, capsys):
    assert command("train_swin", "--resume", run, "--lr", "0.5") == 2
    assert "lr is 0.0001" in capsys.readouterr().err


def kill_in_second_epoch(monkeypatch, number: int) -> None:
    """Send the process that trains a signal within a batch, when one epoch is done and one batch of the next."""
    learn = HyperIQASolver._learn

    def learn_killed(self, i, batch):
        if (self.so_far.epoch, i) == (2, 1):
            os.kill(os.getpid(), number)
        learn(self, i, batch)

    monkeypatch.setattr(HyperIQASolver, "_learn", learn_killed)


@pytest.mark.long
def test_a_killed_run_resumes_to_the_bits_of_one_that_was_not(image_folder, tmp_path, monkeypatch):
    long = ["--train_patch_num", "2", "--keep_last"]
    assert train(image_folder, tmp_path, "--name", "whole", *long) == 0
    with monkeypatch.context() as patch:
        kill_in_second_epoch(patch, signal.SIGKILL)
        ended = in_forks(tmp_path, lambda: train(image_folder, tmp_path, "--name", "killed", *long))
    assert ended.code == signal.SIGKILL
    assert not (tmp_path / "killed" / "results.json").exists()
    assert command("train_swin", "--resume", tmp_path / "killed") == 0
    assert differences(tmp_path / "killed", tmp_path / "whole") == ""


def test_a_deterministic_run_is_said_and_kept_to_and_on_a_cpu_has_the_bits_of_any_other(
    run, image_folder, tmp_path, monkeypatch, capsys
):
    learn, found = HyperIQASolver._learn, set()

    def learn_noted(self, i, batch):
        found.add(torch.are_deterministic_algorithms_enabled())
        learn(self, i, batch)

    monkeypatch.setattr(HyperIQASolver, "_learn", learn_noted)
    assert train(image_folder, tmp_path, "--name", "run", "--attention_fusion", "--deterministic") == 0
    assert found == {True} and not torch.are_deterministic_algorithms_enabled()
    weights = [read_checkpoint(folder / "run" / "best.safetensors")[0] for folder in (tmp_path, run.parent)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert "deterministic: true" in (tmp_path / "run" / "config.yaml").read_text().splitlines()
    capsys.readouterr()
    assert command("train_swin", "--resume", tmp_path / "run", "--no_deterministic") == 2
    assert "deterministic is True in" in capsys.readouterr().err


@pytest.fixture(scope="module")
def untested(image_folder, tmp_path_factory) -> Path:
    """The folder of a run that was killed before its test and of its images, `data`."""
    folder = tmp_path_factory.mktemp("untested")
    shutil.copytree(image_folder, folder / "data")
    assert train(folder / "data", folder, "--name", "run", "--epochs", "1", "--keep_last") == 0
    (folder / "run" / "results.json").unlink()
    return folder


@pytest.fixture
def stopped(untested, tmp_path) -> tuple[Path, Path]:
    """A run that was killed before its test, and the folder of its images."""
    shutil.copytree(untested, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(untested), str(tmp_path)))
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


@pytest.mark.long
def test_a_complete_run_goes_on_for_more_epochs_at_a_constant_rate_if_it_has_kept_what_that_needs(
    image_folder, tmp_path, capsys
):
    constant = ["--lr_scheduler", "none", "--train_patch_num", "2"]
    assert train(image_folder, tmp_path, "--name", "long", "--epochs", "3", "--keep_last", *constant) == 0
    assert train(image_folder, tmp_path, "--name", "short", "--epochs", "2", "--keep_last", *constant) == 0
    long, short = tmp_path / "long", tmp_path / "short"
    before = (short / "results.json").read_bytes()
    shutil.copytree(short, tmp_path / "slim")
    (tmp_path / "slim" / "last.safetensors").unlink()
    assert command("train_swin", "--resume", short, "--epochs", "1") == 2
    assert command("train_swin", "--resume", short, "--epochs", "3") == 0
    tensors = [read_checkpoint(run / "last.safetensors")[0] for run in (long, short)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert (short / "results_of_2_epochs.json").read_bytes() == before
    capsys.readouterr()
    assert command("train_swin", "--resume", tmp_path / "slim", "--epochs", "3") == 2
    assert "needs the last.safetensors that a run keeps with --keep_last alone" in capsys.readouterr().err
    (tmp_path / "slim" / "results.json").unlink()
    assert command("train_swin", "--resume", tmp_path / "slim") == 2
    assert "last.safetensors is gone, and going on needs it" in capsys.readouterr().err


def test_the_best_checkpoint_is_fp32_weights_and_nothing_else(run):
    tensors, _ = read_checkpoint(run / "best.safetensors")
    assert all(name.startswith("model.") for name in tensors)
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float32}


def test_a_terminated_run_says_how_to_go_on(image_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_in_second_epoch(patch, signal.SIGTERM)
        ended = in_forks(tmp_path, lambda: train(image_folder, tmp_path, "--name", "run", "--train_patch_num", "2"))
    assert ended.code == 128 + signal.SIGTERM
    run = tmp_path / "run"
    assert ended.err.strip().splitlines()[-1] == (
        f"stopped in epoch 2 after 2 of 4 batches, saved in {run / 'last.safetensors'}; "
        f"go on with: python train_swin.py --resume {run}"
    )
    assert command("train_swin", "--resume", run, "--num_workers", "1") == 0


@pytest.mark.long
def test_the_workers_of_training_have_ended_when_the_tests_begin(image_folder, tmp_path, monkeypatch):
    alive, test = [], testing.test_databases
    monkeypatch.setattr(
        testing, "test_databases", lambda *what: (alive.extend(multiprocessing.active_children()), test(*what))[1]
    )
    assert train(image_folder, tmp_path, "--name", "run", "--epochs", "1", "--num_workers", "1") == 0
    assert alive == []


def test_one_folder_takes_one_run_at_a_time(stopped, image_folder, tmp_path, capsys):
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


def test_a_folder_that_a_run_killed_at_its_start_has_left_takes_a_new_run(image_folder, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".config.yaml.77.tmp").write_text("half")
    assert train(image_folder, tmp_path, "--name", "new", "--epochs", "1") == 0


@pytest.mark.long
def test_several_splits_give_one_folder_each_and_a_summary(image_folder, tmp_path):
    assert train(image_folder, tmp_path, "--name", "many", "--epochs", "1", "--train_test_num", "2") == 0
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


def test_splits_that_cannot_be_made_leave_nothing_behind(image_folder, tmp_path, capsys):
    assert train(image_folder, tmp_path, "--name", "many", "--folds", "99") == 2
    assert "cannot be split into 99 parts" in capsys.readouterr().err
    assert not (tmp_path / "many").exists()


@pytest.mark.long
def test_every_image_is_in_the_test_part_of_one_fold(image_folder, tmp_path):
    assert train(image_folder, tmp_path, "--name", "many", "--epochs", "1", "--folds", "3") == 0
    tests = [json.loads((tmp_path / f"many/split_{i:02d}/split.json").read_text())["test"] for i in range(3)]
    assert sorted(image for test in tests for image in test) == sorted(pd.read_csv(image_folder / "table.csv")["image"])


@pytest.mark.long
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
    image_folder, tmp_path, caplog, capsys
):
    arguments = ["--name", "cross", "--epochs", "1", "--cross_datasets", "kadid-10k", "--data_root", tmp_path]
    assert train(image_folder, tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert f"no database at {tmp_path / 'kadid-10k'}; get it from https://" in said and "--skip_absent" in said
    assert not (tmp_path / "cross").exists()
    assert train(image_folder, tmp_path, *arguments, "--skip_absent") == 0
    assert f"going on without: to test on kadid-10k: no database at {tmp_path / 'kadid-10k'}" in caplog.text


def test_images_of_a_cross_test_that_are_among_those_of_training_are_said_and_counted(image_folder, tmp_path, caplog):
    trees.spaq(tmp_path / "spaq", [(f"{i}.png", 10.0 * i) for i in range(9)])
    for i, scene in enumerate(("scene0_0", "scene1_0", "scene2_0", "scene3_0", "scene4_0")):  # some of them trained on
        shutil.copy(image_folder / f"{scene}.png", tmp_path / "spaq" / "TestImage" / f"{i}.png")
    arguments = ["--name", "cross", "--epochs", "1", "--cross_datasets", "spaq", "--data_root", tmp_path]
    assert train(image_folder, tmp_path, *arguments) == 0
    names = json.loads((tmp_path / "cross" / "split.json").read_text())["train"]
    copied = sum(f"scene{i}_0.png" in names for i in range(5))
    protocol = json.loads((tmp_path / "cross" / "results.json").read_text())["protocol"]
    found = protocol["images_in_training"]["spaq"]
    assert copied and found["identical_images"] == copied and found["images"] == 9
    assert any(f"spaq: {copied} of 9 images are byte-identical" in note for note in protocol["notes"])
    assert f"spaq: {copied} of 9 images are byte-identical" in caplog.text


def test_predict_scores_files_and_folders_and_writes_csv(run, image_folder, tmp_path, capsys):
    one = image_folder / "scene0_0.png"
    assert command("predict", one, image_folder, "--checkpoint", run, "--output", tmp_path / "scores.csv") == 0
    table = pd.read_csv(tmp_path / "scores.csv")
    assert len(table) == 40 and table["score"].between(0, 100).all()
    assert str(one) in capsys.readouterr().out


def test_a_score_depends_on_the_image_only(run, image_folder):
    from smart_iqa.scorer import load_model

    scorer = load_model(run, device="cpu")
    paths = [image_folder / f"scene{i}_0.png" for i in range(4)]
    together = scorer.score(paths)
    assert isinstance(scorer.score(str(paths[2])), float)
    assert scorer.score(paths[2]) == pytest.approx(together[2], abs=1e-4)


def test_predict_scores_what_it_can_and_names_what_it_cannot(run, image_folder, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    assert command("predict", tmp_path, image_folder / "scene1_0.png", "--checkpoint", run) == 2
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


@pytest.mark.long
def test_figures_show_what_the_results_hold(run, tmp_path, capsys):
    assert command("generate_paper_figures", run, "--output", tmp_path) == 0
    manifest = json.loads((tmp_path / "figures.json").read_text())
    metrics = json.loads((run / "results.json").read_text())["metrics"]["test"]
    assert manifest["figures"]["prediction_scatter"]["values"]["run"]["srcc"] == metrics["srcc"]
    assert (tmp_path / "training_curves.pdf").stat().st_size > 1000
    assert "cross_database" in manifest["missing"]
    assert "missing  cross_database" in capsys.readouterr().out


@pytest.mark.long
def test_attention_analysis_writes_weights_that_sum_to_one(run, tmp_path):
    arguments = ["--checkpoint", run, "--dataset", "csv", "--num_samples", 2, "--crops", 3, "--device", "cpu"]
    assert command("analyze_attention", *arguments, "--output", tmp_path) == 0
    analysis = json.loads((tmp_path / "attention_analysis.json").read_text())
    assert list(analysis["levels"]) == ["Very Low", "Low", "Mid", "High", "Very High"]
    for row in analysis["images"]:
        assert sum(row[f"stage {i}"] for i in range(4)) == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "attention_by_level.png").exists()


def test_bad_input_is_one_line_and_exit_code_two(image_folder, run, tmp_path, capsys):
    table = image_folder / "table.csv"
    bad_yaml = tmp_path / "bad.yaml"
    bad_yaml.write_text("learning_rate: 0.1\n")
    wrong = pd.read_csv(table)
    wrong.loc[3, "mos"] = np.nan
    nan_table = image_folder / "nan.csv"
    wrong.to_csv(nan_table, index=False)
    wrong.loc[3, "mos"] = 120.0
    range_table = image_folder / "range.csv"
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


@pytest.mark.long
def test_a_published_file_is_a_checkpoint_like_any_other(image_folder, tmp_path):
    file = tmp_path / "published.pth"
    torch.save({name: fill(name, tuple(t.shape)) for name, t in empty_checkpoint().items()}, file)
    assert command("predict", image_folder / "scene0_0.png", "--checkpoint", file, "--output", tmp_path / "s.csv") == 0
    assert len(pd.read_csv(tmp_path / "s.csv")) == 1


def test_a_run_chosen_on_the_test_part_says_so_in_its_results(image_folder, tmp_path, caplog):
    assert train(image_folder, tmp_path, "--name", "marked", "--epochs", "1", "--select_on", "test") == 0
    assert "chosen on the test split" in caplog.text
    protocol = json.loads((tmp_path / "marked" / "results.json").read_text())["protocol"]
    assert protocol["selected_on"] == "test" and protocol["name"] == "ours, selected on test"
