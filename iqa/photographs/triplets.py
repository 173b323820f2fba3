"""Photographs -> triplets: a crop, the crop distorted, and the crop distorted more strongly in the same way.

What is known without any human score: how similar each is to its original (HaarPSI), and which of the three is
better. Pretraining and the photograph term of training learn from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from iqa.photographs.bank import Photographs
from iqa.photographs.distortions import Chains, distort_batch, draw_chains
from iqa.system import to_device


class Triplets(NamedTuple):
    """Crops in three qualities, best first."""

    images: Tensor  # (3, B, 3, side, side) in 0..1
    similarity: Tensor  # (3, B) HaarPSI with the original, 0..1; the first row is 1


def make_triplets(
    photographs: Photographs, rows: Tensor, side: int, seed: int, single: float = 0.5, soft: float = 0.0
) -> Triplets:
    """Cut and distort a crop of each photograph.

    Args:
        photographs: on the device where the result lies.
        rows: (B,) numbers of photographs, on the CPU.
        side: of the crops, in pixels, at least 32.
        seed: all that is random follows from it.
        single: share of the crops with one kind of distortion.
        soft: how likely the crops, all of them, are soft (see `Photographs.soft_crops`); above 0 half of the crops,
            soft or not, are grainy.

    Similarity is HaarPSI's (Reisenhofer et al., Signal Processing: Image Communication 2018), by piq.
    """
    from iqa.system import declare_missing_operators

    declare_missing_operators()
    import piq  # it imports torchvision, which needs the line above

    device = photographs.pixels.device
    with torch.autocast(device.type, enabled=False):
        return _make_triplets(photographs, rows, side, seed, single, soft, piq.haarpsi)


def _make_triplets(
    photographs: Photographs, rows: Tensor, side: int, seed: int, single: float, soft: float, similarity_of: Callable
) -> Triplets:
    device = photographs.pixels.device
    draws = torch.Generator().manual_seed(seed)
    noise = torch.Generator(device).manual_seed(seed)
    is_soft = bool(soft) and torch.rand((), generator=draws).item() < soft
    clean = (photographs.soft_crops if is_soft else photographs.crops)(rows, side, draws)
    clean = grainy(clean, draws, noise) if soft else clean
    chains = draw_chains(len(rows), draws, single)
    share = torch.rand(len(rows), 1, generator=draws)  # how far the weaker copy goes
    weak = Chains(chains.kinds, chains.strengths * share)
    distorted = distort_batch(
        clean.repeat(2, 1, 1, 1), Chains(*(torch.cat(pair) for pair in zip(weak, chains, strict=True))), noise
    )
    similarity = similarity_of(clean.repeat(2, 1, 1, 1), distorted, reduction="none")
    similarity = similarity.clamp(0, 1)  # HaarPSI of two flat crops is infinite
    similarity = torch.cat([torch.ones_like(similarity[: len(rows)]), similarity]).view(3, -1)
    return Triplets(torch.cat([clean, distorted]).unflatten(0, (3, -1)), similarity)


def grainy(crops: Tensor, draws: torch.Generator, noise: torch.Generator) -> Tensor:
    """Give half of the crops (B, 3, H, W) in 0..1 the grain of a sensor, in any strength up to `GRAIN`.

    A codec takes grain away, and a model that knows noise as a distortion alone takes that for better.

    Args:
        crops: to be seen as undistorted.
        draws: says which and how strong; on the CPU.
        noise: on the crops' device.
    """
    strength, chosen = torch.rand(2, len(crops), generator=draws)
    deviation = to_device(GRAIN * strength * (chosen < 0.5), crops.device)[:, None, None, None]
    grain = torch.randn(crops[:, :1].shape, generator=noise, device=crops.device)  # of luma: the same in each channel
    return (crops + deviation * grain).clamp(0, 1)


def order_loss(quality: Tensor, margin: float) -> Tensor:
    """Mean hinge over the neighbours in a triplet: each shall be better than the next by `margin`.

    >>> order_loss(torch.tensor([[3.0], [2.0], [1.0]]), margin=0.5).item()
    0.0
    """
    return F.relu(margin - (quality[:-1] - quality[1:])).mean()


DROP = 70.0  # of a score where HaarPSI falls from 1 to 0
SLACK = 5.0  # of a drop, in mos: smaller differences count by their square
ORDER_WEIGHT = 4.0  # a wrong order is worse than a wrong distance
ORDER_MARGIN = 3.0  # between neighbours in a triplet, in mos
GRAIN = 0.03  # deviation of the strongest grain of an original, full range being 1
SOFT = 0.5  # share of the steps whose crops are soft
SINGLE = 0.75  # share of the crops with one kind of distortion alone, as a scored image mostly has


class PhotographTerm:
    """A loss beside that of the scores: distorted copies of photographs score lower, by as much as HaarPSI says.

    A photograph has no score, so nothing is said of the original's; only how much lower its copies lie.

    Args:
        photographs: to learn from.
        batch: photographs a step, of crops of the first side; of larger ones fewer, as many pixels.
        sides: of the crops, in pixels; each step draws one.
        seed: of the run.
    """

    def __init__(self, photographs: Photographs, batch: int, sides: Sequence[int], seed: int):
        self.photographs, self.batch, self.sides, self.seed = photographs, batch, sides, seed

    def __call__(self, score: Callable[[Tensor], Tensor], step: int) -> Tensor:
        """The loss, in mos units.

        Args:
            score: images (3B, 3, side, side) in 0..1 -> scores (3B,).
            step: number of the batch since training began; with the seed it decides all that is random.
        """
        seed = (self.seed + 1) * 1_000_003 + step
        draws = torch.Generator().manual_seed(seed)
        side = self.sides[int(torch.randint(len(self.sides), (), generator=draws))]
        batch = max(1, round(self.batch * (self.sides[0] / side) ** 2))
        rows = torch.randint(len(self.photographs), (batch,), generator=draws)
        images, similarity = make_triplets(self.photographs, rows, side, seed, SINGLE, SOFT)
        scores = score(images.flatten(0, 1)).float().view(3, -1)
        drops, due = scores[0] - scores[1:], DROP * (1 - similarity[1:])
        return F.smooth_l1_loss(drops, due, beta=SLACK) + ORDER_WEIGHT * order_loss(scores, ORDER_MARGIN)
