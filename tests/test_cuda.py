"""What only a GPU can show; all of it is skipped without one.

    python -m pytest tests/test_cuda.py

Nothing waits for the device in a step or between the batches of a test; precision is as it is asked for; a resumed run
has the bits of one that was not stopped; a batch that does not fit is halved; the two ways of attention agree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_solver import PoisonedGradient, PoisonedScore, TinyModel, assert_equal_states, state, table  # noqa: F401

from data_loader import Preparation, test_loader as make_test_loader, to_images, train_loader
from HyperIQASolver_swin import HyperIQASolver
from iqa.config import Config, resolve
from iqa.errors import UserError
from iqa.evaluation import predict, score_batches
from iqa.photographs import Photographs, PhotographTerm
from iqa.results import read_history
from iqa.runtime import (
    SAME_BITS,
    WORKSPACE,
    compile_network,
    deterministic_kernels,
    fuse_attention,
    make_accelerator,
    precision_of,
    seed_everything,
)
from models_swin import SmartIQA

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
if torch.cuda.is_available():
    os.environ.setdefault(WORKSPACE, SAME_BITS[0])  # torch looks once in a process whether cuBLAS is deterministic

CONFIG = resolve(
    {
        "backbone": "nano", "pretrained": False, "fusion": "channel", "patch_size": 32, "resize": "none", "epochs": 2,
        "batch_size": 4, "train_patch_num": 2, "test_patch_num": 2, "num_workers": 0, "lr": 1e-3, "device": "cuda",
    }
)  # fmt: skip


def make_solver(table, run_dir: Path, config: Config = CONFIG, model=None, photographs=None) -> HyperIQASolver:  # noqa: F811
    run_dir.mkdir(exist_ok=True)
    seed_everything(config.seed)
    accelerator = make_accelerator(config.device, config.precision, config.accumulate)
    if model is None:
        network = SmartIQA(config.backbone, config.fusion, freeze_batch_norm=config.freeze_batch_norm)
        fuse_attention(network, config.fused_attn, accelerator)
        images = Preparation(network, config).to_images
    else:
        network, images = model(), partial(to_images, mean=(0.5,) * 3, std=(0.5,) * 3)
    return HyperIQASolver(
        model=network.to(accelerator.device),
        config=config,
        train_loader=train_loader(table, config),
        val_loader=make_test_loader(table, config),
        to_images=images,
        run_dir=run_dir,
        accelerator=accelerator,
        made={},
        photographs=photographs,
    )


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def batches_on_device(solver: HyperIQASolver, epoch: int) -> list:
    solver.train_loader.set_epoch(epoch)
    return list(solver.train_loader)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "fp32"},
        {"optimizer": "sgd", "lr": 1e-5},
        {"color_jitter": True, "grad_clip": 1.0},
        {"ema_decay": 0.9, "accumulate": 2, "warmup_epochs": 1.0},
        {"loss_type": "fidelity"},
        {"loss_type": "plcc", "ranking_loss_alpha": 0.5},
        {"backbone": "resnet18", "lr": 1e-5},
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(table, tmp_path, settings):  # noqa: F811
    solver = make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, **settings))
    assert solver.reads_late
    solver.model.train()
    solver._learn_batches()  # what is made once is made: constants, the optimizer's state, cuBLAS's workspace
    before = state(solver)
    batches = batches_on_device(solver, 2)
    with no_waiting():
        for i, batch in enumerate(batches):
            solver._learn(i, batch)
    solver._settle()
    assert solver.so_far.skipped_steps == 0
    assert any(not torch.equal(before[name], tensor) for name, tensor in state(solver).items())


def test_the_loader_brings_batches_without_waiting(table, tmp_path):  # noqa: F811
    solver = make_solver(table, tmp_path / "run")
    batches_on_device(solver, 1)
    with no_waiting():
        batches = batches_on_device(solver, 2)
        images = [solver.to_images(batch.crops, batch.augment) for batch in batches]
    assert {image.device.type for image in images} == {"cuda"}


def test_photographs_without_scores_do_not_make_a_step_wait(table, tmp_path):  # noqa: F811
    files = [Path(path) for path in table["path"]]
    term = PhotographTerm(Photographs(files, torch.device("cuda")), batch=4, sides=[32], seed=0)
    solver = make_solver(table, tmp_path / "run", photographs=term)
    solver.model.train()
    solver._learn_batches()
    batches = batches_on_device(solver, 1)  # the same draws: what each distortion keeps is there
    with no_waiting():
        for i, batch in enumerate(batches):
            solver._learn(i, batch)


def test_no_batch_of_a_test_waits_for_the_device(table, tmp_path):  # noqa: F811
    solver = make_solver(table, tmp_path / "run")
    how = solver.kept_model, solver.val_loader, solver.to_images, solver.accelerator, "validate"
    expected = predict(*how)
    with no_waiting(), torch.inference_mode():
        found = list(score_batches(*how))
    assert np.array_equal(torch.cat([scores for scores, _ in found]).cpu().numpy(), expected)


@pytest.mark.parametrize("model", [PoisonedScore, PoisonedGradient])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_without_finite_numbers_is_skipped_without_waiting(table, tmp_path, model, optimizer):  # noqa: F811
    settings = {"optimizer": optimizer, "lr": 1e-4, "train_patch_num": 1, "ema_decay": 0.5, "epochs": 3}
    solver = make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, **settings), model)
    solver.fit()
    assert [line["skipped_steps"] for line in solver.history] == [1, 1, 1]
    assert all(tensor.isfinite().all() for tensor in state(solver).values())
    assert solver.scheduler.last_epoch == solver.average.n_averaged == 9  # of 12


def test_three_steps_without_a_finite_loss_stop_the_run(table, tmp_path):  # noqa: F811
    solver = make_solver(table, tmp_path / "run", model=TinyModel)
    with torch.no_grad():
        solver.accelerator.unwrap_model(solver.model).head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite in epoch 1, in 3 steps"):
        solver.fit()


def test_reading_late_and_at_once_are_the_same_bits(table, tmp_path):  # noqa: F811
    states = []
    for late in (False, True):
        solver = make_solver(table, tmp_path / str(late), dataclasses.replace(CONFIG, precision="fp32"), TinyModel)
        solver.reads_late = late
        solver.fit()
        states.append(state(solver))
    assert_equal_states(*states)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels of `--deterministic`: whatever has none raises."""
    with deterministic_kernels(True):
        yield


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fused_attn": "off"},
        {"precision": "fp32", "patch_size": 64},
        {"ema_decay": 0.9, "checkpoint_every": 1},
        {"color_jitter": True, "grad_clip": 1.0, "loss_type": "fidelity"},
        {"fusion": "cross_scale"},
        {"backbone": "tf_efficientnet_lite0"},
    ],
    ids=str,
)
def test_a_stopped_run_with_deterministic_kernels_has_the_bits_of_a_whole_one(table, tmp_path, settings):  # noqa: F811
    config = dataclasses.replace(CONFIG, **({"patch_size": 224} | settings))
    whole = make_solver(table, tmp_path / "whole", config)
    whole.fit()
    make_solver(table, tmp_path / "stopped", config).fit(last_epoch=1)
    torch.manual_seed(999)
    resumed = make_solver(table, tmp_path / "stopped", config)
    resumed.resume()
    resumed.fit()
    assert_equal_states(state(whole), state(resumed))
    histories = [read_history(tmp_path / name / "history.jsonl") for name in ("whole", "stopped")]
    assert [line["train_loss"] for line in histories[0]] == [line["train_loss"] for line in histories[1]]


def test_auto_is_the_gpus_own_precision_and_the_head_stays_fp32(table, tmp_path):  # noqa: F811
    solver = make_solver(table, tmp_path / "run")
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert precision_of(solver.accelerator) == ("bf16" if has_bf16 else "fp32")
    assert torch.backends.cuda.matmul.allow_tf32
    found = {}
    model = solver.accelerator.unwrap_model(solver.model)
    hooks = [
        module.register_forward_hook(lambda module, given, result, name=name: found.setdefault(name, result))
        for name, module in (("reduce", model.reduce), ("backbone", model.backbone))
    ]
    solver.evaluate(solver.val_loader)
    for hook in hooks:
        hook.remove()
    assert found["backbone"][0].dtype is (torch.bfloat16 if has_bf16 else torch.float32)
    assert found["reduce"].dtype is torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    make_accelerator("cuda", "fp32")
    assert not torch.backends.cuda.matmul.allow_tf32


def test_bf16_scores_are_near_those_of_fp32(table, tmp_path):  # noqa: F811
    scores = {}
    for precision in ("fp32", "bf16"):
        solver = make_solver(table, tmp_path / precision, dataclasses.replace(CONFIG, precision=precision))
        scores[precision] = predict(solver.kept_model, solver.val_loader, solver.to_images, solver.accelerator)
    assert np.abs(scores["bf16"] - scores["fp32"]).max() < 0.5  # of 100


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 0.5)])
def test_fused_and_plain_attention_give_the_same_scores(table, tmp_path, precision, tolerance):  # noqa: F811
    scores = []
    for choice in ("on", "off"):
        config = dataclasses.replace(CONFIG, precision=precision, fused_attn=choice, patch_size=40)
        solver = make_solver(table, tmp_path / choice, config)
        scores.append(predict(solver.kept_model, solver.val_loader, solver.to_images, solver.accelerator))
    assert np.abs(scores[0] - scores[1]).max() < tolerance


def test_a_gpus_memory_that_does_not_suffice_halves_the_batch(table, tmp_path, caplog):  # noqa: F811
    solver = make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, precision="fp32"))
    expected = predict(solver.kept_model, solver.val_loader, solver.to_images, solver.accelerator)
    config = dataclasses.replace(CONFIG, precision="fp32", test_batch_size=32)
    loader = solver.accelerator.prepare(make_test_loader(table, config))
    forward = type(solver.kept_model).forward

    def limited(self, images):
        if len(images) > 9:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")  # as large a tensor does not fit
        return forward(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(solver.kept_model), "forward", limited)
        scores = predict(solver.kept_model, loader, solver.to_images, solver.accelerator)
    assert np.abs(scores - expected).max() < 1e-3
    assert [record.message for record in caplog.records if "memory" in record.message] == [
        "out of memory with 32 crops at once: going on with 16",
        "out of memory with 16 crops at once: going on with 8",
    ]


def test_a_compiled_network_learns_what_an_eager_one_learns(table, tmp_path):  # noqa: F811
    losses = []
    for compiled in (False, True):
        config = dataclasses.replace(CONFIG, precision="fp32", epochs=1, dropout_rate=0.0, drop_path_rate=0.0)
        solver = make_solver(table, tmp_path / str(compiled), config)
        for module in solver.model.modules():
            if isinstance(module, torch.nn.Dropout) or hasattr(module, "drop_prob"):
                module.p = module.drop_prob = 0.0
        if compiled:
            compile_network(solver.accelerator.unwrap_model(solver.model))
        solver.fit()
        losses.append(solver.history[0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
