"""Features of a frozen backbone: the same network, the same training, without the backbone's work."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TINY, command
from PIL import Image

from data_loader import Preparation, _as_it_is
from iqa.choices import FUSION_KINDS
from iqa.config import resolve
from iqa.data import caches_on_disk
from iqa.errors import UserError
from iqa.results import read_history
from iqa.runtime import make_accelerator
from models_swin import CONTENT_BRANCHES, SmartIQA
from smart_iqa.frozen_features import FeatureNetwork, FrozenFeatures

CONFIG = resolve(
    {
        "backbone": TINY, "pretrained": False, "freeze_backbone": True, "patch_size": 48, "resize": "none",
        "train_patch_num": 3, "test_patch_num": 2, "num_workers": 0, "device": "cpu", "fusion": "channel",
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> pd.DataFrame:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = []
    for i in range(30):
        path = folder / f"{i:02d}.png"
        Image.fromarray(rng.integers(0, 40 + 7 * i, (60, 70, 3), dtype=np.uint8)).save(path)
        rows.append({"image": path.name, "path": str(path), "mos": 3.0 * i, "mos_std": np.nan, "content": f"c{i}"})
    return pd.DataFrame(rows)


def frozen(folder, table, config=CONFIG, model: SmartIQA | None = None) -> FrozenFeatures:
    torch.manual_seed(0)
    model = model or SmartIQA(TINY, config.fusion, freeze_backbone=True)
    return FrozenFeatures(folder, table, config, model, make_accelerator("cpu"))


@pytest.mark.parametrize("content_vector", CONTENT_BRANCHES)
@pytest.mark.parametrize("fusion", [name for name, kind in FUSION_KINDS.items() if kind.pools_first])
@pytest.mark.parametrize("side", [224, 100])
def test_a_network_scores_pooled_features_as_it_scores_images(fusion, content_vector, side):
    model = SmartIQA(TINY, fusion, content_vector=content_vector).eval()
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        features = model.pooled_features(images)
        assert torch.allclose(model.score_features(features), model(images), atol=1e-4)
    assert features.shape == (2, sum(channels * side**2 for _, channels, side in model.feature_grids))


def test_a_fusion_that_weighs_before_pooling_has_no_pooled_features():
    with pytest.raises(UserError, match="SpatialFusion weighs positions before pooling"):
        SmartIQA(TINY, "spatial").pooled_features(torch.zeros(1, 3, 64, 64))


def test_cached_crops_and_flips_are_those_of_the_plain_loader(tmp_path, table):
    model = SmartIQA(TINY, "channel", freeze_backbone=True).eval()
    features = frozen(tmp_path, table, model=model)
    plain = Preparation(features.network, CONFIG)
    crops = plain.dataset(table)
    with torch.inference_mode():
        for cached, indices in (
            (features.dataset(table, training=True), [(3, 1, 2), (7, 4, 0), (3, 2, 2)]),
            (features.dataset(table), [0, 11, 5]),
        ):
            one, other = cached.__getitems__(indices), crops.__getitems__(indices)
            expected = model(plain.to_images(other.crops, other.augment))
            scores = features.network(features.to_images(one.crops, one.augment))
            assert torch.allclose(scores, expected, atol=1e-2)
            assert all(torch.equal(a, b) for a, b in zip(one[3:], other[3:], strict=True) if not a.isnan().any())


def test_features_are_computed_once_for_all_parts_and_seeds(tmp_path, table, monkeypatch):
    computed = []
    plain = FrozenFeatures._compute
    monkeypatch.setattr(
        FrozenFeatures, "_compute", lambda self, t, training: (computed.append(len(t)), plain(self, t, training))
    )
    frozen(tmp_path, table).dataset(table[:8], training=True)
    again = frozen(tmp_path, table, dataclasses.replace(CONFIG, seed=5))
    again.dataset(table[4:].reset_index(drop=True), training=True)
    again.dataset(table, training=True)
    assert [n for n in computed if n] == [8, 22]


def test_disk_is_taken_for_the_images_that_are_asked_for_alone(tmp_path, table):
    features = frozen(tmp_path, table)
    features.dataset(table[:6], training=True)
    features.dataset(table[6:10].reset_index(drop=True))
    taken = sum(cache.size for cache in caches_on_disk(tmp_path.parent) if cache.name.startswith(tmp_path.name))
    needed = 2 * features.size * (6 * 3 * 2 + 4 * 2)
    assert needed <= taken < needed + 200_000 < 2 * features.size * len(table) * 3 * 2


def test_another_backbone_or_other_crops_are_other_features(tmp_path, table):
    first = frozen(tmp_path, table).dataset(table).__getitems__([0]).crops
    torch.manual_seed(1)
    other_model = frozen(tmp_path, table, model=SmartIQA(TINY, "channel")).dataset(table)
    assert not torch.equal(first, other_model.__getitems__([0]).crops)
    more = frozen(tmp_path, table, dataclasses.replace(CONFIG, test_patch_num=3)).dataset(table)
    assert more.__getitems__([0]).crops.shape[1] == 3


def test_backbones_of_the_same_tensors_that_pad_differently_have_features_of_their_own(tmp_path, table):
    ours, theirs = (
        SmartIQA(name, "channel", freeze_backbone=True) for name in ("efficientnet_lite0", "tf_efficientnet_lite0")
    )
    theirs.load_state_dict(ours.state_dict())
    one, other = (frozen(tmp_path, table[:2], model=m).dataset(table[:2]).__getitems__([0, 1]) for m in (ours, theirs))
    assert not torch.equal(one.crops, other.crops)


def test_another_normalisation_or_device_is_other_features(tmp_path, table):
    model = SmartIQA(TINY, "channel", freeze_backbone=True)
    folders = [frozen(tmp_path, table, model=model).rows[False].folder]
    for name, value in (("mean", (0.4, 0.4, 0.4)), ("std", (0.3, 0.3, 0.3))):
        setattr(model.backbone, name, value)
        folders.append(frozen(tmp_path, table, model=model).rows[False].folder)
    gpu = SimpleNamespace(device=torch.device("cuda"), mixed_precision="no")
    folders.append(FrozenFeatures(tmp_path, table, CONFIG, model, gpu).rows[False].folder)
    assert len(set(folders)) == 4


def test_one_cache_serves_every_fusion_and_content_branch(tmp_path, table, monkeypatch):
    frozen(tmp_path, table).dataset(table)
    monkeypatch.setattr(FrozenFeatures, "_features", None)  # nothing is left to compute
    for fusion, content_vector in (("vector", "lda"), ("single", "pooled"), ("cross_scale", "lda")):
        torch.manual_seed(0)  # the backbone is built first: the same in each
        model = SmartIQA(TINY, fusion, content_vector=content_vector).eval()
        crops = frozen(tmp_path, table, model=model).dataset(table).__getitems__([0]).crops
        assert model.score_features(crops.flatten(0, 1).float()).shape == (2,)


def test_a_network_of_features_shares_what_is_learned_and_its_checkpoint_with_the_network():
    model = SmartIQA(TINY, "channel", freeze_backbone=True)
    network = FeatureNetwork(model)
    with torch.no_grad():
        for parameter in network.hypernet.parameters():
            parameter.add_(1)
    ours, theirs = model.state_dict(), network.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not network.train().backbone.training


def test_a_network_takes_images_and_says_so_to_who_gives_features():
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\)"):
        SmartIQA(TINY, "channel")(torch.zeros(2, 4320))


def test_a_changed_image_makes_its_features_anew(tmp_path, table):
    copy = table.copy()
    copy.loc[0, "path"] = str(tmp_path / "changed.png")
    Image.new("RGB", (70, 60), "red").save(copy.loc[0, "path"])
    first = frozen(tmp_path / "cache", copy).dataset(copy).__getitems__([0]).crops
    Image.new("RGB", (70, 60), "blue").save(copy.loc[0, "path"])
    assert not torch.equal(first, frozen(tmp_path / "cache", copy).dataset(copy).__getitems__([0]).crops)


@pytest.mark.long
def test_spawned_workers_read_the_features_of_their_own_images(tmp_path, table):
    mine = frozen(tmp_path, table)
    dataset = mine.dataset(table)
    expected = dataset.__getitems__(range(30)).crops
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=30, num_workers=1, multiprocessing_context="spawn", collate_fn=_as_it_is
    )
    other = table.assign(path=table["path"][::-1].to_numpy())  # another table of the same names, in the same place
    frozen(tmp_path, other).dataset(other)
    assert torch.equal(next(iter(loader)).crops, expected)


def test_cached_training_gives_what_uncached_training_gives(tmp_path, table):
    table.assign(image=table["path"])[["image", "mos", "content"]].to_csv(tmp_path / "table.csv", index=False)
    settings = (
        f"--dataset csv --backbone {TINY} --no_pretrained --freeze_backbone --attention_fusion --patch_size 48 "
        "--resize none --epochs 2 --train_patch_num 2 --test_patch_num 2 --num_workers 0 --device cpu --no_spaq "
        "--batch_size 6 --dropout_rate 0.3"
    ).split()
    histories = {}
    for name in ("cache", "no_cache"):
        place = ["--data_path", tmp_path / "table.csv", "--results_dir", tmp_path / "results", "--name", name]
        assert command("train_swin", *settings, *place, f"--{name}", "--cache_dir", tmp_path / "cache") == 0
        histories[name] = read_history(tmp_path / "results" / name / "history.jsonl")
    for cached, plain in zip(histories["cache"], histories["no_cache"], strict=True):
        for key in ("train_loss", "val_srcc", "val_plcc"):
            assert cached[key] == pytest.approx(plain[key], rel=1e-3, abs=1e-3)
