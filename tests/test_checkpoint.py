"""Checkpoints are whole or absent, bring everything back, and are read strictly."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from torch import nn

from iqa.checkpoint import load_fitting_state, load_model_state, load_optimizer_state, read_checkpoint, save_checkpoint
from iqa.errors import UserError
from iqa.system import lock_folder, write_atomically, write_json


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[1:].parameters(), "lr": 1e-2}]
    options = {"adamw": {"weight_decay": 0.1}, "adam": {}, "sgd": {"momentum": 0.9}}[name]
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name](groups, **options)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


# Atomic writing.


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "best").write_text("old")

    def fail_halfway(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(UserError, match="best cannot be written: disk full"):
        write_atomically(tmp_path / "best", fail_halfway)
    assert (tmp_path / "best").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["best"]


def test_the_old_file_stays_in_place_until_the_new_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "best").write_text("old")

    def look_then_write(temporary: Path) -> None:
        temporary.write_text("new")
        assert (tmp_path / "best").read_text() == "old"

    write_atomically(tmp_path / "best", look_then_write)
    assert (tmp_path / "best").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["best"]


def test_who_reads_the_old_file_meanwhile_reads_it_whole(tmp_path: Path) -> None:
    (tmp_path / "best").write_text("old")
    with (tmp_path / "best").open() as reader:
        write_atomically(tmp_path / "best", lambda temporary: temporary.write_text("new"))
        assert reader.read() == "old"


def test_json_has_null_for_what_is_no_number(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"nan": float("nan"), "inside": [float("inf"), 1.5, (2,)]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"nan": None, "inside": [None, 1.5, [2]]}


# Round trip.


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = small_network()
    optimizer = make_optimizer(name, model)
    step(model, optimizer, seed=1)
    save_checkpoint(tmp_path / "last.safetensors", model, {"epoch": 1}, optimizer)
    step(model, optimizer, seed=2)

    again = small_network()
    tensors, records = read_checkpoint(tmp_path / "last.safetensors")
    load_model_state(again, tensors, "last")
    optimizer_again = make_optimizer(name, again)
    load_optimizer_state(optimizer_again, tensors, records["param_groups"])
    step(again, optimizer_again, seed=2)

    for expected, found in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(found, expected)
    assert [group["lr"] for group in optimizer_again.param_groups] == [1e-3, 1e-2]


def test_a_checkpoint_remembers_how_it_was_made_and_further_tensors(tmp_path: Path) -> None:
    made = {"architecture": {"backbone": "nano", "fusion": "scale"}, "epoch": 3, "score": 0.91}
    state = torch.get_rng_state()
    save_checkpoint(tmp_path / "best.safetensors", small_network(), made, extra={"random": state})
    tensors, records = read_checkpoint(tmp_path / "best.safetensors")
    assert records["made"] == made
    assert torch.equal(tensors["random"], state)


def test_strided_and_shared_tensors_are_stored_by_value(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[1].weight
    save_checkpoint(tmp_path / "best.safetensors", model, {})
    tensors, _ = read_checkpoint(tmp_path / "best.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[f"model.{name}"], tensor)


# What does not fit.


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    save_checkpoint(tmp_path / "best.safetensors", small_network(), {})
    return read_checkpoint(tmp_path / "best.safetensors")[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1), nn.Linear(1, 1)), "has no '3.weight'"),
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), "unexpected '2.bias'"),
        (nn.Sequential(nn.Linear(5, 8)), r"'0.weight' is \(8, 4\), expected \(8, 5\)"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_another_architecture_is_refused_by_its_first_difference(tensors: dict, model: nn.Module, message: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=f"best is of another architecture: .*{message}"):
        load_model_state(model, tensors, "best")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_architecture_with_the_same_tensors_is_refused_by_its_first_setting(tensors: dict) -> None:
    made = {"architecture": {"backbone": "tf_efficientnet_lite0", "fusion": "single"}}
    load_model_state(small_network(), tensors, "best", made, made["architecture"])
    expected = {"backbone": "efficientnet_lite0", "fusion": "single"}
    with pytest.raises(UserError, match="architecture: backbone is 'tf_efficientnet_lite0', expected 'efficientnet"):
        load_model_state(small_network(), tensors, "best", made, expected)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at .*last\.safetensors"):
        read_checkpoint(tmp_path / "last.safetensors")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x08" + b"\0" * 7 + b"{}      "])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors is (damaged, or )?no checkpoint of this project"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"author": '"someone"'}])
def test_tensors_of_another_program_are_no_checkpoint(tmp_path: Path, metadata: dict | None) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=r"a\.safetensors is (damaged, or )?no checkpoint of this project"):
        read_checkpoint(tmp_path / "a.safetensors")


# Damage.


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("good") / "best.safetensors"
    model = small_network()
    save_checkpoint(file, model, {"epoch": 3}, make_optimizer("adamw", model), {"random": torch.get_rng_state()[:9]})
    return file.read_bytes()


@settings(max_examples=3 * settings.default.max_examples)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, good: bytes, place, bit) -> None:
    file = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    content = bytearray(good)
    content[int(place * len(content))] ^= 1 << bit
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"flipped\.safetensors is (damaged|no checkpoint|of a later version)"):
        read_checkpoint(file)


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.95, 0.999])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, good: bytes, kept: float) -> None:
    (tmp_path / "best.safetensors").write_bytes(good[: int(kept * len(good))])
    with pytest.raises(UserError, match=r"best\.safetensors is damaged"):
        read_checkpoint(tmp_path / "best.safetensors")


def test_a_checkpoint_from_before_checksums_is_read(tmp_path: Path) -> None:
    save_file({"model.weight": torch.ones(2)}, tmp_path / "old.safetensors", metadata={"made": "{}"})
    assert read_checkpoint(tmp_path / "old.safetensors")[1] == {"made": {}}


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iqa.checkpoint.SCHEMA", 99)
    save_checkpoint(tmp_path / "best.safetensors", small_network(), {})
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"best\.safetensors is of a later version .*schema 99, known: 1.*: update it"):
        read_checkpoint(tmp_path / "best.safetensors")


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; in a process of its own, whose other files would feel it."""
    save_checkpoint(tmp_path / "best.safetensors", small_network(), {})
    before = (tmp_path / "best.safetensors").read_bytes()

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(UserError, match=r"best\.safetensors cannot be written: .*too large"):
            save_checkpoint(tmp_path / "best.safetensors", nn.Linear(100, 100), {})
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # where coverage is measured, its data are written now

    child = multiprocessing.get_context("fork").Process(target=fill)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert (tmp_path / "best.safetensors").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone/best\.safetensors cannot be written: .*No such file"):
        save_checkpoint(tmp_path / "gone" / "best.safetensors", small_network(), {})


# The lock.


def test_a_folder_is_one_processs_at_a_time_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()

    def hold() -> None:
        with lock_folder(tmp_path / "run"):
            (tmp_path / "run" / ".last.safetensors.123.tmp").write_text("half")
            held.set()
            time.sleep(600)

    other = context.Process(target=hold)
    other.start()
    assert held.wait(60)
    with pytest.raises(UserError, match="run is being written by another process"), lock_folder(tmp_path / "run"):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with lock_folder(tmp_path / "run"), lock_folder(tmp_path / "run"):
        assert not list((tmp_path / "run").glob("*.tmp")) + list((tmp_path / "run").glob(".*.tmp"))


def test_a_warm_start_takes_the_tensors_that_fit_and_says_what_is_missing(tmp_path):
    path = tmp_path / "a.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), {})
    tensors, _ = read_checkpoint(path)
    other = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    before = other[1].weight.clone()
    assert load_fitting_state(other, tensors, path) == "15 of 35 parameters; not whole: 1"
    assert torch.equal(other[0].weight, tensors["model.0.weight"])
    assert torch.equal(other[1].weight, before)
    same = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    assert load_fitting_state(same, tensors, path) == "the whole network, 23 parameters"


def test_a_warm_start_from_what_fits_nowhere_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, nn.Linear(4, 3), {})
    with pytest.raises(UserError, match="no tensor that fits"):
        load_fitting_state(nn.Linear(7, 7), read_checkpoint(path)[0], path)
