"""How many CPUs a process may use, and what is set before torch is imported."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from iqa.system import cpu_quota, cpus, limit_threads, usable_cpus

ASK = "import iqa, os; print(os.environ.get('GOMP_SPINCOUNT'))"


def groups(folder, line: str, files: dict[str, str]) -> float:
    (folder / "groups").write_text(line + "\n")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return cpu_quota(folder / "groups", folder)


@pytest.mark.parametrize(
    "line, files, expected",
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/docker/of/the/host", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/", {"unified/cpu.max": "300000 100000"}, 3.0),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"}, 2.5),
        ("4:cpuacct,cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("4:memory:/", {"cpu.max": "100000 100000"}, math.inf),
        ("0::/", {"cpu.max": ""}, math.inf),
    ],
)
def test_the_quota_is_the_lowest_of_a_group_and_its_parents(tmp_path, line, files, expected):
    assert groups(tmp_path, line, files) == expected


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "nothing", tmp_path) == math.inf


def test_cpus_are_those_of_the_affinity_and_no_more_than_the_quota_rounded_up(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for quota, expected in {math.inf: 8, 20.0: 8, 2.5: 3, 0.2: 1}.items():
        monkeypatch.setattr(cpus, "cpu_quota", lambda quota=quota: quota)
        assert usable_cpus() == expected


def test_torch_computes_with_no_more_threads_than_cpus_unless_the_user_says_how_many(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    limit_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads()
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 32)
    limit_threads()
    assert asked == [3]


@pytest.mark.parametrize(
    "given, expected", [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_that_wait_do_not_spin_for_long_unless_the_user_says_so(given, expected):
    free = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    assert (
        subprocess.check_output([sys.executable, "-c", ASK], cwd=ROOT, env=free | given, text=True).strip() == expected
    )


@pytest.mark.parametrize("start", ["smart_iqa", "train_swin", "smart_iqa.commands", "folders", "run_ablations"])
def test_every_entry_sets_it_before_torch_is_imported(start):
    ask = f"import {start}, os, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    free = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    said = subprocess.check_output([sys.executable, "-c", ask], cwd=ROOT, env=free, text=True)
    assert said == "10000 False\n"
