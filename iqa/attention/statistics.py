"""How sharp attention is, and whether two models differ in it: numpy and scipy, no torch.

    rows of attention weights -[row_statistics]-> a value per row -[sample_statistics]-> a value per sample
      -[compare_paired]-> paired tests of two models -[finding]-> one word

A row is one query's weights over its tokens; they sum to 1. A mask says which tokens count: a row is taken over
the tokens that count and scaled to sum to 1 there, so that weight on padding neither sharpens nor blurs it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from iqa.errors import UserError

STATISTICS = ("entropy", "max_weight", "tokens_over_threshold", "gini")
THRESHOLD = 0.1
# 0.1 in single precision is a little more than 0.1, and so is 0.1 after a row is scaled to its sum.
_OVER = THRESHOLD + 1e-6
ROW_SUM_TOLERANCE = 1e-3  # a softmax over hundreds of tokens, stored in half precision, is off by half of that


def row_statistics(weights: ArrayLike, mask: ArrayLike | None = None) -> dict[str, np.ndarray]:
    """Measure in four ways how sharp each row of attention is.

    With p the row over the n tokens that count, scaled to sum to 1:
    `entropy` = -sum p ln p, in nats, 0 (one token) .. ln n (uniform);
    `max_weight` = max p, 1/n .. 1;
    `tokens_over_threshold` = number of tokens with p > 0.1;
    `gini` = sum_i (2 i - n - 1) p_i / n with p ascending, 0 (uniform) .. 1 - 1/n (one token).

    Args:
        weights: (..., tokens), checked by `check_attention`.
        mask: (..., tokens) or a shape that broadcasts to it; True where a token counts.

    Returns:
        An array (...) for each name in `STATISTICS`.

    >>> row_statistics([0.8, 0.1, 0.05, 0.05])["entropy"].round(3)
    np.float64(0.708)
    """
    weights = np.asarray(weights, dtype=np.float64)
    counts = np.ones_like(weights, dtype=bool) if mask is None else np.broadcast_to(mask, weights.shape)
    weights = np.where(counts, weights, 0.0)
    p = weights / weights.sum(axis=-1, keepdims=True)  # (..., tokens)
    return {
        "entropy": -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1) + 0.0,  # no minus zero
        "max_weight": p.max(axis=-1),
        "tokens_over_threshold": (p > _OVER).sum(axis=-1).astype(np.float64),
        "gini": _gini(p, counts),
    }


def _gini(p: np.ndarray, counts: np.ndarray) -> np.ndarray:
    n = counts.sum(axis=-1)  # (...)
    # Tokens that do not count sort first and carry no weight, so i starts after them.
    ascending = np.maximum(np.sort(np.where(counts, p, -1.0), axis=-1), 0.0)
    tokens = p.shape[-1]
    i = np.arange(1, tokens + 1) - (tokens - n[..., None])
    return np.sum((2 * i - n[..., None] - 1) * ascending, axis=-1) / n


def sample_statistics(attention: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Average the row statistics of attention (samples, queries, tokens) over queries: (samples,) each."""
    counts = None if mask is None else mask.reshape(len(mask), -1, mask.shape[-1])  # (samples, 1 or queries, tokens)
    return {name: rows.mean(axis=1) for name, rows in row_statistics(attention, counts).items()}


def check_attention(attention: ArrayLike, mask: ArrayLike | None, source: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Check attention and mask, and give them as `sample_statistics` takes them.

    Args:
        attention: (samples, queries, tokens), finite, not negative, rows sum to 1.
        mask: None, or (samples, tokens) or (samples, queries, tokens), of bool or 0 and 1; True counts.
        source: where they come from, for the message.

    Returns:
        Attention as float64 and the mask as bool.

    Raises:
        UserError: says which sample and query is wrong, and how.
    """
    attention, mask = np.asarray(attention), None if mask is None else np.asarray(mask)
    if attention.dtype.kind not in "fiu" or attention.ndim != 3 or 0 in attention.shape:
        raise UserError(
            f"{source}: attention must be numbers of shape (samples, queries, tokens), "
            f"got {attention.dtype} of shape {attention.shape}; average heads first, or list them as queries"
        )
    attention = attention.astype(np.float64)
    _refuse(~np.isfinite(attention).all(axis=-1), source, "holds NaN or infinity")
    _refuse((attention < 0).any(axis=-1), source, "holds a negative weight")
    sums = attention.sum(axis=-1)
    _refuse(np.abs(sums - 1) > ROW_SUM_TOLERANCE, source, "sums to {:.4g}, not 1: give weights after softmax", sums)
    if mask is None:
        return attention, None
    if mask.shape not in (attention.shape, (attention.shape[0], attention.shape[2])):
        raise UserError(
            f"{source}: mask has shape {mask.shape}, expected (samples, tokens) or (samples, queries, tokens) "
            f"of attention {attention.shape}"
        )
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise UserError(f"{source}: mask must hold true and false, or 1 and 0; 1 counts")
    mask = mask.astype(bool)
    counts = np.broadcast_to(mask.reshape(len(mask), -1, mask.shape[-1]), attention.shape)
    _refuse(~counts.any(axis=-1), source, "has no token that counts: its mask leaves nothing")
    kept = np.where(counts, attention, 0.0).sum(axis=-1)
    _refuse(kept <= ROW_SUM_TOLERANCE, source, "has a weight of {:.4g} on the tokens that its mask leaves", kept)
    return attention, mask


def _refuse(bad: np.ndarray, source: str, what: str, values: np.ndarray | None = None) -> None:
    """Stop at the first bad row (samples, queries), and say how many there are."""
    if not bad.any():
        return
    sample, query = np.argwhere(bad)[0]
    text = what if values is None else what.format(values[sample, query])
    raise UserError(
        f"{source}: attention row of sample {sample}, query {query} {text} ({bad.sum()} of {bad.size} rows, from 0)"
    )
