"""A run that is killed at any moment, and resumed, ends with the bits of one that was not.

A forked child trains and kills itself at a chosen Python call, counted from the start: mid-epoch, in validation, or
while a checkpoint is written. So a moment that fails can be repeated.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL
from test_solver import CONFIG, checksum, make_solver, table  # noqa: F401 (a fixture)

import train_swin
from HyperIQASolver_swin import HyperIQASolver
from iqa.checkpoint import read_checkpoint
from iqa.config import Config
from iqa.errors import Stopped
from iqa.results import read_history, read_results

TIMES = ("train_seconds", "crops_per_s")


def in_child(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> int:
    """Run in a forked process; its exit code, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.manual_seed(999)  # another process starts from other random states
            before()
            work()
            code = 0
        except Stopped as stop:
            code = 128 + stop.signal
        except BaseException:  # noqa: BLE001 (whatever it is, this process ends here)
            traceback.print_exc()
        finally:
            sys.setprofile(None)
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_call(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """What makes the process that calls it act at call number `number` of a Python function of this project."""
    root, count, mine = str(Path(train_swin.__file__).parent), 0, 0

    def look(frame, event, argument):
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(root):
            count += 1
            if count == number and os.getpid() == mine:  # a loader's worker is another
                act()

    def start():
        nonlocal mine
        mine = os.getpid()
        sys.setprofile(look)

    return start


def kill(signal_number: int = signal.SIGKILL) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal_number)


def count_calls(work: Callable[[], object], file: Path) -> int:
    """How many calls of this project's functions `work` makes."""
    root, count = str(Path(train_swin.__file__).parent), 0

    def look(frame, event, argument):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(root)

    def counted():
        work()
        sys.setprofile(None)
        file.write_text(str(count))

    assert in_child(counted, lambda: sys.setprofile(look)) == 0
    return int(file.read_text())


def outcome(run: Path) -> tuple:
    """All that must agree: each tensor of both checkpoints, the history without its times, and the results."""
    history = [{k: v for k, v in line.items() if k not in TIMES} for line in read_history(run / "history.jsonl")]
    results = read_results(run) if (run / "results.json").exists() else {}
    return checksum(run / "best.safetensors"), history, results.get("metrics"), results.get("predictions")


def assert_same_run(one: Path, other: Path) -> None:
    assert outcome(one) == outcome(other)
    ours, theirs = (read_checkpoint(run / "last.safetensors")[0] for run in (one, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# The loop alone.

LOOP = dataclasses.replace(CONFIG, epochs=2, checkpoint_every=1, ema_decay=0.9, warmup_epochs=1.0, batch_size=2)


def go_on(table, run: Path, config: Config) -> HyperIQASolver:  # noqa: F811
    solver = make_solver(table, run, config)
    if solver.can_resume:
        solver.resume()
    solver.fit()
    return solver


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory) -> tuple[Path, int]:  # noqa: F811
    """A run of the loop that was never stopped, and the calls it made."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "run", count_calls(lambda: go_on(table, folder / "run", LOOP), folder / "calls")


def killed_loop(table, run: Path, config: Config, call: int, signal_number: int = signal.SIGKILL) -> int:  # noqa: F811
    code = in_child(lambda: go_on(table, run, config), at_call(call, kill(signal_number)))
    assert in_child(lambda: go_on(table, run, dataclasses.replace(config, checkpoint_every=3))) == 0
    return code


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_loop_killed_at_a_random_moment_ends_with_the_same_bits(table, whole, tmp_path, moment):  # noqa: F811
    run, calls = whole
    call = int(np.random.default_rng(moment).integers(calls // 10, calls // 2))  # workers make some calls themselves
    assert killed_loop(table, tmp_path / "run", dataclasses.replace(LOOP, num_workers=moment), call) == -signal.SIGKILL
    assert_same_run(tmp_path / "run", run)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_a_loop_killed_at_any_moment_ends_with_the_same_bits(table, whole, tmp_path, moment):  # noqa: F811
    run, calls = whole
    workers = moment % 3
    call = int(np.random.default_rng(100 + moment).integers(1, calls // (2 if workers else 1)))
    assert killed_loop(table, tmp_path / "run", dataclasses.replace(LOOP, num_workers=workers), call) < 0
    assert_same_run(tmp_path / "run", run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5])
def test_a_stopped_loop_saves_where_it_is_and_goes_on_from_there(table, whole, tmp_path, share, number):  # noqa: F811
    """Without checkpoints within epochs: what was learned is there because the signal had it saved."""
    run, calls = whole
    config = dataclasses.replace(LOOP, checkpoint_every=0)
    folder = tmp_path / "run"
    code = in_child(lambda: go_on(table, folder, config), at_call(int(share * calls), kill(number)))
    assert code == 128 + number
    stopped_at = read_checkpoint(folder / "last.safetensors")[1]["made"]["so_far"]
    assert stopped_at["batches"] > 0
    assert in_child(lambda: go_on(table, folder, config)) == 0
    assert_same_run(folder, run)


def test_a_loop_whose_workers_get_the_signal_too_ends_as_one_that_was_not_stopped(table, whole, tmp_path):  # noqa: F811
    run, calls = whole
    config, folder = dataclasses.replace(LOOP, checkpoint_every=0, num_workers=2), tmp_path / "run"

    def kill_all():  # as a cluster does
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
        kill(signal.SIGTERM)()

    code = in_child(lambda: go_on(table, folder, config), at_call(calls // 4, kill_all))
    assert code == 128 + signal.SIGTERM
    assert in_child(lambda: go_on(table, folder, config)) == 0
    assert_same_run(folder, run)


def test_a_loop_stopped_in_validation_does_not_learn_twice(table, whole, tmp_path, monkeypatch):  # noqa: F811
    run, _ = whole
    config = dataclasses.replace(LOOP, checkpoint_every=0)

    def stop_in_validation():
        evaluate = HyperIQASolver.evaluate

        def evaluate_half(self, loader):
            torch.rand(3)
            kill(signal.SIGTERM)()
            return evaluate(self, loader)

        HyperIQASolver.evaluate = evaluate_half

    code = in_child(lambda: go_on(table, tmp_path / "run", config), stop_in_validation)
    assert code == 128 + signal.SIGTERM
    so_far = read_checkpoint(tmp_path / "run" / "last.safetensors")[1]["made"]["so_far"]
    assert (so_far["epoch"], so_far["batches"]) == (1, 8)
    assert in_child(lambda: go_on(table, tmp_path / "run", config)) == 0
    assert_same_run(tmp_path / "run", run)


# The whole command: caches, frozen features, test.

EACH = {
    "pixels": ["--checkpoint_every", "2", "--ema_decay", "0.9"],
    "features": ["--checkpoint_every", "1", "--freeze_backbone", "--accumulate", "2"],
}


def command_of(pictures: Path, folder: Path, kind: str, *more: str) -> Callable[[], None]:
    """What trains, or goes on where there is anything to go on with."""
    where = ["--dataset", "csv", "--data_path", str(pictures / "table.csv"), "--results_dir", str(folder)]
    flags = [*SMALL, *where, "--name", "run", "--batch_size", "4", "--cache_dir", str(folder / "cache"), *EACH[kind]]
    flags += ["--keep_last"]

    def work() -> None:
        resumed = (folder / "run" / "config.yaml").exists()
        train_swin.main([*flags, *more, *(["--resume"] if resumed else [])])

    return work


@pytest.mark.slow
@pytest.mark.parametrize("kind", EACH)
def test_a_command_killed_at_any_moment_ends_with_the_same_bits(pictures, tmp_path, kind):
    calls = count_calls(command_of(pictures, tmp_path / "whole", kind), tmp_path / "calls")
    for moment in range(12):
        folder, workers = tmp_path / str(moment), ["--num_workers", str(moment % 3)]
        call = int(np.random.default_rng(moment).integers(1, calls))
        in_child(command_of(pictures, folder, kind, *workers), at_call(call, kill()))
        assert in_child(command_of(pictures, folder, kind)) == 0, call
        assert_same_run(folder / "run", tmp_path / "whole" / "run")
        assert not list((folder / "run").glob(".*.tmp"))
