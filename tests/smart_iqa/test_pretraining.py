"""Pretraining, on made-up photographs and with a teacher of random weights, so that a test takes seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import TINY, command
from PIL import Image
from safetensors.torch import load_file, save_file

import smart_iqa.pretraining as pretraining
from iqa.pretrained import load_backbone_weights
from models_swin import Backbone

SMALL = (
    f"--backbone {TINY} --photo_sides 32 --epochs 2 --train_patch_num 1 --batch_size 4 --lr 1e-3 "
    "--device cpu --num_workers 0 --no_early_stopping --teacher test_convnext2.r160_in1k"
).split()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Nine made-up photographs; the teacher keeps its random weights, since no hub can be had."""
    monkeypatch.setattr(pretraining, "load_backbone_weights", lambda backbone: "random")
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((48, 40)).save(folder / f"{i}.png")
    return folder


def pretrain(photos, results, *more) -> int:
    return command("pretrain", "--photos", photos, "--results_dir", results, "--name", "run", *SMALL, *more)


def test_a_pretrained_backbone_is_a_file_that_training_takes(photos, tmp_path):
    assert pretrain(photos, tmp_path) == 0
    weights = tmp_path / "run" / "backbone.safetensors"
    record = json.loads((tmp_path / "run" / "pretraining.json").read_text())
    assert record["photographs"] == 9
    assert record["crops"] == 3 * 8 * 2
    assert len(record["history"]) == 2
    assert {"val_loss", "val_distil", "val_srcc"} <= set(record["history"][0])
    backbone = Backbone(TINY)
    load_backbone_weights(backbone, weights)
    stored = load_file(weights)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in backbone.body.state_dict().items())


def test_a_stopped_pretraining_goes_on_to_the_same_weights(photos, tmp_path, monkeypatch):
    assert pretrain(photos, tmp_path / "whole") == 0
    fit = pretraining.PretrainingSolver.fit
    with monkeypatch.context() as patch:
        patch.setattr(pretraining.PretrainingSolver, "fit", lambda self: fit(self, last_epoch=1) and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain(photos, tmp_path / "stopped")
    assert pretrain(photos, tmp_path / "stopped", "--resume") == 0
    whole, stopped = (load_file(tmp_path / name / "run" / "backbone.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_each_term_can_be_left_out(photos, tmp_path):
    assert pretrain(photos, tmp_path / "a", "--distil_weight", 0, "--epochs", 1) == 0
    assert pretrain(photos, tmp_path / "b", "--photo_weight", 0, "--epochs", 1) == 0
    first, second = (
        json.loads((tmp_path / name / "run" / "pretraining.json").read_text())["history"][0] for name in "ab"
    )
    assert first["val_loss"] != second["val_loss"]
    assert second["val_loss"] == pytest.approx(second["val_distil"])


def test_half_of_the_crops_are_mixed_with_another_one_blended_or_in_a_rectangle():
    crops = torch.arange(400.0).view(400, 1, 1, 1).expand(400, 3, 16, 24)
    found = pretraining.mixed(crops, torch.Generator().manual_seed(0))
    changed = found != crops
    blended = changed.flatten(1).all(dim=1)
    pasted = changed.flatten(1).any(dim=1) & ~blended
    assert 70 < blended.sum() < 130 and 70 < pasted.sum() < 130
    low, high = torch.minimum(crops, crops.flip(0)), torch.maximum(crops, crops.flip(0))
    assert ((found >= low - 1e-3) & (found <= high + 1e-3)).all()
    assert torch.equal(found[pasted], torch.where(changed, crops.flip(0), crops)[pasted])
    rows, columns = changed[pasted, 0].any(dim=2), changed[pasted, 0].any(dim=1)
    assert torch.equal(changed[pasted, 0], rows[:, :, None] & columns[:, None, :])
    assert torch.equal(pretraining.mixed(crops, torch.Generator().manual_seed(0)), found)


def test_half_of_the_crops_get_other_colours_and_grey_stays_nearly_grey(monkeypatch):
    crops = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = pretraining.recoloured(crops, torch.Generator().manual_seed(0))
    changed = (found != crops).flatten(1).any(dim=1)
    assert 70 < changed.sum() < 130 and found.min() >= 0 and found.max() <= 1
    monkeypatch.setattr(pretraining, "TINTS", 0.0)
    grey = crops[:, :1].expand(-1, 3, -1, -1)
    found = pretraining.recoloured(grey, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, found[:, :1].expand(-1, 3, -1, -1))
    assert (found[changed] != grey[changed]).any()


def test_the_loss_of_averages_does_not_see_where_something_is_and_goes_by_their_spread():
    truth, spreads = [torch.randn(2, 4, side, side) for side in (8, 4)], [torch.full((4,), 0.5)] * 2
    moved = [stage.flip(2, 3) for stage in truth]
    assert pretraining.averages_loss(moved, truth, spreads).item() == pytest.approx(0, abs=1e-6)
    assert pretraining.averages_loss([stage + 1 for stage in truth], truth, spreads).item() == pytest.approx(
        4, rel=1e-4
    )


def test_distilling_alone_shows_no_distorted_copies(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "make_triplets", lambda *_: pytest.fail("a distorted copy was made"))
    assert pretrain(photos, tmp_path, "--photo_weight", 0) == 0
    record = json.loads((tmp_path / "run" / "pretraining.json").read_text())
    assert record["crops"] == 8 * 2
    assert -1 <= record["history"][-1]["val_srcc"] <= 1


def test_pretraining_starts_from_given_weights(photos, tmp_path, monkeypatch):
    given = tmp_path / "given.safetensors"
    save_file({name: tensor + 0 for name, tensor in Backbone(TINY).body.state_dict().items()}, given)
    monkeypatch.setattr(
        pretraining,
        "load_backbone_weights",
        lambda backbone, *file: load_backbone_weights(backbone, *file) if file else "",
    )
    assert pretrain(photos, tmp_path, "--lr", 0, "--epochs", 1, "--backbone_weights", given) == 0
    learned, start = load_file(tmp_path / "run" / "backbone.safetensors"), load_file(given)
    assert all(torch.equal(learned[name], start[name]) for name in start)


@pytest.mark.parametrize(
    "arguments, word", [(["--photos", "nowhere"], "nowhere"), ([], "--photos")], ids=["absent folder", "no folder"]
)
def test_no_photographs_are_one_line(tmp_path, capsys, arguments, word):
    assert command("pretrain", "--results_dir", tmp_path, *SMALL, *arguments) == 2
    assert word in capsys.readouterr().err


def test_sides_grow_with_the_epochs(photos, tmp_path):
    assert pretrain(photos, tmp_path, "--photo_sides", "32", "48") == 0
    assert json.loads((tmp_path / "run" / "pretraining.json").read_text())["config"]["photo_sides"] == [32, 48]


def test_with_an_average_of_the_weights_it_is_the_average_that_is_validated(photos, tmp_path):
    """A rate of 0 and random weights: the average is what it averages, unless it drops paths as in training."""
    still = ["--lr", 0, "--epochs", 1, "--drop_path_rate", 0.5]
    assert pretrain(photos, tmp_path / "a", *still) == 0
    assert pretrain(photos, tmp_path / "b", *still, "--ema_decay", 0.9) == 0
    losses = [
        json.loads((tmp_path / name / "run" / "pretraining.json").read_text())["history"][0]["val_loss"]
        for name in "ab"
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_complete_pretraining_is_not_done_again(photos, tmp_path, capsys):
    assert pretrain(photos, tmp_path) == 0
    weights = tmp_path / "run" / "backbone.safetensors"
    before = weights.stat().st_mtime_ns
    assert not (tmp_path / "run" / "last.safetensors").exists()
    assert pretrain(photos, tmp_path, "--resume") == 0
    assert weights.stat().st_mtime_ns == before


def test_other_photographs_do_not_go_on_with_a_run(photos, tmp_path, capsys):
    assert pretrain(photos, tmp_path) == 0
    other = photos.rename(tmp_path / "other")
    assert pretrain(other, tmp_path, "--resume") == 2
    assert "photos is" in capsys.readouterr().err
