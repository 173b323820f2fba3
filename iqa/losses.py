"""Losses: (scores, mos) -> scalar. Both are (B,) on the mos scale 0..100; higher is better.

Between the network's scores and the solver. No loss is negative; each has a gradient for every batch,
and gives 0, not NaN, where a batch says nothing (one image, or only ties).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

MOS_RANGE = 100.0
# Deviation of one observer's rating where a database has none: about a fifth of the scale is usual.
DEFAULT_MOS_STD = 20.0


def l1_loss(scores: Tensor, mos: Tensor) -> Tensor:
    """Mean of |q - y|, in mos units.

    >>> l1_loss(torch.tensor([10.0, 30.0]), torch.tensor([20.0, 30.0])).item()
    5.0
    """
    return F.l1_loss(scores, mos)


def l2_loss(scores: Tensor, mos: Tensor) -> Tensor:
    """Mean of (q - y)^2, in squared mos units.

    >>> l2_loss(torch.tensor([10.0, 30.0]), torch.tensor([20.0, 30.0])).item()
    50.0
    """
    return F.mse_loss(scores, mos)


def plcc_loss(scores: Tensor, mos: Tensor) -> Tensor:
    """1 - Pearson correlation, 0..2; blind to scale and offset.

    A batch in which either side is constant has no correlation and gives 0.

    >>> round(plcc_loss(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])).item(), 6)
    0.0
    """
    q, y = scores - scores.mean(), mos - mos.mean()
    # Not "norm is 0": the mean of equal floats can differ from them by a rounding.
    if (scores == scores[0]).all() or (mos == mos[0]).all():
        return (q * 0.0).sum()
    return 1 - (q * y).sum() / (q.norm() * y.norm())


def ranking_loss(scores: Tensor, mos: Tensor, margin: float) -> Tensor:
    """Pairwise hinge: mean over ordered pairs of max(0, margin - (q_i - q_j) * sign(y_i - y_j)).

    `margin` is in mos units. Pairs with equal mos have no order and do not count; without any
    ordered pair the loss is 0.

    >>> ranking_loss(torch.tensor([0.0, 20.0]), torch.tensor([10.0, 30.0]), margin=10.0).item()
    0.0
    """
    i, j = torch.triu_indices(len(scores), len(scores), offset=1, device=scores.device)
    order = (mos[i] - mos[j]).sign()
    hinge = F.relu(margin - (scores[i] - scores[j]) * order) * order.abs()
    return hinge.sum() / order.abs().sum().clamp(min=1)


def fidelity_loss(scores: Tensor, mos: Tensor, mos_std: Tensor | None = None) -> Tensor:
    """Mean over pairs of 1 - sqrt(p p') - sqrt((1 - p)(1 - p')), 0..1 (Tsai et al., SIGIR 2007).

    p is the probability, under Thurstone's model, that people prefer image i to image j, from mos and
    rating deviations (NaN or None: `DEFAULT_MOS_STD`); p' the same from the scores with that fixed
    deviation, as UNIQUE does (Zhang et al., TIP 2021). Without a pair the loss is 0.

    >>> fidelity_loss(torch.tensor([50.0]), torch.tensor([50.0])).item()
    0.0
    """
    std = torch.full_like(mos, DEFAULT_MOS_STD) if mos_std is None else mos_std.nan_to_num(DEFAULT_MOS_STD)
    i, j = torch.triu_indices(len(scores), len(scores), offset=1, device=scores.device)
    spread = (std[i] ** 2 + std[j] ** 2).sqrt().clamp(min=1e-3)
    truth = torch.special.ndtr((mos[i] - mos[j]) / spread)
    predicted = torch.special.ndtr((scores[i] - scores[j]) / (DEFAULT_MOS_STD * 2**0.5))
    tiny = torch.finfo(scores.dtype).eps  # sqrt has no finite slope at 0
    truth, predicted = truth.clamp(tiny, 1 - tiny), predicted.clamp(tiny, 1 - tiny)
    distance = 1 - (truth * predicted).sqrt() - ((1 - truth) * (1 - predicted)).sqrt()
    return distance.sum() / max(len(i), 1)


def make_loss(loss_type: str, alpha: float, margin: float) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The training loss `primary + alpha * ranking`.

    Args:
        loss_type: `l1`, `l2`, `plcc`, `rank` or `fidelity`.
        alpha: weight of the ranking loss; 0 leaves it out.
        margin: of the ranking loss, as a fraction of the mos range, so 0.1 is 10 mos units.

    Returns:
        A function of scores (B,), mos (B,) and rating deviations (B,) or None.
    """
    margin = margin * MOS_RANGE

    def total(scores: Tensor, mos: Tensor, mos_std: Tensor | None = None) -> Tensor:
        primaries = {
            "l1": lambda: l1_loss(scores, mos),
            "l2": lambda: l2_loss(scores, mos),
            "plcc": lambda: plcc_loss(scores, mos),
            "rank": lambda: ranking_loss(scores, mos, margin),
            "fidelity": lambda: fidelity_loss(scores, mos, mos_std),
        }
        loss = primaries[loss_type]()
        return loss + alpha * ranking_loss(scores, mos, margin) if alpha else loss

    return total
