"""The loop, on a linear model and random crops, so that a test takes a second."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import halved_denormal, long
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_loader import test_loader as make_test_loader, to_images, train_loader
from HyperIQASolver_swin import HyperIQASolver, make_average, make_optimizer, make_scheduler, step_only_where
from iqa.checkpoint import read_checkpoint
from iqa.config import Config, resolve
from iqa.errors import UserError
from iqa.metrics import srcc
from iqa.results import read_history
from iqa.runtime import make_accelerator, seed_everything
from models_swin import SmartIQA
from smart_iqa.scorer import Scorer


class TinyModel(nn.Module):
    """Mean colour on a 4x4 grid -> score, with dropout so that random states matter."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(48, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, images):
        pooled = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        hidden = nn.functional.dropout(self.backbone(pooled).relu(), 0.1, self.training)
        return 50 + self.head(hidden)[:, 0]

    def parameter_groups(self, lr, lr_ratio, layer_decay=None):
        return [
            {"name": "backbone", "params": list(self.backbone.parameters()), "lr": lr},
            {"name": "head", "params": list(self.head.parameters()), "lr": lr * lr_ratio},
        ]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Sixteen grey images whose brightness is their mos."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = []
    for i in range(16):
        pixels = rng.integers(0, 30, (40, 40, 3)) + 14 * i
        path = folder / f"{i:02d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        rows.append({"image": path.name, "path": str(path), "mos": 6.0 * i, "mos_std": np.nan})
    return pd.DataFrame(rows)


CONFIG = resolve(
    {
        "patch_size": 32,
        "resize": "none",
        "epochs": 4,
        "batch_size": 4,
        "train_patch_num": 1,
        "test_patch_num": 2,
        "num_workers": 0,
        "lr": 0.01,
        "lr_ratio": 2.0,
        "device": "cpu",
    }
)


def make_solver(
    table, run_dir, config: Config = CONFIG, model: type[nn.Module] = TinyModel, scaler=None
) -> HyperIQASolver:
    run_dir.mkdir(exist_ok=True)
    seed_everything(config.seed)
    accelerator = make_accelerator("cpu", accumulate=config.accumulate)
    accelerator.scaler = scaler  # as for fp16, which a CPU does not compute in
    return HyperIQASolver(
        model=model(),
        config=config,
        train_loader=train_loader(table, config),
        val_loader=make_test_loader(table, config),
        to_images=partial(to_images, mean=(0.5,) * 3, std=(0.5,) * 3),
        run_dir=run_dir,
        accelerator=accelerator,
        made={},
    )


def state(solver: HyperIQASolver) -> dict:
    return {name: tensor.clone() for name, tensor in solver.model.state_dict().items()}


def checksum(path) -> str:
    """Of all that a checkpoint holds."""
    return read_checkpoint(path)[1]["checksum"]


def assert_equal_states(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adam"},
        {"optimizer": "sgd", "lr": 1e-4},
        {"ema_decay": 0.9, "accumulate": 2, "warmup_epochs": 1.0},
    ],
    ids=str,
)
def test_two_epochs_and_two_resumed_ones_equal_four_to_the_bit(table, tmp_path, settings):
    config = dataclasses.replace(CONFIG, **settings)
    whole = make_solver(table, tmp_path / "whole", config)
    whole.fit()
    make_solver(table, tmp_path / "stopped", config).fit(last_epoch=2)
    torch.manual_seed(999)  # a new process starts from other random states
    resumed = make_solver(table, tmp_path / "stopped", config)
    assert resumed.resume().epochs_done == 2
    resumed.fit()
    assert_equal_states(state(whole), state(resumed))
    keys = ("epoch", "train_loss", "val_srcc", "val_plcc", "lr", "lr_head")
    histories = [read_history(tmp_path / name / "history.jsonl") for name in ("whole", "stopped")]
    assert [[line[k] for k in keys] for line in histories[0]] == [[line[k] for k in keys] for line in histories[1]]


@pytest.mark.parametrize("workers", [1, long(2)])
def test_any_number_of_workers_gives_the_same_bits_resumed_or_not(table, tmp_path, workers):
    alone = make_solver(table, tmp_path / "alone")
    alone.fit()
    config, run_dir = dataclasses.replace(CONFIG, num_workers=workers), tmp_path / str(workers)
    make_solver(table, run_dir, config).fit(last_epoch=2)
    torch.manual_seed(999)
    resumed = make_solver(table, run_dir, config)
    resumed.resume()
    resumed.fit()
    assert_equal_states(state(alone), state(resumed))


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(table, tmp_path):
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        solver = make_solver(table, tmp_path / name, dataclasses.replace(CONFIG, seed=seed, epochs=1))
        solver.fit()
        runs[name] = state(solver)
    assert_equal_states(runs["a"], runs["b"])
    assert not torch.equal(runs["a"]["head.weight"], runs["c"]["head.weight"])


def test_the_best_checkpoint_is_the_epoch_with_the_best_validation_srcc(table, tmp_path):
    solver = make_solver(table, tmp_path / "run")
    solver.fit()
    srccs = [line["val_srcc"] for line in solver.history]
    assert solver.progress.best_epoch == int(np.argmax(srccs)) + 1
    solver.load_best()
    assert solver.evaluate(solver.val_loader)["srcc"] == pytest.approx(max(srccs), abs=1e-12)


def test_a_run_stops_after_patience_epochs_without_gain_and_only_if_asked_to(table, tmp_path):
    still = dataclasses.replace(CONFIG, lr=0.0, epochs=9, patience=2)
    progress = make_solver(table, tmp_path / "stops", still).fit()
    assert (progress.epochs_done, progress.best_epoch, progress.stopped_early) == (3, 1, True)
    goes_on = dataclasses.replace(still, early_stopping=False, epochs=5)
    assert make_solver(table, tmp_path / "goes_on", goes_on).fit().epochs_done == 5


def test_a_small_model_learns_what_is_easy(table, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=30, early_stopping=False)
    solver = make_solver(table, tmp_path / "run", config)
    solver.fit()
    assert solver.history[-1]["val_srcc"] > 0.95
    assert solver.history[-1]["train_loss"] < solver.history[0]["train_loss"] / 2


def test_training_takes_denormal_numbers_for_zero_and_nothing_else_does(table, tmp_path, monkeypatch):
    seen, learn = [], HyperIQASolver._learn
    monkeypatch.setattr(HyperIQASolver, "_learn", lambda *given: (seen.append(halved_denormal()), learn(*given)))
    make_solver(table, tmp_path / "run").fit(1)
    assert seen and not any(seen) and halved_denormal() == 2.0**-131


def test_three_steps_without_a_finite_loss_stop_the_run_and_name_the_images(table, tmp_path):
    solver = make_solver(table, tmp_path / "run")
    solver.fit(last_epoch=1)
    kept = solver.last_path.read_bytes()
    with torch.no_grad():
        solver.accelerator.unwrap_model(solver.model).head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite in epoch 2, in 3 steps .* with \d\d\.png, .* and 7 more: look"):
        solver.fit()
    assert solver.last_path.read_bytes() == kept


class PoisonedScore(TinyModel):
    """As `TinyModel`, whose score of the brightest image is not a number in training."""

    def forward(self, images):
        scores, brightest = super().forward(images), images.mean(dim=(1, 2, 3)) > 0.7
        return self.poisoned(scores, brightest) if self.training and brightest.any() else scores

    def poisoned(self, scores, brightest):
        return torch.where(brightest, float("nan"), scores)


class PoisonedGradient(PoisonedScore):
    """The same with the gradient: that of a square root at 0."""

    def poisoned(self, scores, brightest):
        return scores + (0 * scores).sqrt()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("model", [PoisonedScore, PoisonedGradient])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_step_without_finite_numbers_is_skipped_and_counted(table, tmp_path, model, optimizer, late):
    config = dataclasses.replace(CONFIG, ema_decay=0.5, epochs=3, optimizer=optimizer, lr=1e-4, grad_clip=1e3)
    solver = make_solver(table, tmp_path / "run", config, model)
    solver.reads_late = late
    solver.fit()
    assert [line["skipped_steps"] for line in solver.history] == [1, 1, 1]
    assert all(np.isfinite(line["train_loss"]) for line in solver.history)
    assert all(tensor.isfinite().all() for tensor in state(solver).values())
    assert solver.scheduler.last_epoch == solver.average.n_averaged == 9  # of 12
    assert solver.so_far.skipped_in_a_row <= 1


@pytest.mark.parametrize("model", [TinyModel, PoisonedScore])
@pytest.mark.parametrize(
    "settings",
    [
        {"checkpoint_every": 1},
        long({"optimizer": "muon"}),
        long({"optimizer": "sgd", "lr": 1e-4, "grad_clip": 1.0}),
        {"ema_decay": 0.9, "accumulate": 2},
    ],
    ids=str,
)
def test_numbers_read_one_step_later_as_on_a_gpu_change_no_bit(table, tmp_path, settings, model):
    config, made = dataclasses.replace(CONFIG, **settings), {}
    for late in (False, True):
        made[late] = make_solver(table, tmp_path / str(late), config, model)
        assert not made[late].reads_late  # on a CPU
        made[late].reads_late = late
        made[late].fit(last_epoch=2)
        goes_on = make_solver(table, tmp_path / str(late), config, model)
        goes_on.reads_late = late
        goes_on.resume()
        goes_on.fit()
    assert_equal_states(*(read_checkpoint(solver.last_path)[0] for solver in made.values()))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon"])
def test_a_first_step_that_is_left_out_leaves_no_trace(optimizer):
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    found = []
    for first in (True, False):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(4096))
        made = make_optimizer([{"params": [weight], "lr": 0.1}], config)
        for step in range(0 if first else 1, 4):
            weight.grad = torch.full_like(weight, float("nan") if step == 0 else step)
            step_only_where(weight.grad.isfinite().all(), made)
            made.step()
        found.append(weight.detach())
    assert found[0].isfinite().all() and torch.equal(*found)


def test_numbers_read_late_still_stop_the_run_within_the_epoch(table, tmp_path):
    solver = make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, batch_size=2))
    solver.reads_late = True
    with torch.no_grad():
        solver.accelerator.unwrap_model(solver.model).head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite in epoch 1, in 3 steps .* and 1 more: look"):
        solver.fit()
    assert solver.so_far.batches == 3  # of 8


def test_out_of_memory_in_training_says_what_to_lower(table, tmp_path, monkeypatch):
    solver = make_solver(table, tmp_path / "run")
    limit_memory(monkeypatch, crops=3)
    with pytest.raises(UserError, match="out of memory in epoch 1: lower --batch_size"):
        solver.fit()


def limit_memory(monkeypatch, crops: int) -> None:
    """Let the model refuse more crops at once."""
    forward = TinyModel.forward

    def limited(self, images):
        if len(images) > crops:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, images)

    monkeypatch.setattr(TinyModel, "forward", limited)


def test_out_of_memory_in_evaluation_halves_the_batch_and_goes_on(table, tmp_path, monkeypatch, caplog):
    solver = make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, batch_size=32))
    expected = solver.evaluate(solver.val_loader)
    limit_memory(monkeypatch, crops=9)
    assert solver.evaluate(solver.val_loader) == pytest.approx(expected, abs=1e-6)
    assert [record.message for record in caplog.records if "memory" in record.message] == [
        "out of memory with 32 crops at once: going on with 16",
        "out of memory with 16 crops at once: going on with 8",
    ]
    limit_memory(monkeypatch, crops=0)
    with pytest.raises(UserError, match="out of memory with a single crop of 32x32 pixels"):
        solver.evaluate(solver.val_loader)


def test_resuming_without_a_checkpoint_names_the_file(table, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*last\.safetensors"):
        make_solver(table, tmp_path / "run").resume()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before_and_a_line_says_so(table, tmp_path, damage, caplog):
    whole = make_solver(table, tmp_path / "whole")
    whole.fit()
    stopped = make_solver(table, tmp_path / "stopped")
    stopped.fit(last_epoch=3)
    content = bytearray(stopped.last_path.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "gone":  # killed between the two renames
        stopped.last_path.unlink()
    else:
        stopped.last_path.write_bytes(content if damage == "flipped" else content[:-100])
    resumed = make_solver(table, tmp_path / "stopped")
    assert resumed.can_resume
    assert resumed.resume().epochs_done == 2
    assert f"going on from {resumed.previous_path}, the checkpoint before it" in caplog.text
    resumed.fit()
    assert_equal_states(state(whole), state(resumed))
    assert checksum(resumed.best_path) == checksum(whole.best_path)


@pytest.mark.parametrize("again", [0.89, 0.91])
def test_a_best_checkpoint_that_was_written_just_before_a_kill_is_known_to_the_resumed_run(
    table, tmp_path, monkeypatch, again
):
    """On a device that is not bit-equal the epoch that is done again may be a little better or worse."""
    stopped, scores = make_solver(table, tmp_path / "run"), iter([0.8, 0.9, again, 0.7, 0.7])
    monkeypatch.setattr(HyperIQASolver, "evaluate", lambda *_: {"srcc": next(scores), "plcc": 0.5})
    stopped.fit(last_epoch=1)
    stopped._save_last = mock.Mock(side_effect=KeyboardInterrupt)  # best is written, last is not
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(last_epoch=2)
    resumed = make_solver(table, tmp_path / "run")
    assert resumed.resume().epochs_done == 1
    progress = resumed.fit()
    assert (progress.best_epoch, progress.best_srcc) == (2, max(0.9, again))
    assert read_checkpoint(resumed.best_path)[1]["made"]["val_srcc"] == progress.best_srcc


def test_two_damaged_checkpoints_stop_the_run_by_name(table, tmp_path):
    stopped = make_solver(table, tmp_path / "run")
    stopped.fit(last_epoch=2)
    for path in (stopped.last_path, stopped.previous_path):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"previous\.safetensors is damaged"):
        make_solver(table, tmp_path / "run").resume()


@pytest.mark.parametrize(
    "scheduler, factors",
    [
        ("cosine", {0: 1.0, 60: 0.505, 120: 0.01}),  # 0.01 + 0.99 * (1 + cos(pi t)) / 2
        ("step", {0: 1.0, 59: 1.0, 60: 0.1, 119: 0.1}),  # ten steps an epoch, /10 every six epochs
        ("none", {0: 1.0, 119: 1.0}),
    ],
)
def test_each_group_decays_from_its_own_start(scheduler, factors):
    config = dataclasses.replace(CONFIG, lr_scheduler=scheduler, epochs=12, lr=5e-7, lr_ratio=10.0)
    optimizer = make_optimizer(TinyModel().parameter_groups(config.lr, config.lr_ratio), config)
    schedule = make_scheduler(optimizer, config, steps_per_epoch=10)
    for step in range(max(factors) + 1):
        if step in factors:
            expected = [5e-7 * factors[step], 5e-6 * factors[step]]
            assert schedule.get_last_lr() == pytest.approx(expected, rel=1e-6)
        optimizer.step()
        schedule.step()


def test_validation_scores_do_not_depend_on_the_batch(table, tmp_path):
    one = make_solver(table, tmp_path / "one", dataclasses.replace(CONFIG, batch_size=2))
    many = make_solver(table, tmp_path / "many", dataclasses.replace(CONFIG, batch_size=32))
    assert one.evaluate(one.val_loader) == pytest.approx(many.evaluate(many.val_loader), abs=1e-6)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), long("bf16", 0.25)])
def test_scores_do_not_depend_on_how_many_crops_are_scored_at_once(table, precision, tolerance):
    """1e-3 of 100 in fp32. In bf16 0.25: a step between two bf16 numbers near 50, which no score is rounded to."""
    model, accelerator, found = SmartIQA("nano", "channel").eval(), make_accelerator("cpu", precision), []
    seen: list[int] = []
    model.backbone.register_forward_hook(lambda module, images, stages: seen.append(len(images[0])))
    for size, most in {0: 4, 1: 1, 5: 4, 32: 32}.items():  # an image's two crops are scored together where they fit
        config = dataclasses.replace(CONFIG, test_batch_size=size)
        scorer = Scorer(model, config, accelerator)
        seen.clear()
        found.append(scorer.score_table(table))
        assert max(seen) == most
    for scores in found[1:]:
        assert np.abs(scores - found[0]).max() < tolerance


def test_gradient_clipping_bounds_the_step(table, tmp_path):
    free = dataclasses.replace(CONFIG, optimizer="sgd", lr=1e-3, epochs=1, weight_decay=0.0)
    tight = dataclasses.replace(free, grad_clip=1e-6)
    moved = {}
    for name, config in (("free", free), ("tight", tight)):
        solver = make_solver(table, tmp_path / name, config)
        before = state(solver)
        solver.fit()
        after = state(solver)
        moved[name] = max((after[key] - before[key]).abs().max().item() for key in before)
    assert moved["tight"] < 1e-6 < moved["free"]


def test_constant_predictions_count_as_the_worst_and_do_not_crash(table, tmp_path):
    solver = make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, lr=0.0, epochs=1))
    with torch.no_grad():
        solver.accelerator.unwrap_model(solver.model).head.weight.zero_()
    assert solver.fit().best_srcc == -1.0
    assert np.isnan(srcc(np.zeros(16), table["mos"]))


def test_warm_up_rises_in_equal_steps_to_the_rate_it_would_have_without(table):
    config = dataclasses.replace(CONFIG, lr_scheduler="none", warmup_epochs=1.0, lr=1.0, lr_ratio=1.0)
    optimizer = make_optimizer(TinyModel().parameter_groups(1.0, 1.0), config)
    schedule = make_scheduler(optimizer, config, steps_per_epoch=3)
    rates = []
    for _ in range(5):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("size", [8, 12], ids=["even", "last_step_of_one_batch"])
def test_two_accumulated_batches_step_like_one_of_twice_the_size(table, tmp_path, size):
    # SGD: the size of a gradient matters, which Adam would hide.
    whole = dataclasses.replace(CONFIG, batch_size=size, epochs=1, dropout_rate=0.0, optimizer="sgd", lr=1e-3)
    halves = dataclasses.replace(whole, batch_size=size // 2, accumulate=2)
    states = {}
    for name, config in (("whole", whole), ("halves", halves)):
        solver = make_solver(table, tmp_path / name, config)
        solver.model.eval()
        solver.model.train = lambda mode=True, model=solver.model: model  # dropout would differ between the two
        solver.fit()
        states[name] = state(solver)
    for name in states["whole"]:
        assert torch.allclose(states["whole"][name], states["halves"][name], atol=1e-5), name


def test_the_average_of_the_weights_is_what_is_kept(table, tmp_path):
    solver = make_solver(table, tmp_path / "run", dataclasses.replace(CONFIG, ema_decay=0.5, epochs=1))
    solver.fit()
    averaged, last = solver.kept_model.state_dict(), state(solver)
    assert not torch.equal(averaged["head.weight"], last["head.weight"])
    assert_equal_states({k: v.clone() for k, v in averaged.items()}, dict(solver.load_best().state_dict()))


class IndexedModel(TinyModel):
    """As `TinyModel`, with its inputs reordered by a buffer that is not saved, as Swin's relative positions are."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.arange(48).flip(0), persistent=False)

    def forward(self, images):
        pooled = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)[:, self.order]
        return 50 + self.head(self.backbone(pooled).relu())[:, 0]


@pytest.mark.parametrize("decay", [0.9, 0.95, 0.96, 0.997, 0.9995, 0.9999])
def test_the_averaged_network_that_is_validated_is_the_one_that_is_saved_and_tested(table, tmp_path, decay):
    config = dataclasses.replace(CONFIG, ema_decay=decay, epochs=1)
    solver = make_solver(table, tmp_path / "run", config, IndexedModel)
    solver.fit()
    assert torch.equal(solver.kept_model.order, torch.arange(48).flip(0))
    tested = make_solver(table, tmp_path / "run", dataclasses.replace(config, ema_decay=None), IndexedModel)
    tested.load_best()
    validated = {key: solver.history[-1][f"val_{key}"] for key in ("srcc", "plcc")}
    assert tested.evaluate(tested.val_loader) == validated


def test_the_average_is_torchs_own_to_the_bit():
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    ours = make_average(model, dataclasses.replace(CONFIG, ema_decay=0.97), torch.device("cpu"))
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.97), use_buffers=True)
    for _ in range(4):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(torch.randn_like(tensor.float()))
        ours.update_parameters(model)
        theirs.update_parameters(model)
    floats = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert_equal_states(
        *({n: t for n, t in each.module.state_dict().items() if n in floats} for each in (ours, theirs))
    )
    assert list(ours.state_dict()) == list(theirs.state_dict()) and ours.n_averaged == theirs.n_averaged


def test_the_average_of_a_swin_keeps_its_relative_positions():
    model = SmartIQA("nano")
    average = make_average(model, dataclasses.replace(CONFIG, ema_decay=0.9999), torch.device("cpu"))
    for _ in range(2):
        average.update_parameters(model)
    indices = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    assert indices
    averaged = dict(average.module.named_buffers())
    assert [name for name, buffer in indices.items() if not torch.equal(buffer, averaged[name])] == []


def overflowing_scaler() -> torch.amp.GradScaler:
    """A scaler under which the first steps of an L2 loss overflow; it is doubled after three that do not."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_schedule_and_average_wait_while_fp16_overflows(table, tmp_path, optimizer):
    config = dataclasses.replace(CONFIG, optimizer=optimizer, lr=1e-4, ema_decay=0.9, epochs=2, loss_type="l2")
    solver = make_solver(table, tmp_path / "run", config, scaler=overflowing_scaler())
    moved, before = 0, state(solver)
    step = solver.optimizer.step

    def count_moves(*args):
        nonlocal moved, before
        step(*args)
        moved += any(not torch.equal(before[name], tensor) for name, tensor in state(solver).items())
        before = state(solver)

    solver.optimizer.step = count_moves
    solver.fit()
    assert 0 < moved < 8
    assert solver.scheduler.last_epoch == solver.average.n_averaged == moved


def test_a_resumed_fp16_run_goes_on_with_its_scale(table, tmp_path):
    config = dataclasses.replace(CONFIG, loss_type="l2", ema_decay=0.9)
    whole = make_solver(table, tmp_path / "whole", config, scaler=overflowing_scaler())
    whole.fit()
    make_solver(table, tmp_path / "stopped", config, scaler=overflowing_scaler()).fit(last_epoch=2)
    resumed = make_solver(table, tmp_path / "stopped", config, scaler=overflowing_scaler())
    resumed.resume()
    resumed.fit()
    assert_equal_states(state(whole), state(resumed))
    assert resumed.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()


@pytest.mark.parametrize("processes", [1, 4])
def test_photographs_weigh_the_same_however_many_processes_share_them(processes):
    solver = object.__new__(HyperIQASolver)
    solver.config = Config(photo_weight=2.0)
    solver.accelerator = SimpleNamespace(num_processes=processes, process_index=0, mixed_precision="no")
    solver.accelerator.device = torch.device("cpu")
    solver.accelerator.reduce = lambda share, how: processes * share  # as many have the same
    solver.to_images, solver.model = lambda crops, augment, jitter: crops, lambda images: images
    term = torch.tensor(3.0, requires_grad=True)
    solver.loss, solver.photographs = lambda *values: torch.tensor(0.0), lambda score, step: term
    batch = SimpleNamespace(crops=torch.ones(2), augment=None, mos=torch.ones(2), mos_std=torch.ones(2))
    batch.database = torch.zeros(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("HyperIQASolver_swin.gather_shares", lambda accelerator, scores, labels, size: (scores, labels))
        loss, _ = solver.batch_loss(batch, 2, 0)
    loss.backward()
    assert loss.item() == 6
    assert term.grad * processes == 2  # what the processes' gradients add up to
