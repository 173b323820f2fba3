"""What is seen of a run: values by step and by epoch for a tracker, numbers in the bar, and the time it will take."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
from helpers import SMALL, command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_solver import CONFIG, make_solver, table  # noqa: F401 (a fixture)

from iqa import watching
from iqa.errors import UserError
from iqa.results import read_history
from iqa.watching import Watch, duration, require_tracker


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every tag in a folder of events."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_epochs_and_every_few_steps_are_logged_and_a_resumed_run_goes_on_counting(table, tmp_path):  # noqa: F811
    config = dataclasses.replace(CONFIG, log_every=3)
    make_solver(table, tmp_path / "run", config).fit(last_epoch=2)
    time.sleep(1.1)  # the files of tensorboard are ordered by their second, then by a number as text
    resumed = make_solver(table, tmp_path / "run", config)
    resumed.resume()
    resumed.fit()
    epochs, steps = (scalars(tmp_path / "run" / name) for name in ("tensorboard", "tensorboard/steps"))
    history = read_history(tmp_path / "run" / "history.jsonl")
    assert epochs["val_srcc"] == [(line["epoch"], pytest.approx(line["val_srcc"])) for line in history]
    assert steps.keys() == {"step/loss", "step/lr", "step/lr_head", "step/crops_per_s"}
    assert [step for step, _ in steps["step/loss"]] == [3, 6, 9, 12, 15]  # four steps an epoch
    assert steps["step/lr_head"][0][1] == pytest.approx(2 * steps["step/lr"][0][1])


def test_without_values_by_step_there_is_no_file_for_them(table, tmp_path):  # noqa: F811
    make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, log_every=0)).fit()
    assert not (tmp_path / "run" / "tensorboard" / "steps").exists()


def test_the_bar_says_loss_rate_and_speed(tmp_path):
    watch = Watch(CONFIG, tmp_path, steps_per_epoch=2, shows=True)
    bar = watch.epoch([1, 2], 1)
    next(iter(bar))
    watch.step([10.0, 40.0], [2, 1], [1e-5, 1e-4])
    assert bar.postfix.startswith("loss 20.000, lr 1.00e-05, ") and bar.postfix.endswith(" crops/s")


def test_after_fifty_steps_the_time_of_the_whole_run_is_said_once(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(watching.time, "perf_counter", lambda: clock.now)
    watch = Watch(dataclasses.replace(CONFIG, epochs=30), tmp_path, steps_per_epoch=1000, shows=False)
    watch.epoch([], 1)
    for step in range(1, 121):
        clock.now += 30 if step <= 10 else 0.5  # the first steps build caches, or compile
        if step == 60:
            watch.epoch([], 2)
        watch.step([1.0], [32], [1e-5, 1e-4])
    assert [record.message for record in caplog.records] == [
        "the 29950 steps that are left of 30 epochs take about 4 h 10 min, without validation; early stopping may end "
        "them sooner"
    ]
    assert (duration(59.4), duration(61)) == ("59 s", "1 min")


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line_before_the_run(
    image_folder, tmp_path, capsys, monkeypatch, tracker
):
    find = watching.importlib.util.find_spec
    monkeypatch.setattr(watching.importlib.util, "find_spec", lambda name: None if name == tracker else find(name))
    flags = ["--dataset", "csv", "--data_path", image_folder / "table.csv", *SMALL, "--results_dir", tmp_path]
    for script in ("train_swin", "pretrain"):
        assert command(script, *flags, "--photos", image_folder / "images", "--tracker", tracker) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(
            f"error: --tracker {tracker} needs the package {tracker}: pip install 'smart-iqa[{tracker}]'"
        )
    assert not list(tmp_path.iterdir())
    require_tracker("tensorboard")


def test_weights_and_biases_gets_settings_steps_and_epochs_on_one_axis(table, tmp_path, monkeypatch):  # noqa: F811
    wandb = ModuleType("wandb")
    run = mock.Mock()
    wandb.init, wandb.config, wandb.errors = mock.Mock(return_value=run), mock.Mock(), SimpleNamespace(Error=OSError)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = dataclasses.replace(CONFIG, tracker="wandb", log_every=3, epochs=2, name="mine")
    make_solver(table, tmp_path / "run", config).fit()
    options = {"project": "smart-iqa", "dir": str(tmp_path / "run"), "name": "mine", "group": "mine"}
    wandb.init.assert_called_once_with(**options)
    assert wandb.config.update.call_args.args[0]["lr"] == config.lr
    logged = [(call.kwargs["step"], call.args[0].get("epoch")) for call in run.log.call_args_list]
    assert logged == [(3, None), (4, 1), (6, None), (8, 2)]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_an_account_that_weights_and_biases_asks_for_is_one_line(table, tmp_path, monkeypatch):  # noqa: F811
    wandb = ModuleType("wandb")
    wandb.init, wandb.errors = mock.Mock(side_effect=OSError("no API key")), SimpleNamespace(Error=OSError)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError, match="--tracker wandb: no API key; WANDB_MODE=offline needs no account"):
        make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, tracker="wandb")).fit()


def test_mlflow_gets_settings_steps_and_epochs_on_one_axis(table, tmp_path, monkeypatch):  # noqa: F811
    mlflow = mock.Mock(search_experiments=mock.Mock(return_value=[]), __spec__=None)
    mlflow.utils.validation = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    config = dataclasses.replace(CONFIG, tracker="mlflow", log_every=3, epochs=1)
    make_solver(table, tmp_path / "run", config).fit()
    assert mlflow.start_run.call_args.kwargs["run_name"] == config.run_name
    assert [call.kwargs["step"] for call in mlflow.log_metrics.call_args_list] == [3, 4]


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_installed_writes_without_an_account(table, tmp_path, monkeypatch, tracker):  # noqa: F811
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, tracker=tracker, log_every=2)).fit()
    written = {"wandb": tmp_path / "run" / "wandb", "mlflow": tmp_path / "mlflow.db"}[tracker]
    assert written.stat().st_size > 0
