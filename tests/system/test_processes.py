"""Two and three processes of a loop learn what one learns, whatever the loss, the shares and who goes on.

Forked processes that talk over gloo, on the loop's linear model: a start costs no imports.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import long
from test_solver import CONFIG, TinyModel, table  # noqa: F401 (a fixture)

from data_loader import test_loader as make_test_loader, to_images, train_loader
from HyperIQASolver_swin import HyperIQASolver
from iqa.checkpoint import read_checkpoint
from iqa.choices import LOSSES
from iqa.config import Config
from iqa.results import read_history
from iqa.runtime import make_accelerator, seed_everything

# 16 crops in batches of 5: shares of 3 and 2, or 2, 2 and 1. The last batch has one crop: some shares are empty.
UNEVEN = dataclasses.replace(CONFIG, epochs=3, batch_size=5, lr=1e-3)


class StillModel(TinyModel):
    """As `TinyModel`, without dropout, whose masks differ between processes."""

    def forward(self, images):
        pooled = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        return 50 + self.head(self.backbone(pooled).relu())[:, 0]


def in_processes(count: int, work: Callable[[], object]) -> None:
    """Run in forked processes that are one group, as `torchrun` starts them; all have to end well."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            code = 1
            try:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}  # as torchrun sets it
                os.environ |= {name: str(value) for name, value in place.items()} if count > 1 else {}
                work()
                code = 0
            except BaseException:  # noqa: BLE001 (whatever it is, this process ends here)
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * count


def learn(table, run_dir: Path, config: Config, last_epoch: int | None = None, photographs=None) -> HyperIQASolver:  # noqa: F811
    """Train, from the last checkpoint if there is one."""
    seed_everything(config.seed)
    accelerator = make_accelerator("cpu", accumulate=config.accumulate)
    solver = HyperIQASolver(
        model=StillModel(),
        config=config,
        train_loader=train_loader(table, config, accelerator.process_index, accelerator.num_processes),
        val_loader=make_test_loader(table, config),
        to_images=partial(to_images, mean=(0.5,) * 3, std=(0.5,) * 3),
        run_dir=run_dir,
        accelerator=accelerator,
        made={},
        photographs=photographs,
    )
    solver.resume_if_begun()
    solver.fit(last_epoch)
    return solver


def run(table, run_dir: Path, config: Config, *stages: tuple[int, int | None], **more) -> dict[str, torch.Tensor]:  # noqa: F811
    """Let one number of processes after the other learn up to an epoch; the tensors of the last checkpoint."""
    run_dir.mkdir()
    for processes, last_epoch in stages:
        in_processes(processes, lambda last=last_epoch: learn(table, run_dir, config, last, **more))
    return read_checkpoint(run_dir / "last.safetensors")[0]


def assert_alike(one: Path, other: Path) -> None:
    tensors = [read_checkpoint(folder / "last.safetensors")[0] for folder in (one, other)]
    for name, tensor in tensors[0].items():
        if not name.startswith("random."):
            torch.testing.assert_close(tensors[1][name], tensor, rtol=1e-4, atol=1e-5)
    histories = [read_history(folder / "history.jsonl") for folder in (one, other)]
    assert len(histories[0]) == len(histories[1])
    for alone, together in zip(*histories, strict=True):
        for key in ("train_loss", "val_srcc", "val_plcc", "lr", "skipped_steps"):
            assert together[key] == pytest.approx(alone[key], rel=1e-5, abs=1e-5), key


# Plain descent: Adam makes whole steps of the rounding that is left where a gradient is 0, as of plcc's bias.
RATES = {"l1": 1e-4, "l2": 1e-6, "plcc": 1e-2, "rank": 1e-4, "fidelity": 1e-2}
SETTINGS = {
    **{loss: {"loss_type": loss, "ranking_loss_alpha": 0.1, "optimizer": "sgd", "lr": RATES[loss]} for loss in LOSSES},
    "average and accumulation": {"ema_decay": 0.9, "accumulate": 2, "warmup_epochs": 1.0},
    "clipping": {"grad_clip": 0.5, "optimizer": "sgd", "lr": 1e-5},
}


FAST = ("rank", "average and accumulation")


@pytest.mark.parametrize("name", [name if name in FAST else long(name) for name in SETTINGS])
def test_two_and_three_processes_with_uneven_shares_learn_what_one_learns(table, tmp_path, name):  # noqa: F811
    config = dataclasses.replace(UNEVEN, epochs=2, **SETTINGS[name])
    for processes in (1, 2, 3):
        run(table, tmp_path / str(processes), config, (processes, None))
    assert_alike(tmp_path / "1", tmp_path / "2")
    assert_alike(tmp_path / "1", tmp_path / "3")


def test_a_run_goes_on_with_another_number_of_processes(table, tmp_path):  # noqa: F811
    config = dataclasses.replace(UNEVEN, ema_decay=0.9)
    run(table, tmp_path / "whole", config, (1, None))
    run(table, tmp_path / "shared", config, (2, 1), (3, 2), (1, None))
    assert_alike(tmp_path / "whole", tmp_path / "shared")


def test_a_step_that_is_not_finite_in_one_process_is_skipped_in_all(table, tmp_path):  # noqa: F811
    class Poisoned:
        """A loss of photographs that has no number in the second process's second step."""

        def __call__(self, score, step):
            return score(torch.rand(1, 3, 32, 32)).sum() * (float("nan") if step == 3 else 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HyperIQASolver, "_score", lambda self, images: self.model(images))
        run(table, tmp_path / "run", dataclasses.replace(UNEVEN, epochs=1), (2, None), photographs=Poisoned())
    (line,) = read_history(tmp_path / "run" / "history.jsonl")
    assert line["skipped_steps"] == 1 and line["train_loss"] > 0


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 3])
def test_pretraining_in_two_and_three_processes_records_the_loss_of_all_and_ends_alike(tmp_path, processes):
    """Crops are drawn by process, so that losses agree about, not exactly; half of it was recorded of two.

    All crops are distorted alike: with drawn distortions, chance alone moves the mean of so few by a fifth.
    """
    import numpy as np
    from PIL import Image

    from iqa.config import Config as Settings
    from iqa.photographs import Triplets
    from smart_iqa import pretraining

    def darkened(photographs, rows, side, seed) -> Triplets:
        crops = photographs.crops(rows, side, torch.Generator().manual_seed(seed))
        shares = torch.tensor([1.0, 0.9, 0.8])
        return Triplets(shares[:, None, None, None, None] * crops, shares[:, None].expand(3, len(rows)))

    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((48, 40)).save(folder / f"{i}.png")
    records = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "load_backbone_weights", lambda backbone: "random")
        patch.setattr(pretraining, "make_triplets", darkened)
        for count in (1, processes):
            config = Settings(
                name=str(count), results_dir=str(tmp_path), photos=str(folder), backbone="nano", photo_sides=[32],
                epochs=processes - 1, train_patch_num=3, batch_size=4, lr=1e-5, device="cpu", num_workers=0,
                teacher="test_resnet.r160_in1k", ema_decay=0.5, early_stopping=True, patience=1,
            )  # fmt: skip
            in_processes(count, lambda config=config: pretraining.pretrain(config))
            assert (tmp_path / str(count) / "backbone.safetensors").is_file()
            records[count] = read_history(tmp_path / str(count) / "history.jsonl")[0]
    for key in ("train_loss", "val_loss", "val_distil"):
        assert records[processes][key] == pytest.approx(records[1][key], rel=0.1), key
