"""Each accelerator keeps its own device and precision, however many a process makes."""

from __future__ import annotations

import datetime
from unittest import mock

import pytest
import torch

from iqa.runtime import autocast, make_accelerator


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
