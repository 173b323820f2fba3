"""How sharp attention is, and whether two models differ in it: numpy and scipy, no torch.

    rows of attention weights -[row_statistics]-> a value per row -[sample_statistics]-> a value per sample
      -[compare_paired]-> paired tests of two models -[finding]-> one word

A row is one query's weights over its tokens; they sum to 1. A mask says which tokens count: a row is taken over
the tokens that count and scaled to sum to 1 there, so that weight on padding neither sharpens nor blurs it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from iqa.errors import UserError

STATISTICS = ("entropy", "max_weight", "tokens_over_threshold", "gini")
THRESHOLD = 0.1
SIGNIFICANT = 0.05
FEWEST_SAMPLES = 3  # two differences always have a spread, so a t-test of two says nothing
ROW_SUM_TOLERANCE = 1e-3  # a softmax over hundreds of tokens, stored in half precision, is off by half of that
# 0.1 in single precision is a little more than 0.1, and so is 0.1 after a row is scaled to its sum.
_OVER = THRESHOLD + 1e-6
# Differences and spreads below this are rounding, not data: the statistics are of order 1.
_ROUNDING = 1e-12


# --------------------------------------------------------------------------------------------------
# Rows


def row_statistics(weights: ArrayLike, mask: ArrayLike | None = None) -> dict[str, np.ndarray]:
    """Four measures of how sharp each row of attention is.

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
    """The row statistics of attention (samples, queries, tokens), averaged over queries: (samples,) each."""
    counts = None if mask is None else mask.reshape(len(mask), -1, mask.shape[-1])  # (samples, 1 or queries, tokens)
    return {name: rows.mean(axis=1) for name, rows in row_statistics(attention, counts).items()}


def check_attention(attention: ArrayLike, mask: ArrayLike | None, source: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Attention and mask as `sample_statistics` takes them.

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


# --------------------------------------------------------------------------------------------------
# Two models on the same samples


def compare_paired(full: np.ndarray, no_middle: np.ndarray) -> dict:
    """Two models' values of one quantity on the same samples: means, difference, tests, effect sizes.

    The difference is full - no_middle. Cohen's d_z = mean(d) / std(d) (Cohen, "Statistical Power Analysis for
    the Behavioral Sciences", 1988); the rank-biserial correlation = (W+ - W-) / (W+ + W-) over the signed
    ranks of the differences that are not 0 (Kerby, 2014), -1 where full is always lower, 1 where always higher.

    Args:
        full: (n,) values of the model with the stage.
        no_middle: (n,) values of the model without it, same samples, same order.

    Returns:
        JSON-safe: `n`, `full_mean`, `full_std`, `no_middle_mean`, `no_middle_std`, `difference`,
        `difference_percent` (of no_middle; None where that is 0), `difference_ci95`, `ttest` {t, p}, `wilcoxon` {w, p},
        `cohens_dz`, `rank_biserial`, all two-sided, and `note`, which says why a value is None (else None).
    """
    d = full - no_middle
    d = np.where(np.abs(d) < _ROUNDING, 0.0, d)
    base = float(no_middle.mean())
    return {
        "n": len(d),
        "full_mean": float(full.mean()),
        "full_std": _std(full),
        "no_middle_mean": base,
        "no_middle_std": _std(no_middle),
        "difference": float(d.mean()),
        "difference_percent": 100 * float(d.mean()) / base if abs(base) > _ROUNDING else None,
        **_tests(d),
    }


def _std(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _tests(d: np.ndarray) -> dict:
    """Tests and effect sizes of differences (n,); a quantity that is not defined is None, with a note."""
    nothing = {"t": None, "p": None}
    tests = {"difference_ci95": None, "ttest": nothing, "wilcoxon": {"w": None, "p": None}}
    tests |= {"cohens_dz": None, "rank_biserial": None, "note": None}
    if len(d) < FEWEST_SAMPLES:
        return tests | {"note": f"not tested: {len(d)} samples, {FEWEST_SAMPLES} are needed"}
    if not d.any():
        return tests | {"note": "not tested: no sample differs"}
    signed_rank = stats.wilcoxon(d)
    tests["wilcoxon"] = {"w": float(signed_rank.statistic), "p": float(signed_rank.pvalue)}
    tests["rank_biserial"] = _rank_biserial(d)
    if np.ptp(d) < _ROUNDING:  # no spread: t and d_z are infinite
        mean = float(d.mean())
        note = "every sample differs by the same amount: t and d_z are infinite"
        return tests | {"difference_ci95": [mean, mean], "ttest": {"t": None, "p": 0.0}, "note": note}
    t = stats.ttest_1samp(d, 0.0)
    interval = t.confidence_interval()
    tests["difference_ci95"] = [float(interval.low), float(interval.high)]
    tests["ttest"] = {"t": float(t.statistic), "p": float(t.pvalue)}
    tests["cohens_dz"] = float(d.mean() / d.std(ddof=1))
    return tests


def _rank_biserial(d: np.ndarray) -> float:
    d = d[d != 0]
    ranks = stats.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum())


def correlate(a: np.ndarray, b: np.ndarray) -> dict:
    """Spearman's correlation of two quantities (n,): `rho`, `p`, `n`, and `note` where it is not defined."""
    result = {"rho": None, "p": None, "n": len(a), "note": None}
    if len(a) < FEWEST_SAMPLES:
        return result | {"note": f"{len(a)} samples, {FEWEST_SAMPLES} are needed"}
    if min(np.ptp(a), np.ptp(b)) < _ROUNDING:
        return result | {"note": "one of the two does not vary"}
    found = stats.spearmanr(a, b)
    return result | {"rho": float(found.statistic), "p": float(found.pvalue)}


def finding(entropy: dict, error: dict | None) -> str:
    """Does the stage make attention sharper and the model better? One word from two `compare_paired`.

    `supported`: entropy lower with p < 0.05, and error lower. `partly`: error lower, entropy not significantly
    different. `contradicted`: entropy higher with p < 0.05, and error lower. Otherwise `inconclusive`. The p is
    the paired t-test's; of the error only the sign of the mean difference counts.

    Args:
        entropy: the comparison of entropy.
        error: the comparison of prediction error; None where it is not known.
    """
    if error is None or error["difference"] >= 0:
        return "inconclusive"
    p = entropy["ttest"]["p"]
    if p is None or p >= SIGNIFICANT:
        return "partly"
    return "supported" if entropy["difference"] < 0 else "contradicted"
