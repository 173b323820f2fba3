"""Photographs as crops on a device, and triplets of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import piq
import pytest
import torch
from PIL import Image

from iqa.config import Config
from iqa.errors import UserError
from iqa.photographs import Photographs, PhotographTerm, held_out, list_photographs, make_triplets, order_loss
from iqa.photographs.triplets import GRAIN, grainy
from iqa.runtime import make_accelerator
from train_swin import _photograph_term


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six made-up photographs of different sizes, one of them in a folder below."""
    root = tmp_path_factory.mktemp("photos")
    (root / "below").mkdir()
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate([(90, 60), (60, 90), (80, 80), (400, 300), (70, 64), (64, 64)]):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(root / ("below" if i == 2 else ".") / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def photographs(folder):
    return Photographs(list_photographs(folder), torch.device("cpu"), longest=100)


def test_folders_are_searched_and_large_photographs_made_smaller(photographs):
    assert len(photographs) == 6
    sizes = sorted(map(tuple, photographs.sizes.int().tolist()))
    assert sizes == [(60, 90), (64, 64), (64, 70), (75, 100), (80, 80), (90, 60)]


@pytest.mark.parametrize("bad", ["nowhere", "empty"])
def test_a_folder_without_photographs_is_refused_by_name(tmp_path, bad):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=bad):
        list_photographs(tmp_path / bad)


def test_the_same_photographs_are_held_out_of_every_training(folder):
    files = list_photographs(folder)
    train, aside = held_out(files)
    assert sorted([*train, *aside]) == files
    assert aside
    many = [folder / f"{i}.jpg" for i in range(1000)]
    assert len(held_out(many)[1]) == pytest.approx(50, abs=20)
    assert set(held_out(many[:500])[1]) <= set(held_out(many)[1])


def test_crops_follow_from_their_seed_and_show_the_photograph(photographs):
    rows = torch.tensor([0, 3, 3])
    crops = [photographs.crops(rows, 32, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*crops)
    assert crops[0].shape == (3, 3, 32, 32)
    assert not torch.equal(crops[0][1], crops[0][2])
    assert not torch.equal(crops[0], photographs.crops(rows, 32, torch.Generator().manual_seed(5)))


def test_a_crop_of_a_photographs_own_size_is_the_photograph_or_its_mirror_image(photographs):
    row = [file.stem for file in photographs.files].index("5")
    crops = photographs.crops(torch.tensor([row] * 8), 64, torch.Generator().manual_seed(0))
    own = photographs.pixels[row, :, :64, :64].float()
    as_it_is = [torch.allclose(crop * 255, own, atol=1e-3) for crop in crops]
    mirrored = [torch.allclose(crop.flip(-1) * 255, own, atol=1e-3) for crop in crops]
    assert any(as_it_is) and any(mirrored)
    assert all(a != b for a, b in zip(as_it_is, mirrored, strict=True))


def test_a_triplet_is_the_crop_and_two_copies_less_and_less_like_it(photographs):
    images, similarity = make_triplets(photographs, torch.arange(6).repeat(8), 48, seed=1)
    assert images.shape == (3, 48, 3, 48, 48)
    assert (similarity[0] == 1).all()
    assert similarity[1].mean() > similarity[2].mean()
    assert similarity.min() >= 0
    assert similarity.max() <= 1 + 1e-5
    again = make_triplets(photographs, torch.arange(6).repeat(8), 48, seed=1)
    assert torch.equal(images, again.images)


def test_copies_of_a_flat_photograph_are_as_similar_as_can_be(tmp_path):
    Image.new("RGB", (64, 64), "black").save(tmp_path / "black.png")
    black = Photographs([tmp_path / "black.png"], torch.device("cpu"), longest=64)
    similarity = make_triplets(black, torch.zeros(64, dtype=int), 48, seed=0).similarity
    assert similarity.isfinite().all()
    assert (similarity == 1).sum() > 64  # a blur, say, leaves black as it is


def test_soft_crops_leave_out_what_differs_from_pixel_to_pixel(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    noisy = Photographs([tmp_path / "noise.png"], torch.device("cpu"))

    def contrast(cut):
        crops = cut(torch.zeros(16, dtype=int), 64, torch.Generator().manual_seed(3))
        assert crops.shape == (16, 3, 64, 64) and crops.min() >= 0 and crops.max() <= 1
        return crops.diff(dim=3).abs().mean()

    assert contrast(noisy.soft_crops) < 0.7 * contrast(noisy.crops)


def test_half_of_the_originals_have_grain_and_none_has_much():
    grey = torch.full((200, 3, 32, 32), 0.5)
    grained = grainy(grey, torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    deviation = grained.std(dim=(1, 2, 3))
    assert (deviation == 0).sum() == pytest.approx(100, abs=20)
    assert deviation.max() < 1.1 * GRAIN
    assert torch.equal(grained[:, 0], grained[:, 1])


def test_order_loss_asks_each_to_beat_the_next_by_the_margin():
    assert order_loss(torch.tensor([[3.0], [2.0], [1.0]]), 1.0).item() == 0
    assert order_loss(torch.tensor([[1.0], [2.0], [2.0]]), 1.0).item() == pytest.approx(1.5)


def test_the_photograph_term_is_least_for_scores_that_fall_as_similarity_does(photographs):
    term = PhotographTerm(photographs, batch=16, sides=[48], seed=0)

    def ideal(images):
        original, *copies = images.unflatten(0, (3, 16))
        similarity = [torch.ones(16), *(piq.haarpsi(original, copy, reduction="none") for copy in copies)]
        return 90 - 70 * (1 - torch.cat(similarity))

    good, flat, reverse = (term(score, 7) for score in (ideal, lambda x: torch.full((48,), 50.0), lambda x: -ideal(x)))
    assert good < flat < reverse


def test_each_step_draws_a_side_and_shows_about_as_many_pixels(photographs):
    term, seen = PhotographTerm(photographs, batch=16, sides=[32, 64], seed=0), set()
    for step in range(8):
        term(lambda images: seen.add(tuple(images.shape)) or images.mean(dim=(1, 2, 3)), step)
    assert seen == {(3 * 16, 3, 32, 32), (3 * 4, 3, 64, 64)}


@pytest.mark.parametrize(("images", "taken"), [(4, 4), (10, 5), (11, 4)])
def test_training_learns_from_copies_of_at_most_as_many_training_images_as_photographs(folder, images, taken):
    files, _ = held_out(list_photographs(folder))
    assert len(files) == 5
    train = pd.DataFrame({"path": [str(files[0])] * images})
    term = _photograph_term(Config(photos=str(folder), photo_sides=[32, 48]), train, make_accelerator("cpu", "fp32"))
    assert len(term.photographs) == 5 + taken
    assert term.sides == [32, 48]
