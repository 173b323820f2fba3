"""A run that is killed at any moment, and resumed, ends with the bits of one that was not."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import long
from test_solver import CONFIG, make_solver, table  # noqa: F401 (a fixture)

from benchmarks.kills import all_moments, at_event, count_events, differences, in_child, kill, try_kills
from HyperIQASolver_swin import HyperIQASolver
from iqa.checkpoint import read_checkpoint
from iqa.config import Config


def assert_same_run(one: Path, other: Path) -> None:
    assert differences(one, other) == ""


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
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, count_events(lambda: go_on(table, run, LOOP), ())[0]


def killed_loop(table, run: Path, config: Config, call: int, signal_number: int = signal.SIGKILL) -> int:  # noqa: F811
    code = in_child(lambda: go_on(table, run, config), at_event(call, kill(signal_number)))
    assert in_child(lambda: go_on(table, run, dataclasses.replace(config, checkpoint_every=3))) == 0
    return code


@pytest.mark.parametrize("moment", [1, long(0), long(2)])
def test_a_loop_killed_at_a_random_moment_ends_with_the_same_bits(table, whole, tmp_path, moment):  # noqa: F811
    run, calls = whole
    call = int(np.random.default_rng(moment).integers(calls // 10, calls // 4))  # workers make most calls themselves
    assert killed_loop(table, tmp_path / "run", dataclasses.replace(LOOP, num_workers=moment), call) == -signal.SIGKILL
    assert_same_run(tmp_path / "run", run)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_a_loop_killed_at_any_moment_ends_with_the_same_bits(table, whole, tmp_path, moment):  # noqa: F811
    run, calls = whole
    workers = moment % 3
    call = int(np.random.default_rng(100 + moment).integers(1, calls // (4 if workers else 1)))
    assert killed_loop(table, tmp_path / "run", dataclasses.replace(LOOP, num_workers=workers), call) < 0
    assert_same_run(tmp_path / "run", run)


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("share", "number"),
    [
        (0.2, signal.SIGTERM), long(0.5, signal.SIGINT),
        *(slow(*moment) for moment in [
            (0.2, signal.SIGINT), (0.35, signal.SIGTERM), (0.35, signal.SIGINT), (0.5, signal.SIGTERM),
        ]),
    ],
)  # fmt: skip
def test_a_stopped_loop_saves_where_it_is_and_goes_on_from_there(table, whole, tmp_path, share, number):  # noqa: F811
    """Without checkpoints within epochs: what was learned is there because the signal had it saved."""
    run, calls = whole
    config = dataclasses.replace(LOOP, checkpoint_every=0)
    folder = tmp_path / "run"
    code = in_child(lambda: go_on(table, folder, config), at_event(int(share * calls), kill(number)))
    assert code == 128 + number
    stopped_at = read_checkpoint(folder / "last.safetensors")[1]["made"]["so_far"]
    assert stopped_at["batches"] > 0
    assert in_child(lambda: go_on(table, folder, config)) == 0
    assert_same_run(folder, run)


@pytest.mark.long
def test_a_loop_whose_workers_get_the_signal_too_ends_as_one_that_was_not_stopped(table, whole, tmp_path):  # noqa: F811
    run, calls = whole
    config, folder = dataclasses.replace(LOOP, checkpoint_every=0, num_workers=2), tmp_path / "run"

    def kill_all():  # as a cluster does
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
        kill(signal.SIGTERM)()

    code = in_child(lambda: go_on(table, folder, config), at_event(calls // 4, kill_all))
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


@pytest.mark.slow
def test_a_command_killed_at_any_moment_ends_with_the_same_bits():
    result = try_kills(all_moments(seed=1))
    assert result["wrong"] == {}
    assert result["targets"]["kills"]["measured"] >= 30
