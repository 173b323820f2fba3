"""Two processes learn what one learns: same batches, same losses, same metrics, and only the first one writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import ROOT, TINY, Ended, command, in_forks, long
from hypothesis import given, strategies as st
from PIL import Image

import iqa.results
from data_loader import EpochSampler, ShardedBatches
from iqa.results import read_history, read_json, read_results
from iqa.system import shard_sizes

# Without dropout, whose masks differ between processes; 21 training crops in batches of 4 leave a last batch of one.
SETTINGS = (
    f"--dataset csv --backbone {TINY} --no_pretrained --attention_fusion --patch_size 32 --resize none --epochs 2 "
    "--train_patch_num 1 --test_patch_num 2 --num_workers 0 --device cpu --no_spaq --batch_size 4 --lr 1e-4 "
    "--dropout_rate 0.0 --drop_path_rate 0.0 --ranking_loss_alpha 0.5 --accumulate 2"
).split()


@given(st.integers(0, 200), st.integers(1, 9))
def test_shares_are_as_even_as_can_be_and_add_up(items, shards):
    sizes = shard_sizes(items, shards)
    assert sum(sizes) == items and len(sizes) == shards
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 4))
def test_the_shares_of_all_processes_are_the_batches_of_one(images, batch_size, processes):
    def batches(process: int, of: int) -> list:
        sampler = EpochSampler(np.zeros(images), crops=1, seed=0)
        return list(ShardedBatches(sampler, batch_size, process, of))

    whole = batches(0, 1)
    shares = [batches(process, processes) for process in range(processes)]
    assert {len(share) for share in shares} == {len(whole)}
    for i, batch in enumerate(whole):
        sizes = shard_sizes(len(batch), processes)
        kept = [item for share, size in zip(shares, sizes, strict=True) for item in share[i][:size]]
        assert kept == batch
        assert all(len(share[i]) >= 1 for share in shares)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = []
    for i in range(30):
        Image.fromarray(rng.integers(0, 20 + 7 * i, (40, 44, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "mos": 3.0 * i, "content": f"c{i}"})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder


def launch(folder: Path, processes: int, *commands: list[str]) -> Ended:
    """Run several commands, one after the other, in the same process or processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def run_each(rank: int) -> int:
        if processes > 1:  # what `torch.distributed.run` says to each
            places = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
            places |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), processes)
            os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in places.items()}
        AcceleratorState._reset_state(reset_partial_state=True)  # of the tests before
        codes = [command(*arguments) for arguments in commands]
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        return max(codes)

    return in_forks(folder, *(partial(run_each, rank) for rank in range(processes)))


def training(image_folder: Path, results: Path, *flags: str) -> list[str]:
    """The command that trains on the images."""
    place = f"--data_path {image_folder / 'table.csv'} --results_dir {results} --cache_dir {results / 'cache'}".split()
    return ["train_swin", *SETTINGS, *place, *flags]


@pytest.mark.parametrize("flags", [["--freeze_backbone"], long([])], ids=["frozen", "whole"])
def test_two_processes_learn_what_one_learns(image_folder, tmp_path, flags):
    one, two = (tmp_path / f"of_{n}" for n in (1, 2))
    runs = [training(image_folder, tmp_path, "--name", run.name, *flags) for run in (one, two)]
    assert command(*runs[0]) == 0
    done = launch(tmp_path, 2, runs[1])
    assert done.code == 0, done.err
    histories = [read_history(run / "history.jsonl") for run in (one, two)]
    assert len(histories[0]) == len(histories[1]) == 2
    for alone, together in zip(*histories, strict=True):
        for key in ("train_loss", "val_srcc", "val_plcc", "lr"):
            assert together[key] == pytest.approx(alone[key], rel=1e-5, abs=1e-5)
    results = [read_results(run) for run in (one, two)]
    scores = [[row["score"] for row in r["predictions"]["test"]] for r in results]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert results[1]["metrics"]["test"]["srcc"] == pytest.approx(results[0]["metrics"]["test"]["srcc"])
    assert [r["training"]["processes"] for r in results] == [1, 2]
    assert len(list((two / "tensorboard").iterdir())) == 1  # only the first process writes


LOSE = """
import os, sys
import data_loader, train_swin
load = data_loader.load_image
def lost(path, *how):
    if os.environ["RANK"] == "1":
        raise OSError(f"{path} is gone")
    return load(path, *how)
data_loader.load_image = lost
train_swin.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_mistake_in_one_process_ends_all(image_folder, tmp_path):
    """Under the launcher that users have, which starts three processes."""
    (tmp_path / "lose.py").write_text(LOSE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "lose.py")]
    done = subprocess.run(
        [sys.executable, *launcher, *training(image_folder, tmp_path, "--name", "lost", "--no_cache")[1:]],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode != 0 and "is gone" in done.stderr
    assert not (tmp_path / "lost" / "results.json").exists()


@pytest.mark.long
def test_two_processes_evaluate_as_one_does_and_one_of_them_writes(image_folder, tmp_path):
    assert command(*training(image_folder, tmp_path, "--name", "run")) == 0
    for processes in (1, 2):
        run, results = (str(tmp_path / n) for n in ("run", f"{processes}.json"))
        done = launch(
            tmp_path,
            processes,
            ["evaluate", "--checkpoint", run, "--datasets", "csv", "--device", "cpu", "--output", results],
        )
        assert done.code == 0, done.err
        assert done.out.count("written to") == 1
    alone, together = (read_json(tmp_path / f"{n}.json")["predictions"]["csv"] for n in (1, 2))
    assert [row["image"] for row in alone] == [row["image"] for row in together]
    scores = [[row["score"] for row in rows] for rows in (alone, together)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


@pytest.mark.long
def test_processes_wait_for_the_results_that_an_ablation_reads_and_one_of_them_writes_the_table(
    image_folder, tmp_path, monkeypatch
):
    write = iqa.results.write_results
    monkeypatch.setattr(iqa.results, "write_results", lambda *what: (time.sleep(2), write(*what)))
    shared = {"dataset": "csv", "data_path": str(image_folder / "table.csv"), "cache_dir": str(tmp_path / "cache")}
    shared |= {"backbone": TINY, "pretrained": False, "spaq": False, "patch_size": 32, "resize": "none", "epochs": 1}
    shared |= {"train_patch_num": 1, "test_patch_num": 2, "num_workers": 0, "device": "cpu", "batch_size": 4}
    ablation = {"baseline": "a", "rows": {"a": {}}, "seeds": [0], "shared": shared}
    (tmp_path / "few.yaml").write_text(json.dumps(ablation))
    results = tmp_path / "results"
    arguments = ["run_ablations", str(tmp_path / "few.yaml"), "--results_dir", str(results)]
    done = launch(tmp_path, 2, arguments)
    assert done.code == 0, done.err
    assert (results / "few" / "table.json").is_file() and done.out.count("with a bootstrap over contents") == 1
