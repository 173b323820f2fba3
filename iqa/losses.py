"""Losses: (scores, mos) -> scalar. Both are (B,) on the mos scale 0..100; higher is better.

Between the network's scores and the solver. Up to rounding no loss is negative. Each has a gradient for every batch;
those of pairs and of correlation give 0, not NaN, where a batch has none (one image; for rank and plcc, only ties).
A loss is a function of any of: scores, mos, mos_std, database (all (B,)), databases (how many) and margin.
`iqa.choices.LOSSES` gives it the name that settings know it by.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from iqa.choices import LOSSES

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


def plcc_loss(scores: Tensor, mos: Tensor, database: Tensor | None = None, databases: int = 1) -> Tensor:
    """1 - Pearson correlation, 0..2; blind to scale and offset.

    Of several databases (`database` (B,), numbered below `databases`) each one's own, averaged by its images.
    One in which either side is constant has no correlation and gives 0.

    >>> round(plcc_loss(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])).item(), 6)
    0.0
    """
    database = torch.zeros_like(scores, dtype=torch.long) if database is None else database
    member = F.one_hot(database, databases).T.bool()  # (D, B)
    count = member.sum(dim=1)
    # Not "norm is 0": the mean of equal floats can differ from them by a rounding.
    defined = _spreads(scores, member) & _spreads(mos, member)
    q, y = (
        (values - (member * values).sum(dim=1, keepdim=True) / count.clamp(min=1)[:, None]) * member
        for values in (scores, mos)
    )  # (D, B)
    norms = torch.where(defined, q.norm(dim=1) * y.norm(dim=1), 1.0)
    losses = torch.where(defined, 1 - (q * y).sum(dim=1) / norms, 0.0)
    return (losses * count).sum() / len(scores)


def _spreads(values: Tensor, member: Tensor) -> Tensor:
    """(D,) whether a group has two different values; no branch, so that no device has to answer."""
    high = torch.where(member, values, -torch.inf).amax(dim=1)
    return high > torch.where(member, values, torch.inf).amin(dim=1)


def _pairs(scores: Tensor, database: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of both images of every pair, and 1 where a pair is of one database (scores compare only there)."""
    i, j = torch.triu_indices(len(scores), len(scores), offset=1, device=scores.device)
    return i, j, torch.ones_like(scores[i]) if database is None else (database[i] == database[j]).to(scores.dtype)


def ranking_loss(scores: Tensor, mos: Tensor, margin: float, database: Tensor | None = None) -> Tensor:
    """Pairwise hinge: mean over ordered pairs of max(0, margin - (q_i - q_j) * sign(y_i - y_j)).

    `margin` is in mos units. Pairs of two databases, and those with equal mos, have no order and do not count;
    without any ordered pair the loss is 0.

    >>> ranking_loss(torch.tensor([0.0, 20.0]), torch.tensor([10.0, 30.0]), margin=10.0).item()
    0.0
    """
    i, j, same = _pairs(scores, database)
    order = (mos[i] - mos[j]).sign() * same
    hinge = F.relu(margin - (scores[i] - scores[j]) * order) * order.abs()
    return hinge.sum() / order.abs().sum().clamp(min=1)


def fidelity_loss(scores: Tensor, mos: Tensor, mos_std: Tensor | None = None, database: Tensor | None = None) -> Tensor:
    """Mean over pairs of 1 - sqrt(p p') - sqrt((1 - p)(1 - p')), 0..1 (Tsai et al., SIGIR 2007).

    p is the probability, under Thurstone's model, that people prefer image i to image j, from mos and
    rating deviations (NaN or None: `DEFAULT_MOS_STD`); p' the same from the scores with that fixed
    deviation, as UNIQUE does (Zhang et al., TIP 2021). Pairs are of one database; without one the loss is 0.

    >>> fidelity_loss(torch.tensor([50.0]), torch.tensor([50.0])).item()
    0.0
    """
    std = torch.full_like(mos, DEFAULT_MOS_STD) if mos_std is None else mos_std.nan_to_num(DEFAULT_MOS_STD)
    i, j, same = _pairs(scores, database)
    spread = (std[i] ** 2 + std[j] ** 2).sqrt().clamp(min=1e-3)
    truth = torch.special.ndtr((mos[i] - mos[j]) / spread)
    predicted = torch.special.ndtr((scores[i] - scores[j]) / (DEFAULT_MOS_STD * 2**0.5))
    tiny = torch.finfo(scores.dtype).eps  # sqrt has no finite slope at 0
    truth, predicted = truth.clamp(tiny, 1 - tiny), predicted.clamp(tiny, 1 - tiny)
    distance = 1 - (truth * predicted).sqrt() - ((1 - truth) * (1 - predicted)).sqrt()
    return (distance * same).sum() / same.sum().clamp(min=1)


def make_loss(loss_type: str, alpha: float, margin: float, databases: int = 1) -> Callable[..., Tensor]:
    """The training loss `primary + alpha * ranking`.

    Args:
        loss_type: a key of `iqa.choices.LOSSES`.
        alpha: weight of the ranking loss; 0 leaves it out.
        margin: of the ranking loss, as a fraction of the mos range, so 0.1 is 10 mos units.
        databases: how many the batches come from.

    Returns:
        A function of scores (B,), mos (B,), and optionally rating deviations (B,) and database numbers (B,).
    """
    primary = globals()[LOSSES[loss_type]]
    settings = {"margin": margin * MOS_RANGE, "databases": databases}

    def total(scores: Tensor, mos: Tensor, mos_std: Tensor | None = None, database: Tensor | None = None) -> Tensor:
        known = {**settings, "scores": scores, "mos": mos, "mos_std": mos_std, "database": database}
        loss = _call(primary, known)
        return loss + alpha * _call(ranking_loss, known) if alpha else loss

    return total


def _call(loss: Callable[..., Tensor], known: dict) -> Tensor:
    """Compute a loss from those of the known values that its signature names."""
    return loss(**{name: known[name] for name in inspect.signature(loss).parameters})
