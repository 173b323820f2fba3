"""Each accelerator keeps its own device and precision, however many a process makes."""

from __future__ import annotations

import contextlib
import datetime
import os
from unittest import mock

import pandas as pd
import pytest
import torch
from helpers import halved_denormal

from data_loader import train_loader
from iqa.config import Config
from iqa.errors import UserError
from iqa.runtime import (
    WORKSPACE,
    autocast,
    deterministic_kernels,
    flush_denormals,
    fuse_attention,
    make_accelerator,
    precision_of,
    resolve_precision,
)
from iqa.system import device_constant
from models_swin import Backbone


def test_two_precisions_live_in_one_process():
    exact, half = make_accelerator("cpu"), make_accelerator("cpu", "bf16")
    for accelerator, dtype in ((exact, torch.float32), (half, torch.bfloat16), (exact, torch.float32)):
        with autocast(accelerator):
            assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype is dtype


def test_accumulation_is_an_accelerators_own():
    two, one = make_accelerator("cpu", accumulate=2), make_accelerator("cpu")
    assert (two.gradient_accumulation_steps, one.gradient_accumulation_steps) == (2, 1)


def test_a_device_asked_for_later_is_not_the_first_ones(monkeypatch):
    """As with a GPU after the CPU; ACCELERATE_TORCH_DEVICE stands for the GPU."""
    first = make_accelerator("cpu")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    assert make_accelerator("auto").device.type == "meta"
    assert first.device.type == "cpu"


def test_processes_wait_for_one_that_checks_a_large_database(monkeypatch):
    """NCCL itself gives up after ten minutes."""
    place = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in (place | {"MASTER_ADDR": "localhost", "MASTER_PORT": 29500, "OMP_NUM_THREADS": 1}).items():
        monkeypatch.setenv(name, str(value))
    joined = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(torch.distributed, "init_process_group", joined)
    with pytest.raises(InterruptedError):
        make_accelerator("cpu")
    assert joined.call_args.kwargs["timeout"] >= datetime.timedelta(hours=6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_cpu_and_a_gpu_live_in_one_process():
    assert [make_accelerator(device).device.type for device in ("cpu", "cuda", "cpu")] == ["cpu", "cuda", "cpu"]


@pytest.mark.parametrize(
    "precision, device, cuda, has_bf16, meant",
    [
        ("auto", "cpu", True, True, "fp32"),
        ("auto", "auto", False, False, "fp32"),
        ("auto", "auto", True, True, "bf16"),
        ("auto", "cuda", True, False, "fp32"),
        ("fp32", "cuda", True, True, "fp32"),
        ("fp16", "cuda", True, True, "fp16"),
    ],
)
def test_auto_is_bf16_only_on_a_gpu_that_computes_in_it(monkeypatch, precision, device, cuda, has_bf16, meant):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    asked = mock.Mock(return_value=has_bf16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", asked)
    assert resolve_precision(precision, device) == meant
    assert all(call.kwargs == {"including_emulation": False} for call in asked.call_args_list)


def test_auto_on_a_cpu_computes_in_fp32_and_leaves_its_products_exact():
    accelerator = make_accelerator("cpu", "auto")
    assert precision_of(accelerator) == "fp32" and precision_of(make_accelerator("cpu", "bf16")) == "bf16"
    with autocast(accelerator):
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype is torch.float32
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    "choice, precision, fused",
    [("auto", "fp32", True), ("auto", "bf16", False), ("on", "bf16", True), ("off", "fp32", False)],
)
def test_attention_is_fused_as_asked_and_plain_where_that_is_faster(choice, precision, fused):
    backbone = Backbone("nano")
    fuse_attention(backbone, choice, make_accelerator("cpu", precision))
    assert {m.fused_attn for m in backbone.modules() if hasattr(m, "fused_attn")} == {fused}


@pytest.mark.parametrize("device, pinned", [("cpu", False), ("auto", True), ("cuda", True), ("mps", False)])
def test_batches_are_pinned_only_where_cuda_computes(monkeypatch, device, pinned):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    table = pd.DataFrame({"image": ["a"], "path": ["a"], "mos": [1.0], "mos_std": [1.0]})
    assert train_loader(table, Config(device=device)).pin_memory is pinned


def test_a_constant_is_made_once_and_serves_training_after_a_test():
    with torch.inference_mode():
        made = device_constant((0.25, 0.5), torch.device("cpu"))
    assert made is device_constant((0.25, 0.5), torch.device("cpu"))
    weight = torch.ones(2, requires_grad=True)
    (weight * made).sum().backward()
    assert weight.grad.tolist() == [0.25, 0.5]


@pytest.mark.parametrize("before", [False, True])
def test_denormal_numbers_are_zero_while_it_lasts_and_then_as_before(before):
    torch.set_flush_denormal(before)
    try:
        with contextlib.suppress(KeyboardInterrupt), flush_denormals():
            assert halved_denormal() == 0
            raise KeyboardInterrupt
        assert halved_denormal() == (0 if before else 2.0**-131)
    finally:
        torch.set_flush_denormal(False)


def determinism() -> tuple:
    """What of it a process has set."""
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    return strict, torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, RuntimeError("out of memory")], ids=str)
@pytest.mark.parametrize("given", [None, ":16:8"])
def test_deterministic_kernels_last_as_long_as_they_are_asked_for_however_that_ends(monkeypatch, given, end):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    if given is not None:
        monkeypatch.setenv(WORKSPACE, given)
    before = determinism()
    with contextlib.suppress(RuntimeError, KeyboardInterrupt), deterministic_kernels(True):
        assert determinism() == (True, False, given or ":4096:8")
        if end is not None:
            raise end
    assert determinism() == before == (False, True, given)
    with deterministic_kernels(False):
        assert determinism() == before


def test_a_layer_without_deterministic_kernels_is_one_line_and_leaves_nothing_set():
    with pytest.raises(UserError, match="--deterministic: .*put_.* leave it out"), deterministic_kernels(True):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_workspace_of_cublas_that_is_not_deterministic_is_refused(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(UserError, match="to be :4096:8 or :16:8, got ':0:0': unset it"), deterministic_kernels(True):
        pass
    assert not torch.are_deterministic_algorithms_enabled()
