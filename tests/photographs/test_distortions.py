"""Distortions of whole batches: every kind, in any strength, on the device of the batch."""

from __future__ import annotations

import pytest
import torch

from iqa.photographs import KINDS, MAX_CHAIN, Chains, distort_batch, draw_chains

NAMES = [kind.name for kind in KINDS]


def scene(side: int = 64) -> torch.Tensor:
    """Four images (4, 3, side, side) with edges, slopes and texture."""
    generator = torch.Generator().manual_seed(5)
    x = torch.linspace(0, 1, side)
    slope = (x[:, None] + x).expand(3, side, side) / 2
    edges = ((8 * x).floor() % 2)[:, None].expand(side, side) * torch.tensor([0.9, 0.5, 0.2])[:, None, None]
    texture = torch.rand(3, side, side, generator=generator)
    colours = torch.rand(3, 10, 10, generator=generator).repeat_interleave(7, 1).repeat_interleave(7, 2)
    return torch.stack([slope, edges, texture, colours[:, :side, :side]])


def one_kind(kind: int, strength: float, batch: int = 4) -> Chains:
    kinds = torch.full((batch, MAX_CHAIN), -1)
    kinds[:, 0] = kind
    return Chains(kinds, torch.full((batch, MAX_CHAIN), strength))


def distorted(kind: int, strength: float) -> torch.Tensor:
    return distort_batch(scene(), one_kind(kind, strength), torch.Generator().manual_seed(1))


def test_there_are_more_than_24_kinds_with_names_of_their_own():
    assert len(set(NAMES)) == len(KINDS) >= 24


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=NAMES)
def test_a_stronger_distortion_moves_pixels_further_from_the_original(kind):
    weak, middle, strong = ((distorted(kind, s) - scene()).abs().mean().item() for s in (0.0, 0.5, 1.0))
    assert weak < middle < strong
    assert strong > 0.01


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=NAMES)
def test_every_kind_gives_8_bit_values_in_range_and_leaves_its_input_alone(kind):
    images = scene(50)  # no multiple of any block
    before = images.clone()
    out = distort_batch(images, one_kind(kind, 1.0), torch.Generator().manual_seed(1))
    assert torch.equal(images, before)
    assert out.shape == images.shape
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.allclose(out * 255, (out * 255).round(), atol=1e-4)


def test_an_image_is_distorted_alike_whatever_lies_beside_it_in_the_batch():
    kind = NAMES.index("gaussian_blur")
    chains = one_kind(kind, 0.7)
    mixed = Chains(chains.kinds.clone(), chains.strengths)
    mixed.kinds[1:, 0] = torch.tensor([NAMES.index("jpeg"), NAMES.index("ringing"), -1])
    out = distort_batch(scene(), mixed, torch.Generator().manual_seed(1))
    assert torch.allclose(out[0], distorted(kind, 0.7)[0], atol=1e-6)
    assert torch.allclose(out[3], (scene()[3] * 255).round() / 255)


def test_equal_generators_give_equal_batches():
    chains = draw_chains(4, torch.Generator().manual_seed(2))
    twice = [distort_batch(scene(), chains, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*twice)


def test_chains_have_one_to_four_different_kinds_and_half_of_them_one():
    kinds, strengths = draw_chains(2000, torch.Generator().manual_seed(0))
    lengths = (kinds >= 0).sum(dim=1)
    assert set(lengths.tolist()) == {1, 2, 3, 4}
    assert 0.45 < (lengths == 1).float().mean() < 0.55
    assert all(len(set(row[row >= 0].tolist())) == (row >= 0).sum() for row in kinds)
    assert strengths.min() >= 0
    assert strengths.max() <= 1


def test_a_kind_is_drawn_as_often_as_its_share_says():
    first = draw_chains(20_000, torch.Generator().manual_seed(0)).kinds[:, 0]
    found = first.bincount(minlength=len(KINDS)) / len(first)
    shares = torch.tensor([kind.share for kind in KINDS])
    assert torch.allclose(found, shares / shares.sum(), atol=0.01)


def test_jpeg_of_high_quality_is_close_and_blocks_show_at_low_quality():
    kind = NAMES.index("jpeg")
    out = distorted(kind, 1.0)[0]
    across = (out[:, :, 8::8] - out[:, :, 7:-1:8]).abs().mean()
    inside = (out[:, :, 4::8] - out[:, :, 3:-1:8]).abs().mean()
    assert across > 2 * inside
