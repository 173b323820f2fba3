"""Agreement of order and of value: srcc, plcc, krcc, rmse, mae, outlier ratio."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from iqa.metrics.checks import checked_pair, deviations_vector, undefined_reason


def srcc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Spearman's rank correlation: the Pearson correlation of the mid-ranks (Spearman 1904).

    Returns:
        A value in [-1, 1], higher is better; NaN if undefined.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> srcc([1.0, 2.0, 30.0], [10, 20, 30])
    1.0
    """
    from scipy import stats

    scores, mos = checked_pair(scores, mos)
    return plcc(stats.rankdata(scores), stats.rankdata(mos))


def plcc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Pearson's linear correlation, without any mapping (Pearson 1895).

    Formula: sum (s - mean s)(m - mean m) / sqrt(sum (s - mean s)^2 sum (m - mean m)^2).

    Returns:
        A value in [-1, 1], higher is better; NaN if undefined.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> round(plcc([1, 2, 4], [1, 2, 3]), 4)
    0.982
    """
    scores, mos = checked_pair(scores, mos)
    if undefined_reason(scores, mos):
        return float("nan")
    scores, mos = _centred(scores), _centred(mos)
    return float(np.clip(scores @ mos / np.sqrt((scores @ scores) * (mos @ mos)), -1, 1))


def _centred(values: np.ndarray) -> np.ndarray:
    # The largest deviation becomes 1, so that squares neither overflow nor vanish whatever the unit.
    centred = values - values.mean()
    return centred / np.abs(centred).max()


def krcc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Kendall's rank correlation tau-b, which corrects for ties (Kendall 1945).

    Formula: (concordant - discordant) / sqrt((pairs - pairs tied in scores)(pairs - pairs tied in mos)).

    Returns:
        A value in [-1, 1], higher is better; NaN if undefined.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> round(krcc([1, 3, 2], [1, 2, 3]), 4)
    0.3333
    """
    from scipy import stats

    scores, mos = checked_pair(scores, mos)
    if undefined_reason(scores, mos):
        return float("nan")
    return float(stats.kendalltau(scores, mos, method="asymptotic").statistic)


def rmse(scores: ArrayLike, mos: ArrayLike) -> float:
    """Root mean squared error, sqrt(mean (s - m)^2), in units of mos, without any mapping.

    Returns:
        A value of at least 0, lower is better; NaN for no images.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> rmse([1, 2], [4, 6]) == 12.5**0.5
    True
    """
    scores, mos = checked_pair(scores, mos)
    return float(np.sqrt(np.mean((scores - mos) ** 2))) if scores.size else float("nan")


def mae(scores: ArrayLike, mos: ArrayLike) -> float:
    """Mean absolute error, mean |s - m|, in units of mos, without any mapping.

    Returns:
        A value of at least 0, lower is better; NaN for no images.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> mae([1, 2], [4, 6])
    3.5
    """
    scores, mos = checked_pair(scores, mos)
    return float(np.mean(np.abs(scores - mos))) if scores.size else float("nan")


def outlier_ratio(scores: ArrayLike, mos: ArrayLike, mos_std: ArrayLike) -> float:
    """Share of images whose error exceeds twice the deviation of their ratings.

    Formula: mean [|s - m| > 2 std]. With `mos_std` the deviation among raters, the share outside the range of
    people's own disagreement. VQEG's final reports (2000, 2003) take the standard error of mos instead: pass
    `mos_std / sqrt(ratings)` for theirs, which is many times stricter.

    Args:
        scores: predictions in units of mos.
        mos: mean opinion scores.
        mos_std: standard deviation of each image's ratings, in units of mos.

    Returns:
        A value in [0, 1], lower is better; NaN for no images.

    Raises:
        UserError: NaN or infinity in the input, different lengths, or a negative deviation.

    >>> outlier_ratio([50, 60, 90], [50, 50, 50], [10, 10, 10])
    0.3333333333333333
    """
    scores, mos = checked_pair(scores, mos)
    mos_std = deviations_vector(mos_std, scores.size)
    return float(np.mean(np.abs(scores - mos) > 2 * mos_std)) if scores.size else float("nan")
